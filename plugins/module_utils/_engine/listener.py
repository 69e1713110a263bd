# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Holds a node's place between staging and start: `python -m engine.listener` in the run's folder.

Has the leases, so that no other run takes them meanwhile, and answers on ports such as the run will use, so that every
other node can see whether it gets through: rank 0's node on that of the rendezvous, and all on one that the kernel
picks, as NCCL and gloo have it do. A firewall that lets the first one through and no other is the usual reason for
ranks that hang. Who knows its token may have it try other nodes itself. Ends when it is told to, or after an hour:
other nodes may be long about staging.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
import typing as t
from pathlib import Path

from . import files, lease, probe
from .state import Run

LIFE_SECONDS = 3600.0
CALL_SECONDS = 10.0
"""For a caller to say what it wants, which is nothing more as a rule. One that asks may be short of processors."""


def main() -> int:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    run = Run(Path.cwd())
    launch, token = files.read_json(run.launch), sys.argv[1]
    holder = {"run": run.id, "user": getpass.getuser(), "pid": os.getpid(), "since": time.time(), "staging": True}
    try:
        held = lease.acquire(launch["leases"], holder, lease.directory(launch["lease_dir"]))
    except lease.Held as error:
        return _refuse(run, {"token": token, "key": error.key, "holder": error.holder})
    try:
        wanted = [0] if launch["node_rank"] else [launch["master_port"], 0]
        doors = [socket.create_server(("", port), backlog=256) for port in wanted]
    except OSError as error:
        return _refuse(run, {"token": token, "port": launch["master_port"], "why": error.strerror})
    ports = [door.getsockname()[1] for door in doors]
    files.write_json(run.listening, {"token": token, "pid": os.getpid(), "ports": ports})
    _open(doors, {"run": run.id, "node_rank": launch["node_rank"]}, token)
    return 0 if held else 1


def _refuse(run: Run, why: dict[str, t.Any]) -> int:
    files.write_json(run.listening, why)
    return 3


def _open(doors: t.Sequence[socket.socket], words: dict[str, t.Any], token: str) -> None:
    """Let callers in, each one for itself."""
    deadline = time.monotonic() + LIFE_SECONDS
    with selectors.DefaultSelector() as ready:
        for listening in doors:
            ready.register(listening, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            for door in (key.fileobj for key, mask in ready.select(left) if mask):
                try:
                    caller = t.cast(socket.socket, door).accept()[0]
                    threading.Thread(target=_talk, args=(caller, words, token), daemon=True).start()
                except (OSError, RuntimeError):  # no file or no thread to be had: whoever calls now is not answered
                    time.sleep(0.1)


def _talk(caller: socket.socket, words: dict[str, t.Any], token: str) -> None:
    """Say who we are and what time it is here; then answer a question, where there is one."""
    with caller, contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        caller.settimeout(CALL_SECONDS)
        caller.sendall(json.dumps({**words, "time": time.time()}).encode() + b"\n")
        with caller.makefile("rb") as file:
            question = file.readline(probe.LINE_BYTES)
        caller.sendall(probe.answer(question, token))


if __name__ == "__main__":
    raise SystemExit(main())
