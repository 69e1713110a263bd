# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernels of attention and loss, and checkpoints: what they keep, and what they take while they run."""

from __future__ import annotations

import typing as t

from . import ops
from .ops import Grads
from .tape import FULL, HALF, LONG, Node, Parameter, Storage, Tape, Tensor

# Attention


def softmax(tape: Tape, x: Tensor) -> Tensor:
    """In fp32. CUDA reads fp16 as it is, of bf16 it makes an fp32 copy first (ATen, native/SoftMax.cpp)."""
    copied = tape.empty(x.count, FULL) if x.width == HALF and tape.half == "bf16" else None
    out = tape.empty(x.count, FULL)
    del copied
    return tape.record(out, _unsoftmax, (x,), (ops.result(out), x.width))


def _unsoftmax(tape: Tape, node: Node, grad: Tensor) -> Grads:
    """The kernel writes grad × output out first (ATen, native/cuda/SoftMax.cu; seen to the MiB on a T4)."""
    width = (node.saved or ())[1]
    fused = width == FULL or tape.half == "fp16"
    scratch = Storage(tape.meter, grad.count * grad.width)
    found = tape.empty(grad.count, width if fused else FULL)
    del scratch
    return (found if fused else ops.cast(tape, found, width),)


def flash(
    tape: Tape,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    head_dim: int,
    shape: t.Tuple[int, int],
    bias: Tensor | None = None,
) -> Tensor:
    """Flash attention of q over k and v: keeps all three, the result and the logarithm of each row's sum.

    shape: sequences and their length. As FlashAttention 2 in PyTorch and in its own package.
    """
    q, k, v = ops.autocast(tape, q), ops.autocast(tape, k), ops.autocast(tape, v)
    out = tape.empty(q.count // head_dim * (v.count * head_dim // k.count), HALF)
    sums, seed = tape.empty(shape[0] * heads * shape[1], FULL), tape.empty(4, LONG)
    kept = (q, k, v, ops.result(out), sums, (seed, bias), heads, head_dim, shape)
    return tape.record(out, _unflash, (q, k, v), kept)


def _unflash(tape: Tape, node: Node, grad: Tensor) -> Grads:
    """Scratch: dq in fp32 of rounded lengths, a sum for each row, and dk and dv of all heads where they are fewer
    (csrc/flash_attn/flash_api.cpp)."""
    q, k, v, _out, _sums, _others, heads, head_dim, (batch, length) = node.saved or ()
    found = [ops.like(tape, one) if node.wants(index) else None for index, one in enumerate((q, k, v))]
    rows = batch * heads * (-(-length // 128) * 128)
    spread = 2 * q.count * q.width if k.count < q.count else 0
    tape.meter.scratch(rows * (-(-head_dim // 32) * 32) * FULL + rows * FULL + spread)
    return found


def turn(tape: Tape, x: Tensor, weight: Parameter, columns: int) -> Tensor:
    """OFT: the input times an orthogonal block for each few of its columns (PEFT, tuners/oft/layer.py).

    Cayley's transform makes the blocks of the weight, with some matrices of their size on the way.
    """
    block = 2 * weight.count // columns + 1
    half = ops.autocast(tape, x)
    kept = (half, tape.empty(_CAYLEY * columns * block, FULL), weight.count)
    return tape.record(ops.like(tape, half), _unturn, (half, weight), kept)


_CAYLEY = 4


def _unturn(tape: Tape, node: Node, grad: Tensor) -> Grads:
    return (
        ops.like(tape, grad) if node.wants(0) else None,
        tape.empty((node.saved or ())[-1], FULL) if node.wants(1) else None,
    )


# Loss


def cross_entropy(tape: Tape, logits: Tensor, labels: Tensor) -> Tensor:
    """log_softmax, whose result is kept, and nll_loss."""
    logs = ops.like(tape, logits)
    tape.record(logs, _unlog_softmax, (logits,), (ops.result(logs),))
    return tape.record(tape.empty(1, logits.width), _unnll, (logs,), (logs, tape.empty(1, logits.width), labels))


def _unlog_softmax(tape: Tape, node: Node, grad: Tensor) -> Grads:
    return (ops.like(tape, grad),)


def _unnll(tape: Tape, node: Node, grad: Tensor) -> Grads:
    return (ops.like(tape, (node.saved or ())[0]),)


def kept_cross_entropy(tape: Tape, logits: Tensor, labels: Tensor) -> Tensor:
    """One kernel, which has no copy in fp32, and writes gradients over the logits: unsloth's, or a compiled one."""
    return tape.record(tape.empty(1, FULL), _unkept, (logits,), (logits, labels))


def _unkept(tape: Tape, node: Node, grad: Tensor) -> Grads:
    return (ops.view((node.saved or ())[0]),)


def fused_cross_entropy(tape: Tape, x: Tensor, weight: Parameter, labels: Tensor) -> Tensor:
    """Liger's head and loss in one: gradients are made in forward, for some tokens at a time.

    A chunk has about as many logits as x has elements; each is there in half, in fp32, and as gradient.
    """
    tokens, hidden, vocab = x.count // weight.columns, weight.columns, weight.rows
    x, w = ops.autocast(tape, x), ops.autocast(tape, weight)
    chunk = 1 << max(0, (-(-tokens // -(-vocab // hidden)) - 1).bit_length())
    grads = (ops.like(tape, x), tape.empty(w.count, w.width) if weight.needs else None)
    tape.meter.scratch(10 * min(chunk, tokens) * vocab)
    return tape.record(tape.empty(1, FULL), _unfused, (x, w), (*grads, labels))


def _unfused(tape: Tape, node: Node, grad: Tensor) -> Grads:
    saved = node.saved or ()
    return saved[0], saved[1]


# What Liger has kernels for, and PyTorch for LayerNorm


def norm(tape: Tape, x: Tensor, weight: Parameter, bias: Parameter | None, rows: int) -> Tensor:
    """Keeps its input and a number or two of each row."""
    inputs = [x, weight] + ([bias] if bias is not None else [])
    kept = (x, tape.empty(rows, FULL), tape.empty(rows, FULL), weight.count)
    return tape.record(ops.like(tape, x), _unnorm, inputs, kept)


def _unnorm(tape: Tape, node: Node, grad: Tensor) -> Grads:
    size = (node.saved or ())[-1]
    found: list[Tensor | None] = [ops.like(tape, grad) if node.wants(0) else None]
    return found + [tape.empty(size, grad.width) if node.wants(index) else None for index in range(1, len(node.inputs))]


def swiglu(tape: Tape, gate: Tensor, up: Tensor) -> Tensor:
    """Keeps the two alone; their gradients are written over them."""
    return tape.record(ops.like(tape, gate), _unswiglu, (gate, up), (gate, up))


def _unswiglu(tape: Tape, node: Node, grad: Tensor) -> Grads:
    gate, up = node.saved or ()
    return ops.view(gate), ops.view(up)


def index_add(tape: Tape, into: Tensor, rows: Tensor) -> Tensor:
    """Adds rows in place; backward picks them out again."""
    return tape.record(ops.view(into), _unindex_add, (into, rows), (rows.count,))


def _unindex_add(tape: Tape, node: Node, grad: Tensor) -> Grads:
    return (grad if node.wants(0) else None, tape.empty((node.saved or ())[0], grad.width) if node.wants(1) else None)


# Checkpoints


def checkpoint(
    tape: Tape, x: Tensor, run: t.Callable[[Tensor], Tensor], reentrant: bool = True, place: str = "on"
) -> Tensor:
    """Runs without a graph and keeps the input; backward runs again, with one (torch.utils.checkpoint).

    place: `host`, where the input lies in the memory of the host meanwhile (unsloth).
    """
    out: Tensor = tape.without_grad(lambda: run(x))
    if tape.grad:
        x.needs = True  # set by the wrapper; where nothing before is trained, the input is a leaf with a gradient
        kept = (x.count, x.width) if place == "host" else x
        tape.attach(out, _again if reentrant else _resume, (x,), (kept, run, tape.autocast))
    return out


def _again(tape: Tape, node: Node, grad: Tensor) -> Grads:
    """A backward of its own inside the other: the result, and the gradient it came with, live as long as that."""
    kept, run, autocast_was_on = node.saved or ()
    start = tape.empty(*kept) if isinstance(kept, tuple) else ops.view(kept)
    start.needs = True
    tape.grad = True
    out = tape.under_autocast(lambda: run(start), autocast_was_on)
    tape.backward(out, grad)
    tape.grad = False
    return (start.grad,)


def _resume(tape: Tape, node: Node, grad: Tensor) -> Grads:
    """Not reentrant: what was made again becomes part of the graph that is being gone through."""
    kept, run, autocast_was_on = node.saved or ()
    tape.grad = True
    out = tape.under_autocast(lambda: run(kept), autocast_was_on)
    tape.grad = False
    node.lead_to(out)
    return (grad,)


def boundary(tape: Tape, x: Tensor, moment: str, place: str, before: str) -> Tensor:
    """Where a moment begins at a place on the way there; and on the way back, the backward of the place before, or its
    end where there is none."""
    if not tape.grad:  # a pass beside that of the step, in whose moment it is
        tape.meter.within(f"aside {place}")
        return x
    tape.meter.moment(moment, place)
    if x.needs:
        out = ops.view(x)
        return tape.record(out, lambda tape, _node, grad: _mark(tape, before, grad), (x,), ())
    return x


def _mark(tape: Tape, place: str, grad: Tensor) -> Grads:
    tape.meter.moment("backward" if place else "backward end", place)
    return (grad,)
