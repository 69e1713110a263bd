# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attention, and the decoder layer around it."""

from __future__ import annotations

import typing as t

from . import kernels, ops
from .engines import Engine
from .layers import Linear, Mixture, Mlp, Norm, Weights
from .physics import Physics
from .shape import Latent, Shape
from .tape import HALF, Node, Storage, Tape, Tensor


class Step:
    """What all layers of one pass share: sequences, their length, rotary tables, mask."""

    def __init__(self, batch: int, length: int) -> None:
        self.batch, self.length = batch, length
        self.tokens = batch * length
        self.cos: Tensor | None = None
        self.sin: Tensor | None = None
        self.mask: Tensor | None = None
        self.other_mask: Tensor | None = None


class Attention:
    def __init__(self, weights: Weights, shape: Shape) -> None:
        self.shape, self.physics = shape, weights.physics
        self.queries, self.keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        hidden, bias = shape.hidden, shape.qkv_bias
        self.qkv: Linear | None = None
        if shape.fused_qkv:
            self.qkv = Linear(weights, shape.fused_qkv, self.queries + 2 * self.keys, hidden, bias)
        else:
            self.k = Linear(weights, "k_proj", self.keys, hidden, bias)
        self.o = Linear(weights, shape.output_name, hidden, self.queries, shape.output_bias)
        if not shape.fused_qkv:
            self.q = Linear(weights, "q_proj", self.queries, hidden, bias)
            self.v = Linear(weights, "v_proj", self.keys, hidden, bias)
        self.q_norm = Norm(weights, shape.head_dim, shape.norm) if shape.qk_norm else None
        self.k_norm = Norm(weights, shape.head_dim, shape.norm) if shape.qk_norm else None

    def __call__(self, tape: Tape, x: Tensor, step: Step) -> Tensor:
        if self.qkv is not None:
            qkv = self.qkv(tape, x)
            q = ops.split(tape, qkv, step.tokens * self.queries)
            k, v = (ops.split(tape, qkv, step.tokens * self.keys) for _each in range(2))
            del qkv
        else:
            q = self.q(tape, x)
            q = self.q_norm(tape, q) if self.q_norm else q
            k = self.k(tape, x)
            k = self.k_norm(tape, k) if self.k_norm else k
            v = self.v(tape, x)
        if step.cos is not None and step.sin is not None and not self.physics.fused:  # Liger turns them in place
            q, k = _rotated(tape, q, k, step.cos, step.sin, self.shape.turned)
        return self.o(tape, attend(tape, self.physics, q, k, v, self.shape, self.shape.head_dim, step))


class LatentAttention:
    """DeepSeek's: queries and keys come from narrow projections, only a part of each head is turned."""

    def __init__(self, weights: Weights, shape: Shape, latent: Latent) -> None:
        self.shape, self.latent, self.physics = shape, latent, weights.physics
        heads, hidden, width = shape.heads, shape.hidden, latent.plain + latent.rotary
        self.low = Linear(weights, "q_a_proj", latent.query_rank, hidden) if latent.query_rank else None
        self.low_norm = Norm(weights, latent.query_rank) if latent.query_rank else None
        self.q = Linear(weights, "q_b_proj" if self.low else "q_proj", heads * width, latent.query_rank or hidden)
        self.kv_low = Linear(weights, "kv_a_proj_with_mqa", latent.key_rank + latent.rotary, hidden)
        self.kv_norm = Norm(weights, latent.key_rank)
        self.kv = Linear(weights, "kv_b_proj", heads * (latent.plain + latent.value), latent.key_rank)
        self.o = Linear(weights, "o_proj", hidden, heads * latent.value)

    def __call__(self, tape: Tape, x: Tensor, step: Step) -> Tensor:
        latent, heads, tokens = self.latent, self.shape.heads, step.tokens
        width = latent.plain + latent.rotary
        narrow = self.low_norm(tape, self.low(tape, x)) if self.low and self.low_norm else x
        q = self.q(tape, narrow)
        joint = self.kv_low(tape, x)
        kv = self.kv(tape, self.kv_norm(tape, ops.split(tape, joint, tokens * latent.key_rank)))
        # q and k are put together again from the part that is turned and the part that is not
        q = ops.copy(tape, q)
        k = ops.gather(tape, kv, tokens * heads * width)
        v = ops.split(tape, kv, tokens * heads * latent.value)
        wide = self.physics.attention == "fa2"  # which wants one width for all three
        if wide:
            v = ops.gather(tape, v, tokens * heads * width)
        out = attend(tape, self.physics, q, k, v, self.shape, width, step)
        return self.o(tape, ops.split(tape, out, tokens * heads * latent.value) if wide else out)


def _rotated(tape: Tape, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, part: float) -> tuple[Tensor, Tensor]:
    if part == 1:
        return ops.rotary(tape, q, cos, sin), ops.rotary(tape, k, cos, sin)
    halves = [
        (ops.split(tape, one, round(one.count * part)), ops.split(tape, one, round(one.count * (1 - part))))
        for one in (q, k)
    ]
    turned = [ops.rotary(tape, first, cos, sin) for first, _rest in halves]
    return (
        ops.join(tape, turned[0], halves[0][1]),
        ops.join(tape, turned[1], halves[1][1]),
    )


def attend(
    tape: Tape, physics: Physics, q: Tensor, k: Tensor, v: Tensor, shape: Shape, head_dim: int, step: Step
) -> Tensor:
    if physics.attention == "eager":
        return _eager(tape, q, k, v, shape, step)
    bias = None
    if step.mask is not None:  # all heads have keys and values then, and the mask becomes a bias
        if k.count < q.count:
            k, v = ops.gather(tape, k, q.count), ops.gather(tape, v, q.count)
        bias = step.mask if physics.biased else tape.empty(step.mask.count, HALF)
    return kernels.flash(tape, q, k, v, shape.heads, head_dim, (step.batch, step.length), bias)


def _eager(tape: Tape, q: Tensor, k: Tensor, v: Tensor, shape: Shape, step: Step) -> Tensor:
    """Scores as a matrix; softmax in fp32."""
    width, scores = q.width, step.tokens * shape.heads * step.length
    if k.count < q.count:
        k, v = ops.gather(tape, k, q.count), ops.gather(tape, v, q.count)
    elif step.batch > 1:  # a matrix product wants the batch and the heads side by side
        k, v = ops.copy(tape, k), ops.copy(tape, v)
    weights = ops.product(tape, ops.copy(tape, q) if step.batch > 1 else q, k, scores)
    weights = ops.scale(tape, weights)
    if shape.soft_capped:
        weights = ops.scale(tape, weights)
        weights = ops.activate(tape, weights)
        weights = ops.scale(tape, weights)
    if step.mask is not None:
        weights = ops.add(tape, weights, step.mask)
    weights = ops.cast(tape, kernels.softmax(tape, weights), width)
    return ops.copy(tape, ops.product(tape, weights, v, v.count))


class Layer:
    """Attention and MLP, each behind its norm, beside the residual stream."""

    def __init__(self, weights: Weights, shape: Shape, dense: bool) -> None:
        wide, latent = None if dense else shape.experts, shape.latent
        # in the order of their names, in which they are loaded
        self.mlp: Mixture | Mlp = Mixture(weights, shape, wide) if wide else Mlp(weights, shape, shape.intermediate)
        self.attention = LatentAttention(weights, shape, latent) if latent else Attention(weights, shape)
        self.parallel = shape.parallel
        self.norms = [Norm(weights, shape.hidden, shape.norm) for _each in range(_norms(shape))]
        self.weights = weights

    def __call__(self, tape: Tape, x: Tensor, step: Step) -> Tensor:
        if not self.weights.engine.sharded_weights:
            return self.run(tape, x, step)
        window = _Window(tape, self.weights.whole)
        return window.leave(tape, self.run(tape, window.enter(tape, x), step))

    def run(self, tape: Tape, x: Tensor, step: Step) -> Tensor:
        residual = x
        x = self.norms[0](tape, x)
        if self.parallel:
            attended = self.attention(tape, x, step)
            x = self.norms[1](tape, residual) if self.parallel == 2 else x
            return ops.add(tape, ops.add(tape, attended, self.mlp(tape, x)), residual)
        x = self.attention(tape, x, step)
        if len(self.norms) == 4:
            x = self.norms[2](tape, x)
        x = ops.add(tape, residual, x)
        residual = x
        x = self.norms[1](tape, x)
        x = self.mlp(tape, x)
        if len(self.norms) == 4:
            x = self.norms[3](tape, x)
        return ops.add(tape, residual, x)


def _norms(shape: Shape) -> int:
    return shape.parallel or (4 if shape.post_norms else 2)


class _Window:
    """A layer's weights, gathered from all ranks while it runs, and again for its backward."""

    def __init__(self, tape: Tape, size: float) -> None:
        self.size = size
        self.held: Storage | None = Storage(tape.meter, size)

    def enter(self, tape: Tape, x: Tensor) -> Tensor:
        return tape.record(ops.view(x), self._drop, (x,), ()) if x.needs else x

    def leave(self, tape: Tape, x: Tensor) -> Tensor:
        self.held = None
        return tape.record(ops.view(x), self._fetch, (x,), ())

    def _fetch(self, tape: Tape, node: Node, grad: Tensor) -> t.Sequence[Tensor]:
        self.held = Storage(tape.meter, self.size)
        return (grad,)

    def _drop(self, tape: Tape, node: Node, grad: Tensor) -> t.Sequence[Tensor]:
        self.held = None
        return (grad,)


__all__ = ["Attention", "Engine", "Layer", "Step", "attend"]
