# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checkpoints of several nodes in one folder, on storage that they share: rank 0 alone marks, removes and rewinds.

The others look, and wait: a network file system may show what another node wrote, or removed, a minute late.
"""

from __future__ import annotations

import time
import typing as t
from pathlib import Path

from . import checkpoint
from .exchange import Nodes, Sizes
from .peers import Node, Store

PATIENCE_SECONDS = 150.0
"""NFS keeps what it knows of a folder for up to 60 s (acdirmax), of what is not there as well."""
POLL_SECONDS = 0.5


class NotSeen(Exception):
    """What another node wrote in the folder does not come to be seen on this one."""


def restore(output: Path, here: Node, store: Store, *, resumes: bool) -> str | None:
    """The checkpoint to go on from, seen whole by every node; called by all ranks before an attempt trains.

    All have met by now, so no rank of an earlier attempt writes there any more.
    """
    if here.rank == 0:
        start = checkpoint.prepare(output, resumes=resumes)
        store.set("step", str(checkpoint.step_of(start) if start else 0))
    step = int(store.get("step"))  # get waits for it
    path = output / f"checkpoint-{step}"
    if here.leads:
        until(lambda: is_at(output, step), f"what rank 0 made of {output}, which is to be at step {step}")
        store.set(f"sees/{here.node}", "1")
    for node in range(here.nodes):
        store.get(f"sees/{node}")
    return str(path) if step else None


def is_at(output: Path, step: int) -> bool:
    """The checkpoint of that step is whole and the newest one; for step 0 there is none."""
    newest = max((checkpoint.step_of(path) for path in checkpoint.found(output)), default=0)
    return output.is_dir() and newest == step and (not step or checkpoint.is_complete(output / f"checkpoint-{step}"))


class SharedNodes(Nodes):
    """The first ranks of all nodes, which have written a checkpoint into one folder."""

    def complete(self, path: Path) -> None:
        """Mark it once rank 0 sees all that any node wrote."""
        checkpoint.sync(path)
        wanted = union(self.gather(checkpoint.sizes(path)))
        if self.here.rank == 0:
            until(lambda: wanted.items() <= checkpoint.sizes(path).items(), f"what other nodes wrote of {path}")
            checkpoint.mark(path)


def union(seen: t.Sequence[Sizes]) -> Sizes:
    """Every file that any node sees, as large as any sees it: one that looks from afar may see less."""
    return {name: max(sizes.get(name, 0) for sizes in seen) for name in sorted(set().union(*seen))}


def until(seen: t.Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not seen():
        if time.monotonic() > deadline:
            raise NotSeen(f"Within {PATIENCE_SECONDS:.0f} s this node does not see {what}.")
        time.sleep(POLL_SECONDS)
