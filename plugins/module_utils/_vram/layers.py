# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Layers as the classes of transformers and PEFT run them, line by line, on tensors without content."""

from __future__ import annotations

import typing as t

from . import kernels, ops, packed
from .engines import Engine
from .packed import AWQ, BLOCK, BNB, GPTQ, UNPACKING
from .physics import Physics
from .shape import Experts, Shape
from .tape import FULL, HALF, Node, Parameter, Storage, Tape, Tensor


class Weights:
    """Makes the weights of one part of the model, and counts them."""

    def __init__(self, tape: Tape, physics: Physics, engine: Engine, trained: bool, adapted: bool = True) -> None:
        self.tape = tape
        self.physics = physics
        self.engine = engine
        self.trained = trained
        """Its own weights are, besides adapters."""
        self.adapted = adapted
        """Its linear modules get adapters, where physics has a rank."""
        self.found: list[Parameter] = []
        """All that are trained."""
        self.frozen: list[Parameter] = []
        self.stored: list[Storage] = []
        """Quantized weights and their scales."""
        self.quantized_count = 0
        self._casts: list[tuple[Parameter, float]] = []
        self._linears: list[Linear] = []

    def parameter(self, rows: int, columns: int = 1, *, adapter: bool = False) -> Parameter:
        trained, physics, engine = adapter or self.trained, self.physics, self.engine
        width = physics.adapter_width if adapter else physics.trained_width if trained else physics.frozen_width
        count = rows * columns
        kept = engine.kept(count, width) if trained else None
        if physics.layerwise and trained:
            kept = 0  # the optimizer takes each gradient as it comes
        stored = engine.stored(count, width, trained)
        later = width == FULL and not adapter and not engine.sharded_weights
        made = Parameter(self.tape, rows, columns, width, trained, count * HALF if later else stored, kept)
        if later:
            self._casts.append((made, stored))
        (self.found if trained else self.frozen).append(made)
        return made

    def quantized(self, rows: int, columns: int) -> None:
        physics, own = self.physics, self.physics.packed
        loaded = None if own else Storage(self.tape.meter, rows * columns * HALF)
        if own and own.method != BNB:
            sizes = own.sizes(rows, columns)
        else:
            share = 0 if self.engine.weights_on_host else self.engine.part
            sizes = packed.bitsandbytes(rows * columns, physics.quantization, physics.double_quantization, share)
        self.stored += [Storage(self.tape.meter, size) for size in sizes]
        self.quantized_count += rows * columns
        del loaded

    def linear(self, one: Linear) -> None:
        if self.adapted:
            self._linears.append(one)

    def cast(self) -> None:
        """To fp32, one weight after the other, once all are loaded."""
        for one, size in self._casts:
            one.storage = Storage(self.tape.meter, size)

    def adapt(self) -> None:
        """Adapters come last."""
        for one in self._linears:
            one.adapt(self)

    @property
    def elements(self) -> int:
        return self.plain + self.quantized_count

    @property
    def plain(self) -> int:
        return sum(one.count for one in (*self.found, *self.frozen))

    @property
    def whole(self) -> float:
        """Bytes of it when all ranks' parts are gathered: in half, or as it is quantized."""
        return self.plain * HALF + self.quantized_count * self.physics.quantization / 8


class Linear:
    """A linear module: trained, frozen, or quantized, with or without an adapter."""

    def __init__(self, weights: Weights, name: str, rows: int, columns: int, bias: bool = False) -> None:
        physics = weights.physics
        self.physics, self.name, self.rows, self.columns = physics, name, rows, columns
        self.method = physics.packed.method if physics.packed else BNB
        self.weight: Parameter | None = None
        if physics.quantizes(name):
            weights.quantized(rows, columns)
        else:
            self.weight = weights.parameter(rows, columns)
        self.bias = weights.parameter(rows) if bias else None
        self.low: Parameter | None = None
        self.high: Parameter | None = None
        self.magnitude: Parameter | None = None
        self.turn: Parameter | None = None
        weights.linear(self)

    def adapt(self, weights: Weights) -> None:
        physics = self.physics
        if not physics.targets_module(self.name):
            return
        if physics.turned:
            self.turn = weights.parameter(self.columns * (physics.turned - 1) // 2, adapter=True)
        if physics.rank:
            self.low = weights.parameter(physics.rank, self.columns, adapter=True)
            self.high = weights.parameter(self.rows, physics.rank, adapter=True)
            if physics.dora:
                self.magnitude = weights.parameter(self.rows, adapter=True)

    def __call__(self, tape: Tape, x: Tensor) -> Tensor:
        if self.turn is not None:
            turned = kernels.turn(tape, ops.cast(tape, x, self.turn.width), self.turn, self.columns)
            x = ops.cast(tape, turned, x.width)
            del turned
        result = self.base(tape, x)
        if self.low is None or self.high is None:
            return result
        physics, width = self.physics, result.width
        if not (physics.quantization and tape.autocast):  # PEFT's quantized layers leave the cast to autocast
            x = ops.cast(tape, x, self.low.width)
        if self.magnitude is not None:
            update = self._weighed(tape, x, result, self.low, self.high, self.magnitude)
        else:
            dropped = ops.dropout(tape, x, physics.dropout)
            update = ops.scale(tape, ops.linear(tape, ops.linear(tape, dropped, self.low), self.high))
            del dropped
            if physics.quantization:
                update = ops.cast(tape, update, width)
        result = ops.add(tape, result, update)
        del update
        return ops.cast(tape, result, width)

    def _weighed(
        self, tape: Tape, x: Tensor, result: Tensor, low: Parameter, high: Parameter, magnitude: Parameter
    ) -> Tensor:
        """DoRA: the adapter as a whole matrix, by way of a unit matrix, and the sum of it and the weight for its norms;
        both outputs times a number for each row (PEFT, tuners/lora/dora.py)."""
        unit = tape.empty(self.columns**2, x.width)
        matrix = ops.linear(tape, ops.linear(tape, unit, low), high)
        weight = tape.empty(self.rows * self.columns, x.width)
        scaled = ops.like(tape, matrix)
        both = ops.like(tape, weight)
        del both, scaled
        share = ops.multiply(tape, magnitude, tape.empty(self.rows, magnitude.width))
        update = ops.linear(tape, ops.linear(tape, x, low), high)
        rest = ops.multiply(tape, ops.copy(tape, share), result)
        update = ops.scale(tape, ops.multiply(tape, share, update))
        found = ops.add(tape, rest, update)
        del unit, matrix, weight
        return found

    def base(self, tape: Tape, x: Tensor) -> Tensor:
        if self.weight is not None:
            return ops.linear(tape, x, self.weight, self.bias)
        half = ops.cast(tape, x, HALF)
        out = tape.empty(x.count // self.columns * self.rows, HALF)
        kept = self._dequantize(tape, half)
        return ops.cast(tape, tape.record(out, self._back, (half,), kept), x.width)

    def _back(self, tape: Tape, node: Node, grad: Tensor) -> t.Sequence[Tensor]:
        found = tape.empty(grad.count // self.rows * self.columns, grad.width)
        if self.method != GPTQ:  # whose matrix is there still
            self._dequantize(tape)
        return (found,)

    def _dequantize(self, tape: Tape, x: Tensor | None = None) -> t.Sequence[Tensor]:
        """The whole matrix in half precision, and its scales in fp32 where they are quantized themselves. Returns what
        autograd keeps of a product with x: GPTQ's is one of plain tensors, AWQ's keeps its input in fp16."""
        count = self.rows * self.columns
        if self.method == GPTQ:
            tape.meter.scratch(count * UNPACKING)
            return (tape.empty(count, HALF),)
        if self.method == AWQ or self.physics.quantization == 4:
            scales = count / BLOCK * FULL if self.physics.double_quantization else 0
            tape.meter.scratch(count * HALF + scales)
        if self.method == AWQ and x is not None:
            return (ops.view(x) if self.physics.half == "fp16" else ops.like(tape, x),)
        return ()


class Norm:
    """RMSNorm, Gemma's form of it, and LayerNorm."""

    def __init__(self, weights: Weights, size: int, kind: str = "rms") -> None:
        self.kind, self.size = kind, size
        self.fused = weights.physics.fused
        self.weight = weights.parameter(size)
        self.bias = weights.parameter(size) if kind == "layer" else None

    def __call__(self, tape: Tape, x: Tensor) -> Tensor:
        rows = x.count // self.size
        if self.kind == "layer" or self.fused:
            if tape.autocast and not self.fused:
                x = ops.cast(tape, x, FULL)
            return kernels.norm(tape, x, self.weight, self.bias, rows)
        full = ops.cast(tape, x, FULL)
        variance = ops.mean(tape, ops.square(tape, full), rows)
        full = ops.multiply(tape, full, ops.inverse_root(tape, variance))
        if self.kind == "gemma":  # (1 + weight) in fp32, then back
            return ops.cast(tape, ops.multiply(tape, full, ops.cast(tape, self.weight, FULL)), x.width)
        return ops.multiply(tape, self.weight, ops.cast(tape, full, x.width))


_FROM_PARTS = ("gelu_new", "gelu_fast")
"""Activations that are no one kernel."""


class Mlp:
    def __init__(self, weights: Weights, shape: Shape, size: int) -> None:
        self.size, self.fused = size, weights.physics.fused
        self.activate = ops.new_gelu if shape.activation in _FROM_PARTS else ops.activate
        hidden, bias, names = shape.hidden, shape.mlp_bias, shape.mlp_names
        self.down = Linear(weights, names[-1], hidden, size, bias)
        self.both = self.gate = None
        if shape.gated and shape.fused_gate:
            self.both = Linear(weights, names[0], 2 * size, hidden, bias)
        else:
            self.gate = Linear(weights, names[0], size, hidden, bias) if shape.gated else None
            self.up = Linear(weights, names[-2], size, hidden, bias)

    def __call__(self, tape: Tape, x: Tensor) -> Tensor:
        if self.both is not None:
            both = self.both(tape, x)
            gate, up = ops.split(tape, both, both.count // 2), ops.split(tape, both, both.count // 2)
            del both
            return self.down(tape, self._gated(tape, gate, up))
        if self.gate is None:
            return self.down(tape, self.activate(tape, self.up(tape, x)))
        if self.fused:
            return self.down(tape, kernels.swiglu(tape, self.gate(tape, x), self.up(tape, x)))
        return self.down(tape, ops.multiply(tape, self.activate(tape, self.gate(tape, x)), self.up(tape, x)))

    def _gated(self, tape: Tape, gate: Tensor, up: Tensor) -> Tensor:
        return kernels.swiglu(tape, gate, up) if self.fused else ops.multiply(tape, up, self.activate(tape, gate))


CHUNKS = 4
"""In how many turns the experts of a layer are walked. Each has its own in transformers 4: what is live for one expert
alone is overrated, what is kept for backward is not."""


_GATED = ("gate_proj", "up_proj", "down_proj")


class Mixture:
    """Experts behind a router: all have weights, a token goes through some of them."""

    def __init__(self, weights: Weights, shape: Shape, wide: Experts) -> None:
        self.shape, self.wide = shape, wide
        self.router = weights.parameter(self.wide.count, shape.hidden)
        per = self.wide.count / CHUNKS
        names = shape.mlp_names if len(shape.mlp_names) == len(_GATED) else _GATED
        # Weights of all experts of a turn together; an adapter of each is as many times as large.
        self.turns = [
            [_Stack(weights, per, self.wide.intermediate, shape.hidden, name) for name in names]
            for _turn in range(CHUNKS)
        ]
        self.shared = Mlp(weights, shape, self.wide.shared) if self.wide.shared else None

    def __call__(self, tape: Tape, x: Tensor) -> Tensor:
        hidden, wide = self.shape.hidden, self.wide
        tokens = x.count // hidden
        scores = ops.linear(tape, x, self.router)
        weights = kernels.softmax(tape, scores)
        out = tape.empty(x.count, x.width)
        for gate, up, down in self.turns:
            rows = int(tokens * wide.chosen / CHUNKS)
            part = ops.gather(tape, x, rows * hidden)
            inner = ops.multiply(tape, ops.activate(tape, gate(tape, part)), up(tape, part))
            part = ops.multiply(tape, down(tape, inner), ops.gather(tape, weights, rows))
            out = kernels.index_add(tape, out, ops.cast(tape, part, x.width))
            del part, inner
        return ops.add(tape, out, self.shared(tape, x)) if self.shared else out


class _Stack(Linear):
    """One matrix of some experts, each of which sees its own tokens."""

    def __init__(self, weights: Weights, experts: float, inner: int, hidden: int, name: str) -> None:
        rows, columns = (hidden, inner) if name in ("down_proj", "w2") else (inner, hidden)
        self.experts = max(1, int(experts))
        super().__init__(weights, name, rows, columns)
        others = self.experts - 1
        if self.weight is not None:
            weights.parameter(rows * others, columns)
        else:
            weights.quantized(rows * others, columns)

    def adapt(self, weights: Weights) -> None:
        super().adapt(weights)
        others, rank = self.experts - 1, self.physics.rank
        if self.low is not None:
            weights.parameter(rank * others, self.columns, adapter=True)
            weights.parameter(self.rows * others, rank, adapter=True)
