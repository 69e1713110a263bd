# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tower of a model that sees, beside the walk of its text: sizes by a formula that nobody measured."""

from __future__ import annotations

import typing as t

from .optimizers import Weight
from .tape import HALF
from .walk import Job

RUNS = ("forward", "evaluation")
LEARNS = (*RUNS, "loss, forward", "loss, backward", "backward of the layers", "end of backward")


class Tower(t.NamedTuple):
    """Bytes of a rank, but elements."""

    elements: int = 0
    trained: int = 0
    """Elements."""
    weights: float = 0
    states: float = 0
    """Of the optimizer."""
    gradients: float = 0
    working: float = 0
    """While it runs; where it learns, until its backward is over."""

    @property
    def resident(self) -> float:
        return self.weights + self.states

    def at(self, moment: str) -> float:
        size = self.resident + (self.working if moment in (LEARNS if self.trained else RUNS) else 0)
        return size + (self.gradients if moment in (*LEARNS, "optimizer step") else 0)


def of(job: Job, patches: int) -> Tower:
    """patches: of the images of one record; those of all records of a micro-batch go through it at once."""
    tower = job.shape.vision
    if tower is None:
        return Tower()
    hidden, inner, engine, physics = tower.hidden, tower.intermediate, job.engine, job.physics
    elements = tower.parameters(job.shape.hidden)
    seen = patches * job.run.sequences(physics.stage)
    widest = (8 * hidden + 3 * inner) * HALF * seen
    if not physics.sees:
        return Tower(elements, weights=engine.stored(elements, HALF, False), working=widest)
    each = (34 * hidden + 8 * inner) * seen  # what a layer keeps of its patches, as of tokens with autocast
    kept = tower.layers * (each if physics.checkpointing == "off" else hidden * HALF * seen)
    if physics.method == "full":
        learned, base = Weight(elements // hidden, hidden, physics.trained_width), 0.0
    else:
        rank = physics.rank or physics.turned
        size = tower.layers * rank * (8 * hidden + (2 + tower.gated) * (hidden + inner))
        learned, base = Weight(size, 1, physics.adapter_width), engine.stored(elements, HALF, False)
        elements += size
    trained = learned.rows * learned.columns
    gradients = engine.kept(trained, learned.width)
    return Tower(
        elements,
        trained,
        base + engine.stored(trained, learned.width, True),
        sum(job.optimizer.states(learned)) * engine.share(),
        trained * learned.width if gradients is None else gradients,
        kept + max(widest, each),
    )
