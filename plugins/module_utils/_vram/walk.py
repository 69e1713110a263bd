# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A walk through a run: load, steps, evaluation. The peak of each moment, and what the allocator makes of it.

Layers that are the same are walked a few times only. What is live at a moment grows by the same bytes with each further
layer, be it of weights, of gradients behind or of activations before; so the peaks of all follow from two walks.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field, replace

from . import stages
from .allocator import Allocator
from .engines import Engine
from .model import FROZEN, Groups, Kind, Model, groups
from .optimizers import Optimizer, Weight
from .physics import Physics
from .shape import Shape
from .tape import FULL, Meter, Place, Storage, Tape

FEW, FEW_MIXED, FEW_APART = 4, 3, 6
"""Layers of a kind that are walked: of a mixture of experts fewer; more without expandable segments, where what is
reserved depends on what comes after what."""
ENDS = 2
"""Layers of a kind in the other walk: the first and the last, at one of which a moment has its peak."""
LENGTHS = (0.4, 0.9, 0.2, 0.7, 0.5, 0.95, 0.3, 0.8, 0.6, 0.1)
"""Parts of the whole length that are trained on first, where lengths vary."""
HANDLES = 2
"""cuBLAS has a workspace for the thread that runs forward, and one for autograd's."""


@dataclass(frozen=True)
class Job:
    """All that a walk needs to know."""

    shape: Shape
    physics: Physics
    optimizer: Optimizer
    run: stages.Run
    engine: Engine = field(default_factory=Engine)
    accumulation: int = 1
    evaluation: stages.Run | None = None
    expandable: bool = True
    """PYTORCH_CUDA_ALLOC_CONF has expandable_segments, as in runs of this collection."""
    varied: bool = False
    """Batches have many lengths, up to that of the run. Without expandable segments each new one finds blocks of the
    wrong size, and more is reserved, up to twice as much."""
    workspace: int = 0
    """Bytes of one workspace of cuBLAS."""


@dataclass
class Walk:
    """Sizes are bytes."""

    peaks: dict[Place, float] = field(default_factory=dict)
    """Summed over tensors."""
    unsplit: float = 0
    """What the allocator counts as allocated beyond the tensors, for blocks that it does not split."""
    cached: float = 0
    """What it reserves beyond the tensors."""
    resident: float = 0
    """Between steps."""
    elements: float = 0
    """Of all weights."""
    trained: float = 0
    """Elements that are trained."""
    states: float = 0
    """Of the optimizer, on this rank's GPU."""

    @property
    def peak(self) -> float:
        return max(self.peaks.values())

    @property
    def moments(self) -> dict[str, float]:
        """The peak of each, wherever in it."""
        found: dict[str, float] = {}
        for (moment, _place), size in self.peaks.items():
            found[moment] = max(size, found.get(moment, 0))
        return found


def walk(job: Job, thorough: bool = False) -> Walk:
    """thorough: every layer through the allocator; else a few of each kind."""
    whole = groups(job.shape, job.physics)
    most = FEW_MIXED if job.shape.experts else FEW if job.expandable else FEW_APART
    few = whole if thorough else [(kind, min(count, most)) for kind, count in whole]
    shown = _walk(job, few, replays=True)
    found = Walk(dict(shown.peaks), shown.unsplit, shown.cached, *_numbers(shown))
    for index, (kind, count) in enumerate(whole):
        missing, apart = count - few[index][1], few[index][1] - ENDS
        if missing:
            fewer = _walk(job, [*few[:index], (kind, ENDS), *few[index + 1 :]], replays=False)
            for place, size in fewer.peaks.items():
                found.peaks[place] += missing * (shown.peaks[place] - size) / apart
            numbers = zip(_numbers(found), _numbers(shown), _numbers(fewer), strict=True)
            found.resident, found.elements, found.trained, found.states = (
                now + missing * (more - less) / apart for now, more, less in numbers
            )
    return found


def _numbers(one: Walk) -> tuple[float, float, float, float]:
    return one.resident, one.elements, one.trained, one.states


def _walk(job: Job, shown: Groups, replays: bool) -> Walk:
    meter = Meter()
    tape = Tape(meter, job.physics.half)
    meter.moment("load")
    model = Model(tape, job.shape, job.physics, job.engine, shown)
    trained = sum(one.count for one in model.trained)
    gradients = sum(one.count * one.width for one in model.trained)
    held = [Storage(meter, job.engine.buffers(job.shape, trained, gradients, model.largest))]
    reference = None
    if job.physics.reference:
        frozen = replace(job.physics, method=FROZEN, rank=0, turned=0, trains_ends=False, trained_layers=0)
        reference = Model(
            tape, job.shape, frozen, job.engine, [(Kind(kind.dense, False), count) for kind, count in shown]
        )
    held += [Storage(meter, job.workspace) for _handle in range(HANDLES)]
    cuts = [len(meter.events)]
    if job.accumulation > 1:  # the last micro-batch finds the gradients of those before
        for one in model.trained:
            kept = one.count * one.width if one.kept is None else one.kept
            one.grad = tape.empty(kept, 1) if kept else None
    outputs = stages.micro_step(tape, model, job.run, reference)
    meter.moment("optimizer")
    cuts.append(len(meter.events))
    before = meter.live
    weights = [
        Weight(one.rows, one.columns, one.width, one is model.embedding or one is model.head) for one in model.trained
    ]
    states = _states(job, weights, meter)
    added = meter.live - before
    cuts.append(len(meter.events))
    _end_step(job, model, weights, meter)
    del outputs
    cuts.append(len(meter.events))
    meter.moment("between steps")
    resident = meter.live
    if job.evaluation is not None:
        stages.evaluation(tape, model, job.evaluation)
    meter.moment("done")
    cuts.append(len(meter.events))
    lengths = [len(meter.events)]
    peaks = dict(meter.peaks)
    for part in LENGTHS if replays and job.varied else ():
        stages.micro_step(tape, model, job.run._replace(length=max(8, round(job.run.length * part))), reference)
        _end_step(job, model, weights, meter)
        lengths.append(len(meter.events))
    late = ("load", "optimizer", "between steps", "evaluation")
    whole: dict[Place, float] = {place: size + (0 if place[0] in late else added) for place, size in peaks.items()}
    found = Walk(whole, 0, 0, resident, model.elements, trained, added)
    if replays:
        _replay(job, meter, cuts, lengths, found)
    del states, held
    return found


def _states(job: Job, weights: t.Sequence[Weight], meter: Meter) -> list[Storage]:
    """Made at the first step, one weight after the other."""
    share, engine = job.engine.share(), job.engine
    found = []
    for weight in weights:
        width = FULL if engine.half_weights else engine.trained_width or weight.width
        sizes = list(job.optimizer.states(weight._replace(width=width)))
        if engine.half_weights:  # the copy in fp32 that the optimizer works on
            sizes.append(weight.rows * weight.columns * FULL)
        found += [Storage(meter, size * share) for size in sizes if size * share]
    return found


def _end_step(job: Job, model: Model, weights: t.Sequence[Weight], meter: Meter) -> None:
    share = job.engine.share()
    together = sum(sum(job.optimizer.together(weight)) for weight in weights)
    alone = max((sum(job.optimizer.alone(weight)) for weight in weights), default=0)
    meter.scratch((together + alone) * share + job.engine.in_step(sum(one.count for one in model.trained)))
    for one in model.trained:
        one.grad = None


def _replay(job: Job, meter: Meter, cuts: t.Sequence[int], lengths: t.Sequence[int], found: Walk) -> None:
    """Two steps, after those of other lengths: states of the optimizer come to lie where the first one left room."""
    allocator = Allocator(job.expandable)
    events, sizes = meter.events, meter.sizes
    loaded, stepped, stated, ended, evaluated = cuts
    step = events[loaded:stepped] + events[stated:ended]
    others = [events[begin:end] for begin, end in zip(lengths, lengths[1:], strict=False)]
    first, *rest = [*others, step]
    for part in (events[:loaded], first, events[stepped:stated], *rest, step, events[ended:evaluated]):
        allocator.replay(part, sizes)
    found.unsplit = max(0, allocator.peak - found.peak)
    found.cached = allocator.reserved - found.peak


__all__ = ["Job", "Walk", "walk"]
