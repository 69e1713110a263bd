# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node's place in a run of several, between staging and start: its leases, and the port that the others try."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import typing as t
import uuid
from pathlib import Path

from . import _report
from ._engine import files, state, supervisor
from ._errors import FinetuneError

START_SECONDS = 30.0
"""How long an apply waits for a module of the engine to say that it began."""


def hold(run: state.Run, spec: dict[str, t.Any]) -> None:
    """Hold this node's place until the start: its leases, and the port that the other nodes try."""
    release(run)
    token = uuid.uuid4().hex
    spawn(run, spec, "listener", token)
    deadline = time.monotonic() + START_SECONDS
    while (told := files.read_json(run.listening)).get("token") != token:
        if time.monotonic() > deadline:
            log = run.logs / "listener.log"
            last = supervisor.tail(log, 2000).splitlines()[-5:]
            raise FinetuneError(
                "The listener did not start.", where="\n          ".join([str(log), *last]), change="read that log"
            )
        time.sleep(0.05)
    if "holder" in told:
        raise _report.held(told["key"], told["holder"], spec["user"], spec["folder"])
    if "why" in told:
        raise FinetuneError(
            f"Port {told['port']} of this node cannot be used: {told['why']}.",
            where="train_port",
            change="end what listens there, or set another train_port",
        )


def release(run: state.Run) -> None:
    """End the listener of a run, where there is one; its leases are free then."""
    pid = int(files.read_json(run.listening).get("pid") or 0)
    deadline = time.monotonic() + 5
    while pid and b"engine.listener" in _command(pid) and time.monotonic() < deadline:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.05)
    run.listening.unlink(missing_ok=True)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def spawn(run: state.Run, spec: dict[str, t.Any], module: str, *arguments: str) -> int:
    """Start a module of the engine as the user we are, detached from this process; returns its pid."""
    with open(run.logs / f"{module}.log", "ab") as log:
        child = subprocess.Popen(
            [spec["launch"]["python"], "-m", f"engine.{module}", *arguments],
            cwd=run.path,
            env={**os.environ, **spec["launch"]["environment"]},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return child.pid
