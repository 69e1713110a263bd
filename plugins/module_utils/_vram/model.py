# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model for causal language modelling on a tape: embedding, layers, norm, head."""

from __future__ import annotations

import typing as t

from . import kernels, ops
from .decoder import Layer, Step
from .engines import Engine
from .layers import Linear, Norm, Weights
from .physics import Physics
from .shape import Shape
from .tape import BYTE, FULL, HALF, LONG, Parameter, Storage, Tape, Tensor


class Kind(t.NamedTuple):
    """What makes layers the same."""

    dense: bool
    """A plain MLP, no mixture."""
    trained: bool
    """Its own weights are, besides adapters."""


FROZEN = "frozen"
"""The method of a model that is there to be compared with."""

Groups = t.List[t.Tuple[Kind, int]]
"""Layers in order: those that are the same, and how many."""


def groups(shape: Shape, physics: Physics) -> Groups:
    count = physics.trained_layers
    trained = [physics.method == "full" and count is None] * shape.layers
    if count is not None:
        for index in range(min(abs(count), shape.layers)):
            trained[index if count < 0 else -1 - index] = True
    dense_first = shape.experts.dense_first if shape.experts else shape.layers
    kinds = [Kind(index < dense_first, trained[index]) for index in range(shape.layers)]
    found: Groups = []
    for kind in kinds:
        if found and found[-1][0] == kind:
            found[-1] = (kind, found[-1][1] + 1)
        else:
            found.append((kind, 1))
    return found


class Model:
    """shown: the groups of layers that are walked, each perhaps with fewer than there are."""

    def __init__(self, tape: Tape, shape: Shape, physics: Physics, engine: Engine, shown: Groups) -> None:
        self.shape, self.physics, self.engine = shape, physics, engine
        self.whose = whose = "reference's " if physics.method == FROZEN else ""
        whole = physics.method == "full" and physics.trained_layers is None
        ends = Weights(tape, physics, engine, trained=whole or physics.trains_ends, adapted=False)
        parts = [(f"{whose}end", ends)]
        place = tape.meter.within
        place(f"{whose}end")
        self.embedding = ends.parameter(shape.vocab, shape.hidden)
        layers: list[tuple[str, Layer, Weights]] = []
        for number, (kind, count) in enumerate(shown):
            for index in range(count):
                where = "first" if index == 0 else "last" if index == count - 1 else "middle"
                name = f"{whose}{number} {where}"
                place(name)
                weights = Weights(tape, physics, engine, kind.trained)
                layers.append((name, Layer(weights, shape, kind.dense), weights))
                parts.append((name, weights))
        place(f"{whose}rest")
        self.norm = Norm(ends, shape.hidden, shape.norm)
        self.head = self.embedding if shape.tied else ends.parameter(shape.vocab, shape.hidden)
        self.head_bias = ends.parameter(shape.vocab) if shape.head_bias else None
        self.value = None
        if physics.stage in ("rm", "ppo") and physics.method != FROZEN:  # a value head, in fp32
            self.value = Parameter(tape, 1, shape.hidden, FULL, True)
            ends.found += [self.value, Parameter(tape, 1, 1, FULL, True)]
        for name, part in parts:
            place(f"cast {name}")
            part.cast()
        for name, part in parts:
            place(f"adapters {name}")
            part.adapt()
        self.layers = [(name, layer, bool(weights.found)) for name, layer, weights in layers]
        self.trained: list[Parameter] = [one for _name, part in parts for one in part.found]
        self.tables = [Storage(tape.meter, shape.head_dim // 2 * FULL) for _each in range(2)]
        self.gathered = ends.whole if engine.sharded_weights else 0
        self.elements = sum(part.elements for _name, part in parts)
        self.largest = max(part.whole for _name, part in parts[1:])

    def hidden(self, tape: Tape, tokens: Tensor, step: Step, states: list[Tensor] | None = None) -> Tensor:
        """The last hidden state, behind the norm. states: to be filled with those of all layers."""
        shape, physics = self.shape, self.physics
        x = embedded = ops.embedding(tape, tokens, self.embedding)
        if shape.scaled:
            x = ops.scale(tape, x)
        positions = tape.empty(step.length, LONG)
        step.cos, step.sin = (tape.empty(step.length * shape.head_dim, x.width) for _each in range(2))
        if physics.attention == "eager" or (physics.padded and physics.attention == "sdpa"):
            width = x.width if physics.attention == "eager" else HALF if physics.biased else BYTE
            step.mask = tape.empty(step.batch * step.length**2, width)
            if shape.soft_capped:  # of layers with a sliding window
                step.other_mask = tape.empty(step.batch * step.length**2, width)
        before = ""
        for name, layer, trained in self.layers:
            x = kernels.boundary(tape, x, "forward", name, before)
            if states is not None:
                states.append(x)
            if physics.checkpointing == "off" or not trained:
                x = layer(tape, x, step)
            else:
                x = kernels.checkpoint(tape, x, _bound(tape, layer, step), physics.reentrant, physics.checkpointing)
            before = name
        del positions, embedded
        x = kernels.boundary(tape, x, "loss forward", self.whose, before)
        return self.norm(tape, x)

    def logits(
        self, tape: Tape, tokens: Tensor, step: Step, states: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """And the last hidden state."""
        x = self.hidden(tape, tokens, step, states)
        logits = ops.linear(tape, x, self.head, self.head_bias)
        if self.shape.soft_capped:
            logits = ops.scale(tape, logits)
            logits = ops.activate(tape, logits)
            logits = ops.scale(tape, logits)
        return logits, x


def _bound(tape: Tape, layer: Layer, step: Step) -> t.Callable[[Tensor], Tensor]:
    return lambda x: layer(tape, x, step)


__all__ = ["Groups", "Kind", "Linear", "Model", "groups"]
