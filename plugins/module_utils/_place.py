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

from . import _held
from ._engine import files, logs, processes, state
from ._errors import FinetuneError

START_SECONDS = 30.0
"""How long an apply waits for a module of the engine to say that it began."""

_END_SECONDS = 5.0
"""How long a process of the engine that was told to end may take."""

JOIN_SECONDS, JOIN_SECONDS_PER_NODE = 30.0, 5.0
"""How long ranks of an all-reduce wait for those of the other nodes, whose calls may come one after the other."""


def hold(run: state.Run, spec: dict[str, t.Any]) -> dict[str, t.Any]:
    """Hold this node's place until the start: its leases, and ports that the other nodes try.

    Returns these, and the token with which its listener is asked to try others.
    """
    release(run)
    told = _begin(run, spec, "listener", run.listening)
    if "holder" in told:
        raise _held.refusal(told["key"], told["holder"], spec["user"], spec["folder"])
    if "why" in told:
        raise FinetuneError(
            f"Port {told['port']} of this node cannot be used: {told['why']}.",
            where="train_port",
            change="end what listens there, or set another train_port",
        )
    return {"ports": [int(port) for port in told["ports"]], "token": told["token"]}


def begin_allreduce(run: state.Run, spec: dict[str, t.Any], port: int) -> dict[str, t.Any]:
    """Begin this node's part of an all-reduce over all nodes, which goes on while they begin theirs.

    port: of rank 0's node; the run's own is held until the start.
    """
    patience = JOIN_SECONDS + JOIN_SECONDS_PER_NODE * spec["launch"]["nnodes"]
    _end(run.allreduce, "allreduce")
    return _begin(run, spec, "allreduce", run.allreduce, str(port), str(patience))


def end_of_allreduce(run: state.Run) -> dict[str, t.Any]:
    """Wait for this node's part, which keeps its time itself: what came of it."""
    while True:
        pid = int(files.read_json(run.allreduce).get("pid") or 0)
        lives = b"engine.allreduce" in _command(pid)
        told = files.read_json(run.allreduce)
        if "ok" in told:
            return told
        if not lives:
            return {"ok": False, "phase": "starting torchrun", "error": ""}
        time.sleep(0.2)


def release(run: state.Run) -> None:
    """End what a run has between staging and start; its leases are free then."""
    _end(run.allreduce, "allreduce")
    _end(run.listening, "listener")
    run.listening.unlink(missing_ok=True)


def _begin(run: state.Run, spec: dict[str, t.Any], module: str, path: Path, *arguments: str) -> dict[str, t.Any]:
    """Start a module of the engine and wait for its first words in `path`."""
    token = uuid.uuid4().hex
    spawn(run, spec, module, token, *arguments)
    deadline = time.monotonic() + START_SECONDS
    while (told := files.read_json(path)).get("token") != token:
        if time.monotonic() > deadline:
            log = run.logs / f"{module}.log"
            last = logs.ending(log)
            raise FinetuneError(
                f"The {module} did not start.", where="\n          ".join([str(log), *last]), change="read that log"
            )
        time.sleep(0.01)
    return told


def _end(path: Path, module: str) -> None:
    """End the process that `path` names, where it is that module of the engine, and wait until its locks are free."""
    pid = int(files.read_json(path).get("pid") or 0)
    if not pid or f"engine.{module}".encode() not in _command(pid):
        return
    deadline = time.monotonic() + _END_SECONDS
    while processes.lives(pid) and time.monotonic() < deadline:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.01)


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
