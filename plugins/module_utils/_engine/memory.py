# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ranks took of memory at most: told by each at its end, kept with the results beside what was predicted."""

from __future__ import annotations

import contextlib
import os
import resource
import typing as t

from . import files, processes
from .state import Run

GIB = 1 << 30


def peak(rank: int, attempt: int, steps: int) -> dict[str, t.Any]:
    """Bytes of this process. steps: that it made.

    rss: of the host, resident, at most. On a GPU also its name; cuda_allocated and cuda_reserved, torch's own peaks;
    cuda_reserved_now; driver_process and driver_used, what the driver says that this process has now, where it says so,
    and that all have together.
    """
    import torch

    host = {"rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    told: dict[str, t.Any] = {"rank": rank, "attempt": attempt, "steps": steps, **host}
    if torch.cuda.is_available():
        told["gpu"] = torch.cuda.get_device_name()
        told["cuda_allocated"] = torch.cuda.max_memory_allocated()
        told["cuda_reserved"] = torch.cuda.max_memory_reserved()
        told["cuda_reserved_now"] = torch.cuda.memory_reserved()
        with contextlib.suppress(RuntimeError):  # a run is not lost for it
            free, total = torch.cuda.mem_get_info()
            told["driver_used"] = total - free
        if mine := processes.gpu_memory(os.getpid()):
            told["driver_process"] = mine
    return told


def keep(run: Run, attempt: int) -> None:
    """Put what the ranks of this node told in an attempt beside what the run was taken to need."""
    told = [files.read_json(path) for path in run.logs.glob("memory-rank*.json")]
    measured = sorted((one for one in told if one.get("attempt") == attempt), key=lambda one: int(one["rank"]))
    if measured:
        predicted = files.read_json(run.record).get("predicted") or {}
        files.write_json(run.memory, {"predicted": predicted, "measured": measured})


def line(run: Run) -> str:
    """The largest of the ranks beside the prediction; empty where there was no GPU."""
    told = files.read_json(run.memory)
    taken = max((one.get("cuda_reserved", 0) for one in told.get("measured") or ()), default=0)
    predicted = (told.get("predicted") or {}).get("reserved")
    if not taken:
        return ""
    return f"{taken / GIB:.1f} GiB of a GPU reserved" + (f", {predicted / GIB:.1f} predicted" if predicted else "")
