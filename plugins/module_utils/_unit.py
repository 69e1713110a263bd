# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run as a systemd unit: there while the run is live, so that a reboot goes on with it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from ._errors import FinetuneError

FOLDER = Path("/etc/systemd/system")


def name(run_id: str) -> str:
    return f"llmops-{run_id}.service"


def start(run_id: str, text: str) -> None:
    """Install, enable and start the unit. Root only."""
    unit = FOLDER / name(run_id)
    unit.write_text(text, encoding="utf-8")
    unit.chmod(0o644)
    _systemctl("daemon-reload")
    _systemctl("reset-failed", name(run_id), needed=False)
    _systemctl("enable", "--now", name(run_id))


def remove(run_id: str) -> bool:
    """Stop, disable and remove the unit; False when there was none."""
    unit = FOLDER / name(run_id)
    if not unit.exists():
        return False
    _systemctl("disable", "--now", name(run_id))
    unit.unlink(missing_ok=True)
    _systemctl("daemon-reload")
    return True


def _systemctl(*arguments: str, needed: bool = True) -> None:
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    if needed and done.returncode != 0:
        raise FinetuneError(
            f"systemctl {' '.join(arguments)} failed.",
            where=done.stderr.strip(),
            change="see `journalctl -xe` on the node",
        )
