# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PyTorch's caching allocator: what it reserves, and what it counts as allocated, for what was taken and given back.

As c10/cuda/CUDACachingAllocator.cpp: small and large blocks in pools of their own, the smallest free block that fits,
the rest of it split off where it is worth it, neighbours joined when they are free. A block that is not split counts
with its whole size, so `allocated` is more than the sum of the tensors.
"""

from __future__ import annotations

import typing as t
from bisect import bisect_left, insort

MIB = 1 << 20
SMALL = MIB
"""Requests of at most this come from the small pool."""
SMALL_SEGMENT, LARGE_SEGMENT, ROUND = 2 * MIB, 20 * MIB, 2 * MIB
MIDDLE = 10 * MIB
"""Requests below this share a large segment."""


class Block:
    __slots__ = ("after", "before", "free", "place", "pool", "size")

    def __init__(self, size: int, place: int, pool: Pool) -> None:
        self.size = size
        self.place = place
        self.pool = pool
        self.before: Block | None = None
        self.after: Block | None = None
        self.free = False


class Pool:
    def __init__(self, small: bool) -> None:
        self.small = small
        self.free: list[tuple[int, int, Block]] = []
        """By size, then place."""
        self.tail: Block | None = None
        """The last block of the segment that grows."""

    def add(self, block: Block) -> None:
        block.free = True
        insort(self.free, (block.size, block.place, block))

    def remove(self, block: Block) -> None:
        self.free.pop(bisect_left(self.free, (block.size, block.place)))

    def fitting(self, size: int) -> Block | None:
        index = bisect_left(self.free, (size,))
        return self.free.pop(index)[2] if index < len(self.free) else None


class Allocator:
    """expandable: with expandable_segments, where one segment of each pool grows, and every rest is split off."""

    def __init__(self, expandable: bool = False) -> None:
        self.expandable = expandable
        self.reserved = 0
        self.allocated = 0
        self.peak = 0
        """Of what is allocated; reserved only grows."""
        self._pools = (Pool(False), Pool(True))
        self._blocks: dict[int, Block] = {}
        self._place = 0

    def take(self, key: int, size: int) -> None:
        if not size:
            return
        pool = self._pools[size <= SMALL]
        block = pool.fitting(size) or (self._grown if self.expandable else self._segment)(size, pool)
        block.free = False
        rest = block.size - size
        if rest > SMALL or (rest and (pool.small or self.expandable)):
            other = Block(rest, block.place + size, pool)
            self._link(other, block.after)
            self._link(block, other)
            block.size = size
            pool.add(other)
        self._blocks[key] = block
        self.allocated += block.size
        if self.allocated > self.peak:
            self.peak = self.allocated

    def give(self, key: int) -> None:
        block = self._blocks.pop(key, None)
        if block is None:
            return
        self.allocated -= block.size
        pool, after, before = block.pool, block.after, block.before
        if after is not None and after.free:
            pool.remove(after)
            block.size += after.size
            self._link(block, after.after)
        if before is not None and before.free:
            pool.remove(before)
            before.size += block.size
            self._link(before, block.after)
            block = before
        pool.add(block)

    def _link(self, left: Block, right: Block | None) -> None:
        left.after = right
        if right is not None:
            right.before = left
        elif self.expandable:
            left.pool.tail = left

    def _segment(self, size: int, pool: Pool) -> Block:
        whole = SMALL_SEGMENT if pool.small else LARGE_SEGMENT if size < MIDDLE else -(-size // ROUND) * ROUND
        self.reserved += whole
        place, self._place = self._place, self._place + whole
        return Block(whole, place, pool)

    def _grown(self, size: int, pool: Pool) -> Block:
        """Pages are mapped behind the last block, which is part of it where it is free."""
        page, tail = (SMALL_SEGMENT if pool.small else LARGE_SEGMENT), pool.tail
        there = tail.size if tail is not None and tail.free else 0
        mapped = -(-(size - there) // page) * page
        self.reserved += mapped
        if tail is None:
            tail = pool.tail = Block(mapped, 0, pool)
        elif there:
            pool.remove(tail)
            tail.size += mapped
        else:
            new = Block(mapped, tail.place + tail.size, pool)
            self._link(tail, new)
            tail = pool.tail = new
        return tail

    def replay(self, events: t.Iterable[int], sizes: t.Sequence[int]) -> None:
        """A key where its storage was taken, ~key where it was given back."""
        take, give = self.take, self.give
        for event in events:
            if event >= 0:
                take(event, sizes[event])
            else:
                give(~event)
