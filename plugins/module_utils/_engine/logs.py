# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ranks, and processes of the engine, left in the logs of a run."""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

from . import files
from .state import Run


def errors(run: Run) -> list[dict[str, t.Any]]:
    """What failing ranks left in the last attempt, earliest first."""
    found = [files.read_json(path) for path in run.logs.glob("error-rank*.json")]
    return sorted((error for error in found if error), key=lambda error: float(error["time"]))


def tail(path: Path, amount: int = 20_000) -> str:
    """The last `amount` bytes of a log as text."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - amount))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def ending(path: Path) -> list[str]:
    """The last lines of what a process of the engine said of itself."""
    return tail(path, 2000).splitlines()[-5:]


def last_words(path: Path, lines: int = 6) -> list[str]:
    """The last lines of a log that tell something: torchrun's own account of a failed rank is left out."""
    told = re.split(r"^[EW]\d{4} [^\n]*torch/distributed/elastic/", tail(path), maxsplit=1, flags=re.MULTILINE)[0]
    return [line for line in told.splitlines() if line.strip()][-lines:]
