# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node's part of an all-reduce over all nodes: `python -m engine.allreduce TOKEN PORT PATIENCE` in the run's folder.

In the background, because the other nodes begin their part only when this one's module call is over. Starts torchrun as
the run will, on another port, leaves what came of it in a file, and nothing else: neither processes nor a hold on the
port. PATIENCE: seconds to wait for the other nodes. Stdlib only.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import types
import typing as t
from pathlib import Path

from . import allreduce_rank, files, logs, processes, rank, torchrun
from .state import Run

LAST_SECONDS = 5.0
"""How long torchrun may take to end when all its ranks are through."""


def work_seconds(nodes: int) -> float:
    """How long it may take from the meeting of all ranks: connecting, each round of pairs, adding up."""
    return 6 * allreduce_rank.HUNG_SECONDS + nodes


def main() -> int:
    signal.signal(signal.SIGTERM, _end)
    run = Run(Path.cwd())
    launch, token, port, patience = files.read_json(run.launch), sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    processes.adopt_orphans()
    os.ftruncate(sys.stdout.fileno(), 0)
    for old in run.logs.glob("allreduce-rank*.json"):
        old.unlink()
    files.write_json(run.allreduce, {"token": token, "pid": os.getpid()})
    try:
        _reduce(run, launch, port, patience)
    finally:
        processes.end_all()
    told = [files.read_json(path) for path in sorted(run.logs.glob("allreduce-rank*.json"))]
    log = logs.tail(run.logs / "allreduce.log")
    files.write_json(run.allreduce, {"token": token, **outcome(told, launch["nproc_per_node"], log)})
    return 0


def _end(number: int, frame: types.FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would interrupt the ending
    raise SystemExit(1)


def _reduce(run: Run, launch: dict[str, t.Any], port: int, patience: float) -> None:
    """torchrun, until it ends, or its ranks have, or for so long as an all-reduce may take."""
    deadline = time.monotonic() + 2 * patience + work_seconds(launch["nnodes"])
    with tempfile.TemporaryDirectory(prefix="llmops-", ignore_cleanup_errors=True) as scratch:
        child = subprocess.Popen(
            torchrun.command(launch, port, "engine.allreduce_rank", f"{patience:.0f}", join_seconds=patience),
            env={**os.environ, "TMPDIR": scratch},
            preexec_fn=rank.die_with_parent,
        )
        while child.poll() is None and time.monotonic() < deadline:
            told = [files.read_json(path) for path in run.logs.glob("allreduce-rank*.json")]
            if sum(one.get("ok") or "error" in one for one in told) == launch["nproc_per_node"]:
                deadline = min(deadline, time.monotonic() + LAST_SECONDS)
            time.sleep(0.1)


def outcome(told: t.Sequence[dict[str, t.Any]], ranks: int, log: str) -> dict[str, t.Any]:
    """What came of it on this node. told: what its ranks left; log: the end of what torchrun and they said.

    error: of the first rank that left one; else what hung or died, and where.
    """
    if len(told) == ranks and all(one.get("ok") for one in told):
        measured = {key: told[0][key] for key in ("nodes", "ranks", "backend", "bytes", "seconds")}
        return {"ok": True, **measured, **bandwidth(measured["bytes"], measured["seconds"], measured["ranks"])}
    for one in told:
        if "error" in one:
            return {"ok": False, "phase": one["phase"], "error": one["error"]}
    hung = next((one for one in told if not one.get("ok")), {})
    return {"ok": False, "phase": hung.get("phase", "starting torchrun"), "error": _last_error(log)}


def bandwidth(size: int, seconds: float, ranks: int) -> dict[str, float]:
    """GB/s as nccl-tests tells it: of the sum, and on the bus, where each byte of it goes 2 (n - 1) / n times."""
    rate = size / seconds / 1e9
    return {"algorithm_bandwidth": rate, "bus_bandwidth": rate * 2 * (ranks - 1) / ranks}


def _last_error(log: str) -> str:
    """The last exception in a log; nothing where there is none."""
    found = re.findall(r"^(?:\[rank\d+\]: )?((?:\w+\.)*\w*(?:Error|Exception|Failure)\b.*)", log, re.MULTILINE)
    return str(found[-1])[:2000] if found else ""


if __name__ == "__main__":
    raise SystemExit(main())
