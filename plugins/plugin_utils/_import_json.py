# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""JSON files that a LLaMA-Factory file names."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path


def read(path: Path) -> tuple[t.Any, str]:
    """What is in a file, or why that cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8")), ""
    except json.JSONDecodeError as error:
        return None, f"line {error.lineno} is no JSON" if path.stat().st_size else "it is empty"
    except OSError as error:
        return None, str(error.strerror)
    except UnicodeDecodeError:
        return None, "it is not UTF-8"
    except (ValueError, RecursionError):
        return None, "it holds brackets or digits without end"
