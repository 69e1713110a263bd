# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One rank of an all-reduce over all nodes, before a run starts: `-m engine.allreduce_rank` under torchrun.

Shows what no try of a port does: that the libraries of the ranks meet over the interface that was chosen, that large
packets come through between every pair of nodes, that sums are right, and how fast. The nodes wait for each other
through torchrun's store, never in a collective: so the one that fails tells why, and the others that it was not them.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import threading
import time
import traceback
import typing as t
from pathlib import Path

from . import files, lease, peers, rank
from .state import Run

SIZES = {"gloo": 8 << 20, "nccl": 64 << 20}
"""Bytes that are added up: enough for the bandwidth to count and not the latency."""
WARM_UP, REPEATS = 2, 5
PAIR_BYTES = 1 << 20
STEP_SECONDS = 20.0
"""For each step once all ranks have come: connecting, one exchange between all nodes, adding up."""
HUNG_SECONDS = STEP_SECONDS + 5
"""When a step that does not keep its own time is given up."""


class Late(Exception):
    """Nodes that did not come."""


class Elsewhere(Exception):
    """Another node failed."""


class Silent(Exception):
    """Nodes from which nothing came."""


class Hung(Exception):
    """A step that did not end."""


class WrongSum(Exception):
    """A sum that is not that of all ranks."""


class Told:
    """What this rank is about, in a file; a rank that hangs says so and leaves."""

    def __init__(self, path: Path, rank: int) -> None:
        self.path, self.told = path, dict[str, t.Any](rank=rank)
        self.deadline = float("inf")
        threading.Thread(target=self._watch, daemon=True).start()

    def about(self, phase: str, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds
        self.tell(phase=phase)

    def tell(self, **more: t.Any) -> None:
        self.told.update(more)
        files.write_json(self.path, self.told)

    def fail(self, error: BaseException) -> None:
        self.tell(error=f"{type(error).__name__}: {error}"[-2000:])

    def _watch(self) -> None:
        while time.monotonic() < self.deadline:
            time.sleep(0.5)
        self.fail(Hung(f"{self.told['phase']} did not end"))
        os._exit(1)


class Meeting:
    """The nodes, as they wait for each other."""

    def __init__(self, here: peers.Node) -> None:
        self.here, self.store = here, t.cast(t.Any, peers.connect())

    def wait(self, word: str, seconds: float) -> None:
        """Until the first rank of every node has said the word."""
        if self.here.leads:
            self.store.set(f"{word}/{self.here.node}", str(self.here.rank))
            self.store.add(word, 1)
        deadline = time.monotonic() + seconds
        while self.store.add(word, 0) < self.here.nodes:
            if self.store.check(["failed"]):
                raise Elsewhere(f"node {int(self.store.get('failed'))} failed")
            if time.monotonic() > deadline:
                missing = [node for node in range(self.here.nodes) if not self.store.check([f"{word}/{node}"])]
                raise Late(f"node {', '.join(map(str, missing))} did not come within {seconds:.0f} s")
            time.sleep(0.05)

    def leaders(self) -> list[int]:
        """The first rank of every node."""
        return [int(self.store.get(f"come/{node}")) for node in range(self.here.nodes)]

    def fail(self) -> None:
        """Others need not wait. Without the store they hear of it by its loss."""
        with contextlib.suppress(Exception):
            if not self.store.check(["failed"]):
                self.store.set("failed", str(self.here.node))


def main() -> int:
    rank.die_with_parent()
    run, here, patience = Run(Path.cwd()), peers.here(), float(sys.argv[1])
    told = Told(run.logs / f"allreduce-rank{here.rank}.json", here.rank)
    told.about("loading torch", patience)
    meeting = None
    try:
        import torch.distributed as dist

        told.about("waiting for the others", 2 * patience)
        meeting = Meeting(here)
        meeting.wait("come", patience)
        gpus = files.read_json(run.launch)["leases"] != [lease.CPU]
        done = _reduce(meeting, "nccl" if gpus else "gloo", told)
        told.tell(**done, ok=True)
        dist.destroy_process_group()
    except Exception as error:
        traceback.print_exc()
        told.fail(error)
        if meeting:
            meeting.fail()
        return 1
    return 0


def _reduce(meeting: Meeting, backend: str, told: Told) -> dict[str, t.Any]:
    """Seconds of one all-reduce, and of what."""
    import torch
    import torch.distributed as dist

    here = meeting.here
    told.about("connecting", HUNG_SECONDS)
    device = torch.device("cpu")
    if backend == "nccl":
        device = torch.device("cuda", here.local_rank)
        torch.cuda.set_device(device)
    timeout = datetime.timedelta(seconds=STEP_SECONDS)
    dist.init_process_group("gloo" if backend == "gloo" else "cpu:gloo,cuda:nccl", timeout=timeout)
    meeting.wait("connected", HUNG_SECONDS)
    told.about("exchanging 1 MiB", 2 * HUNG_SECONDS)
    under_way = _exchange(here, meeting.leaders()) if here.leads else []
    meeting.wait("exchanged", HUNG_SECONDS)
    del under_way  # now that each has come: gloo gives up what nobody refers to
    told.about("adding up", 2 * HUNG_SECONDS)
    seconds = _timed(device, SIZES[backend], here)
    meeting.wait("added up", HUNG_SECONDS)
    return {
        "nodes": here.nodes,
        "ranks": here.world_size,
        "backend": backend,
        "bytes": SIZES[backend],
        "seconds": seconds,
    }


def _exchange(here: peers.Node, leaders: t.Sequence[int]) -> list[t.Any]:
    """Every node sends to every other one, all at once: a way that is blocked keeps no other one waiting.

    Returns what it has sent itself, which may still be on its way.
    """
    import torch
    import torch.distributed as dist

    others = [node for node in range(here.nodes) if node != here.node]
    sent = torch.full((PAIR_BYTES,), here.node % 128, dtype=torch.uint8)
    received = {node: torch.empty_like(sent) for node in others}
    receiving = {node: dist.irecv(received[node], leaders[node]) for node in others}
    sending = [dist.isend(sent, leaders[node]) for node in others]
    deadline = time.monotonic() + STEP_SECONDS
    for node in others:
        left = max(0.1, deadline - time.monotonic())
        try:
            receiving[node].wait(datetime.timedelta(seconds=left))
        except RuntimeError as error:
            if "imed out" not in str(error):
                raise
            raise Silent(f"1 MiB from node {node} did not come within {STEP_SECONDS:.0f} s") from error
        if not bool((received[node] == node % 128).all()):
            raise WrongSum(f"what node {node} sent came out as something else")
    return sending


def _timed(device: t.Any, size: int, here: peers.Node) -> float:
    """Seconds of one all-reduce of so many bytes of 32-bit numbers."""
    import torch
    import torch.distributed as dist

    whole = here.world_size * (here.world_size + 1) / 2
    numbers = torch.empty(size // 4, dtype=torch.float32, device=device)
    settle = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    began = 0.0
    for turn in range(WARM_UP + REPEATS):
        numbers.fill_(here.rank + 1)
        if turn == WARM_UP:
            settle()
            began = time.perf_counter()
        dist.all_reduce(numbers)
    settle()
    seconds = (time.perf_counter() - began) / REPEATS
    if not bool((numbers == whole).all()):
        raise WrongSum(f"the sum over all ranks is {numbers.mean().item():g}, it ought to be {whole:g}")
    return seconds


if __name__ == "__main__":
    raise SystemExit(main())
