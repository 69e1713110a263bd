# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The processes below this one: measured, and ended without leaving one behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
import typing as t

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Process(t.NamedTuple):
    pid: int
    parent: int
    state: str
    cpu_seconds: float
    rss: int


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies, so that none slips away to init."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def descendants(root: int) -> list[Process]:
    """All living processes below `root`, parents before children."""
    children: dict[int, list[Process]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (process := _read(int(entry))):
            children.setdefault(process.parent, []).append(process)
    below: list[Process] = []
    queue = [root]
    while queue:
        for process in children.get(queue.pop(0), []):
            if process.state != "Z":
                below.append(process)
            queue.append(process.pid)
    return below


def lives(pid: int) -> bool:
    """Whether a process is there and has its files, and so its locks; its command line is gone before those."""
    process = _read(pid)
    return process is not None and process.state not in ("Z", "X")


def running(word: str, but: str) -> bool:
    """Whether a process below this one has `word` in its command line, and not `but`."""
    for process in descendants(os.getpid()):
        with (
            contextlib.suppress(OSError),
            open(f"/proc/{process.pid}/cmdline", encoding="utf-8", errors="replace") as file,
        ):
            command = file.read()
            if word in command and but not in command:
                return True
    return False


def end_all(patience: float = 10.0) -> bool:
    """Kill everything below this process and reap it; False if something survives `patience` seconds."""
    deadline = time.monotonic() + patience
    while True:
        alive = descendants(os.getpid())
        for process in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        if not _reap() and not alive:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)


def _reap() -> bool:
    """Take leave of children that ended. Whether any are left: one counts as dead before its last thread has ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def killed_for_memory() -> int:
    """How many processes this node's kernel has ended for want of memory since it booted; 0 where it does not say."""
    with contextlib.suppress(OSError), open("/proc/vmstat", encoding="ascii") as file:
        for line in file:
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


class Meter:
    """CPU (percent of one core since the last reading) and memory (bytes resident) of the processes below this one.

    With GPUs, by UUID, also their mean use in percent and the memory in use on all of them in bytes.
    """

    def __init__(self, gpus: t.Sequence[str] = ()) -> None:
        self._before = (time.monotonic(), 0.0)
        self._gpus = gpus

    def read(self) -> dict[str, float]:
        return {**self._processes(), **(gpu_use(self._gpus) if self._gpus else {})}

    def _processes(self) -> dict[str, float]:
        below = descendants(os.getpid())
        now, used = time.monotonic(), sum(process.cpu_seconds for process in below)
        then, before = self._before
        self._before = (now, used)
        return {
            "cpu": max(0.0, 100 * (used - before) / max(now - then, 1e-3)),
            "memory": sum(process.rss for process in below),
        }


def gpu_use(uuids: t.Sequence[str]) -> dict[str, float]:
    """What nvidia-smi says of these GPUs; nothing when it does not answer within 5 s."""
    rows = _ask_driver("--query-gpu=utilization.gpu,memory.used", "-i", ",".join(uuids))
    if not rows:
        return {}
    return {"gpu": sum(row[0] for row in rows) / len(rows), "gpu_memory": sum(row[1] for row in rows) * 2**20}


def gpu_memory(pid: int) -> int:
    """Bytes that a process has of a GPU; 0 where the driver does not say, as in a container with pids of its own."""
    rows = _ask_driver("--query-compute-apps=pid,used_memory")
    return max((int(used) << 20 for known, used in rows if known == pid), default=0)


def _ask_driver(*query: str) -> list[list[float]]:
    command = ["nvidia-smi", *query, "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
        return [[float(field) for field in line.split(",")] for line in answer.splitlines() if line.strip()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def _read(pid: int) -> Process | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return Process(
        pid=pid,
        parent=int(fields[1]),
        state=fields[0],
        cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICKS,
        rss=int(fields[21]) * _PAGE,
    )
