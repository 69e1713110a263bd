# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checkpoints of several nodes without shared storage: who has which file, and what goes where.

What all ranks hold alike each node saves itself. What is a rank's own (shards of ZeRO and FSDP, random states) is
copied to the next node as well, so that one node may be lost. Before an attempt all nodes agree on the newest
checkpoint that can be had whole, and those that lack files of it get them from the others.
"""

from __future__ import annotations

import json
import re
import typing as t
from pathlib import Path

from . import checkpoint
from .peers import Node, Store

Sizes = dict[str, int]
"""Bytes by file name inside a checkpoint."""
Seen = t.TypeVar("Seen")
CHUNK = 64 << 20

_OWN = re.compile(r"(?<!mp_)rank_\d+|rng_state_\d+")
"""Files of single ranks. Any other that one node alone wrote (`latest` of DeepSpeed, `optimizer.bin` of FSDP) is for
all; mp_rank_00 is of model parallelism, not of a rank."""
_OPTIONAL = "rng_state"
"""Files a checkpoint can be resumed without: dropout goes on with other random numbers."""


class LostShards(Exception):
    """No checkpoint is whole on the nodes together; names the files that none of them has."""


class Held(t.NamedTuple):
    """A checkpoint that a node has, by its mark."""

    files: Sizes
    nodes: list[Sizes]
    """What each node wrote when it was saved."""
    save: int = 0
    """Which saving of that step it is: of two, files do not go together."""


class Move(t.NamedTuple):
    name: str
    size: int
    source: int
    target: int


class Agreement(t.NamedTuple):
    step: int
    """0: from the start."""
    moves: list[Move]
    lost: list[str]
    """Why newer checkpoints, or all, cannot be used: files that no node has."""
    save: int = 0


def agree(held: t.Sequence[t.Mapping[int, Held]]) -> Agreement:
    """The newest step whose files are all somewhere. held: by node rank, its whole checkpoints by step."""
    lost: list[str] = []
    for step, save in sorted({(step, had.save) for node in held for step, had in node.items()}, reverse=True):
        saved = _saved(held, step, save)
        common = set.intersection(*(set(files) for files in saved))
        wanted = [of_node(saved, common, rank, len(held)) for rank in range(len(held))]
        present = [dict(node[step].files) if step in node and node[step].save == save else {} for node in held]
        moves, missing = _moves(wanted, present, common)
        if not missing:
            return Agreement(step, moves, lost, save)
        lost += [f"checkpoint-{step}/{name}" for name in missing]
    return Agreement(0, [], lost)


def _saved(held: t.Sequence[t.Mapping[int, Held]], step: int, save: int) -> list[Sizes]:
    """What each node wrote then, as any that has the checkpoint knows."""
    return next(node[step].nodes for node in held if step in node and node[step].save == save)


def of_node(saved: t.Sequence[Sizes], common: t.Collection[str], rank: int, nodes: int) -> Sizes:
    """What a node needs of a checkpoint: what is for all, and its own; with another number of nodes, what all had
    alike."""
    if len(saved) == nodes:
        return {name: size for files in saved for name, size in files.items() if not _OWN.search(name)} | saved[rank]
    if all(_OPTIONAL in name or name in common for files in saved for name in files):
        return {name: size for name, size in saved[0].items() if name in common}
    return {name: size for files in saved for name, size in files.items()}


def _moves(
    wanted: t.Sequence[Sizes], present: t.Sequence[Sizes], common: t.Collection[str]
) -> tuple[list[Move], list[str]]:
    """Files that a node lacks and another one has, and those that none has. common: files that all hold alike."""
    moves, missing = [], []
    for target, files in enumerate(wanted):
        for name, size in sorted(files.items()):
            if present[target].get(name) == size or (name in common and name in present[target]):
                continue
            has = [node for node, there in enumerate(present) if there.get(name) == size]
            has += [node for node, there in enumerate(present) if name in common and name in there]
            if has:
                moves.append(Move(name, present[has[0]][name], has[0], target))
            elif _OPTIONAL not in name:
                missing.append(name)
    return moves, sorted(set(missing))


def mirror(saved: t.Sequence[Sizes]) -> list[Move]:
    """What the next node keeps a copy of: files that one node alone has."""
    moves = []
    for node, files in enumerate(saved):
        others = {name for other, theirs in enumerate(saved) if other != node for name in theirs}
        target = (node + 1) % len(saved)
        moves += [Move(name, size, node, target) for name, size in sorted(files.items()) if name not in others]
    return moves


def held(output: Path) -> dict[int, Held]:
    """The whole checkpoints in an output folder, by step."""
    found = {}
    for path in checkpoint.found(output):
        if checkpoint.is_complete(path):
            mark = checkpoint.read_mark(path)
            found[checkpoint.step_of(path)] = Held(
                mark["files"], mark.get("nodes") or [mark["files"]], int(mark.get("save", 0))
            )
    return found


def restore(output: Path, here: Node, store: Store) -> Agreement:
    """Bring every node to the same newest checkpoint; called by all ranks before an attempt trains."""
    if here.leads:
        mine = {str(step): had._asdict() for step, had in held(output).items()}
        store.set(f"have/{here.node}", json.dumps(mine))
    told = [json.loads(store.get(f"have/{node}")) for node in range(here.nodes)]  # get waits for them
    have = [{int(step): Held(**had) for step, had in node.items()} for node in told]
    agreed = agree(have)
    if here.leads:
        if agreed.step or not agreed.lost:
            _bring(agreed, have, output, here, store)
        store.set(f"ready/{here.node}", "1")
    for node in range(here.nodes):
        store.get(f"ready/{node}")
    return agreed


def _bring(agreed: Agreement, have: t.Sequence[t.Mapping[int, Held]], output: Path, here: Node, store: Store) -> None:
    """Have the files that the agreement brings here, and nothing newer than its step."""
    path = output / f"checkpoint-{agreed.step}"
    if agreed.moves:
        _carry_out(agreed.moves, path, here, store)
    if any(move.target == here.node for move in agreed.moves):
        saved = list(_saved(have, agreed.step, agreed.save))
        if len(saved) == here.nodes:  # a file that all have alike may have another length here
            now = checkpoint.sizes(path)
            saved[here.node] = {name: now[name] for name in saved[here.node] if name in now}
        checkpoint.mark(path, saved, agreed.save)
    checkpoint.rewind(output, agreed.step)


def _carry_out(moves: t.Sequence[Move], folder: Path, here: Node, store: Store) -> None:
    """Files over a group of the nodes' first ranks, which is gone before the trainer makes its own."""
    import torch.distributed as dist

    place = dist.PrefixStore("exchange", t.cast("t.Any", store))
    dist.init_process_group("gloo", store=place, rank=here.node, world_size=here.nodes)
    try:
        send_files(moves, folder, here.node, range(here.nodes), None)
    finally:
        dist.destroy_process_group()


def send_files(moves: t.Sequence[Move], folder: Path, node: int, leaders: t.Sequence[int], group: t.Any) -> None:
    """leaders: the rank, in the default group, that acts for each node."""
    import torch
    import torch.distributed as dist

    for move in moves:
        if node == move.source:
            with open(folder / move.name, "rb") as file:
                while chunk := file.read(CHUNK):
                    dist.send(torch.frombuffer(bytearray(chunk), dtype=torch.uint8), leaders[move.target], group)
        elif node == move.target:
            path = folder / move.name
            path.parent.mkdir(parents=True, exist_ok=True)
            part, left = path.with_name(f".{path.name}.part"), move.size
            with open(part, "wb") as file:
                while left:
                    chunk = torch.empty(min(left, CHUNK), dtype=torch.uint8)
                    dist.recv(chunk, leaders[move.source], group)
                    file.write(chunk.numpy().tobytes())
                    left -= len(chunk)
            part.replace(path)


class Nodes:
    """The first ranks of all nodes as a group of their own; made by all ranks, when the trainer has made its group."""

    def __init__(self, here: Node, store: Store) -> None:
        import torch.distributed as dist

        if here.leads:
            store.set(f"leads/{here.node}", str(here.rank))
        self.here = here
        self.leaders = [int(store.get(f"leads/{node}")) for node in range(here.nodes)]
        self.group = dist.new_group(self.leaders, backend="gloo")

    def complete(self, path: Path) -> None:
        """Mark what this node has of a checkpoint, when its neighbour has a copy of what is this node's alone."""
        told = self.gather((checkpoint.sizes(path), checkpoint.next_save(path.parent)))
        saved = [sizes for sizes, _save in told]
        send_files(mirror(saved), path, self.here.node, self.leaders, self.group)
        checkpoint.mark(path, saved, max(save for _sizes, save in told))

    def gather(self, seen: Seen) -> list[Seen]:
        """What each node sees."""
        import torch.distributed as dist

        told = [seen for node in range(self.here.nodes)]
        dist.all_gather_object(told, seen, self.group)
        return told
