# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run as a systemd unit: there while the run is live, so that a reboot goes on with it. Only root changes units."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from ._errors import FinetuneError

FOLDER = Path("/etc/systemd/system")


def name(run_id: str) -> str:
    return f"llmops-{run_id}.service"


def path(run_id: str) -> Path:
    return FOLDER / name(run_id)


def escaped(value: object) -> str:
    """A value that systemd takes to the end of the line: only specifiers (%h, %n, …) mean something in it."""
    return str(value).replace("%", "%%")


def quoted(value: object) -> str:
    """One word of a unit file, whatever is in it."""
    return '"' + escaped(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def installed(run_id: str, folder: str) -> bool:
    """Whether there is a unit of the run in `folder`; the same run under another root has a unit of the same name."""
    return f"WorkingDirectory={escaped(folder)}\n" in read(run_id)


def read(run_id: str) -> str:
    """The unit as it is installed; empty where there is none."""
    try:
        return path(run_id).read_text(encoding="utf-8")
    except OSError:
        return ""


def running(run_id: str) -> bool:
    return _main_process(run_id) > 0


def stop(run_id: str) -> None:
    """End it and wait for that; nothing to do where it does not run."""
    _systemctl("stop", name(run_id), needed=False)


def start(run_id: str, text: str, folder: str) -> int:
    """Install, enable and start the unit; returns the supervisor's process, -1 when that is gone already."""
    unit = path(run_id)
    if unit.exists() and not installed(run_id, folder) and running(run_id):
        raise FinetuneError(
            f"Run {run_id} of another folder is running as {unit.name}.",
            where="train_root",
            change="wait for it, stop it, or give this run another train_name",
        )
    stop(run_id)  # the end of an earlier start may still be under way
    # Of a unit whose file somebody removed systemd may still have the text.
    known = unit.exists() or _property(run_id, "LoadState") != "not-found"
    temporary = unit.with_name(f".{unit.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(0o644)
    os.replace(temporary, unit)
    try:
        if known:  # a new one is read when it starts; to read all units takes a busy host a second
            _systemctl("daemon-reload")
        _systemctl("reset-failed", unit.name, needed=False)
        _systemctl("enable", "--no-reload", unit.name)
        _start(unit.name, known)
    except FinetuneError:
        remove(run_id, folder)
        raise
    return _main_process(run_id) or -1


def _start(unit: str, known: bool) -> None:
    try:
        _systemctl("start", unit)
    except FinetuneError:
        if known:
            raise
        _systemctl("daemon-reload")  # before version 246 systemd may remember that there was none
        _systemctl("start", unit)


def remove(run_id: str, folder: str) -> None:
    """Stop, disable and remove the unit, where there is one. It removes itself when its run has come to an end."""
    if not installed(run_id, folder):
        return
    stop(run_id)
    _systemctl("disable", name(run_id), needed=installed(run_id, folder))
    path(run_id).unlink(missing_ok=True)
    _systemctl("reset-failed", name(run_id), needed=False)
    _systemctl("daemon-reload")


def _main_process(run_id: str) -> int:
    return int(_property(run_id, "MainPID") or 0)


def _property(run_id: str, which: str) -> str:
    return _systemctl("show", f"--property={which}", "--value", name(run_id)).strip()


def _systemctl(*arguments: str, needed: bool = True) -> str:
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    if needed and done.returncode != 0:
        raise FinetuneError(
            f"systemctl {' '.join(arguments)} failed.",
            where=done.stderr.strip(),
            change="see `journalctl -xe` on the node",
        )
    return done.stdout
