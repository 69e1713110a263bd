# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Passes without a graph that are run more than once in a step, as kto runs its reference.

Each takes and gives back the same bytes in the same order, so that a second one is copied from the first.
"""

from __future__ import annotations

import typing as t

from .tape import Meter, Place, Storage, Tape, Tensor


class Pass(t.NamedTuple):
    """Keys are counted from its first one, bytes from those that were live before it."""

    events: list[int]
    sizes: list[int]
    visited: list[tuple[Place, int]]
    left: list[tuple[int, int, int]]
    """Of each result: the key of its storage, its count and its width."""
    live: int


def again(tape: Tape, which: t.Hashable, run: t.Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """What `run` makes without a graph. which: the pass that it is; all of one name are the same."""
    meter = tape.meter
    which = (which, meter.place[0])
    if which in meter.passes:
        return _copied(meter, meter.passes[which])
    events, key, live = len(meter.events), len(meter.sizes), meter.live
    meter.moment(*meter.place)  # its peaks begin here, and end below
    meter.visited.clear()
    results: tuple[Tensor, ...] = tape.without_grad(run)
    meter.moment(*meter.place)
    made = meter.events[events:]
    if _stands_alone(made, range(key, len(meter.sizes)), results):
        meter.passes[which] = Pass(
            [event - key if event >= 0 else event + key for event in made],
            meter.sizes[key:],
            [(place, peak - live) for place, peak in meter.visited],
            [(t.cast(Storage, one.storage).key - key, one.count, one.width) for one in results],
            meter.live - live,
        )
    return results


def _stands_alone(events: t.Sequence[int], keys: range, results: t.Sequence[Tensor]) -> bool:
    """Of what it took, those keys, it leaves its results and nothing else, and it gives back nothing older."""
    given = [~event for event in events if event < 0]
    left = [t.cast(Storage, one.storage).key for one in results]
    return sorted([*given, *left]) == list(keys)


def _copied(meter: Meter, seen: Pass) -> tuple[Tensor, ...]:
    key, live = len(meter.sizes), meter.live
    meter.sizes += seen.sizes
    meter.events += [event + key if event >= 0 else event - key for event in seen.events]
    for number, (place, peak) in enumerate(seen.visited):
        if number:
            meter.moment(*place)
        meter.peak = max(meter.peak, live + peak)
    meter.live += seen.live
    return tuple(Tensor(_storage(meter, key + one), count, width) for one, count, width in seen.left)


def _storage(meter: Meter, key: int) -> Storage:
    """One whose taking is among the events already."""
    storage = Storage.__new__(Storage)
    storage.meter, storage.key, storage.size = meter, key, meter.sizes[key]
    return storage
