# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Operations: what each makes, what autograd keeps of it, and what its backward takes.

As PyTorch's derivatives.yaml and the CUDA kernels have it. Where a kernel takes memory that no tensor shows, it is a
scratch, with its source.
"""

from __future__ import annotations

import typing as t

from .tape import FULL, HALF, Node, Parameter, Tape, Tensor

Grads = t.Sequence[t.Optional[Tensor]]


def like(tape: Tape, tensor: Tensor) -> Tensor:
    return tape.empty(tensor.count, tensor.width)


def view(tensor: Tensor) -> Tensor:
    """Another tensor over the same storage, outside the graph."""
    return Tensor(tensor.storage, tensor.count, tensor.width)


def result(out: Tensor) -> Tensor:
    """What a node keeps of its own result: without the node, else they would hold each other."""
    return view(out)


# Casts


def cast(tape: Tape, x: Tensor, width: int) -> Tensor:
    if x.width == width:
        return x
    return tape.record(tape.empty(x.count, width), _uncast, (x,), (x.width,))


def _uncast(tape: Tape, node: Node, grad: Tensor) -> Grads:
    return (tape.empty(grad.count, node.saved[0]),) if node.saved else ()


def autocast(tape: Tape, x: Tensor) -> Tensor:
    """The input of a matrix product under autocast; copies of trained fp32 weights are kept."""
    if not tape.autocast or x.width != FULL:
        return x
    if not isinstance(x, Parameter) or not x.needs:
        return cast(tape, x, HALF)
    kept = tape.casts.get(id(x))
    if kept is None:
        kept = tape.casts[id(x)] = cast(tape, x, HALF)
    return kept


# Element by element


def add(tape: Tape, a: Tensor, b: Tensor) -> Tensor:
    out = tape.empty(max(a.count, b.count), max(a.width, b.width))
    return tape.record(out, _unadd, (a, b), ((a.count, a.width), (b.count, b.width)))


def _unadd(tape: Tape, node: Node, grad: Tensor) -> Grads:
    saved = node.saved or ()
    found: list[Tensor | None] = []
    for index, (count, width) in enumerate(saved):
        if not node.wants(index):
            found.append(None)
        elif (count, width) == (grad.count, grad.width):
            found.append(grad)
        else:  # summed to the shape, or cast back to the type, of the input
            found.append(tape.empty(count, width))
    return found


def multiply(tape: Tape, a: Tensor, b: Tensor) -> Tensor:
    out = tape.empty(max(a.count, b.count), max(a.width, b.width))
    keep = (a if b.needs else None, b if a.needs else None, (a.count, a.width), (b.count, b.width))
    return tape.record(out, _unmultiply, (a, b), keep)


def _unmultiply(tape: Tape, node: Node, grad: Tensor) -> Grads:
    saved = node.saved or ()
    found: list[Tensor | None] = []
    for index in (0, 1):
        if not node.wants(index):
            found.append(None)
            continue
        count, width = saved[2 + index]
        product = tape.empty(grad.count, max(grad.width, width))
        found.append(product if (count, width) == (product.count, product.width) else tape.empty(count, width))
        del product
    return found


def scale(tape: Tape, x: Tensor) -> Tensor:
    """By a number: nothing is kept."""
    return tape.record(like(tape, x), _unscale, (x,), ())


def _unscale(tape: Tape, node: Node, grad: Tensor) -> Grads:
    return (like(tape, grad),)


def square(tape: Tape, x: Tensor) -> Tensor:
    return tape.record(like(tape, x), _unsquare, (x,), (x,))


def _unsquare(tape: Tape, node: Node, grad: Tensor) -> Grads:
    """grad × (2 × x¹): both factors on the way live as long as the expression."""
    power, twice = like(tape, grad), like(tape, grad)
    found = like(tape, grad)
    del power, twice
    return (found,)


def mean(tape: Tape, x: Tensor, rows: int) -> Tensor:
    return tape.record(tape.empty(rows, x.width), _unmean, (x,), (x.count,))


def _unmean(tape: Tape, node: Node, grad: Tensor) -> Grads:
    return (tape.empty((node.saved or ())[0], grad.width),)


def inverse_root(tape: Tape, x: Tensor) -> Tensor:
    shifted = like(tape, x)
    out = like(tape, shifted)
    return tape.record(out, _unscale, (x,), (result(out),))


def copy(tape: Tape, x: Tensor) -> Tensor:
    """In another order of its elements."""
    return tape.record(like(tape, x), _uncopy, (x,), ())


def _uncopy(tape: Tape, node: Node, grad: Tensor) -> Grads:
    return (grad,)


def activate(tape: Tape, x: Tensor) -> Tensor:
    """SiLU, GELU: keeps its input."""
    return tape.record(like(tape, x), _unscale, (x,), (x,))


def tanh(tape: Tape, x: Tensor) -> Tensor:
    """Keeps its result."""
    out = like(tape, x)
    return tape.record(out, _unscale, (x,), (result(out),))


def new_gelu(tape: Tape, x: Tensor) -> Tensor:
    """GELU from its parts, as transformers' gelu_new has it; autocast has powers in fp32."""
    half = scale(tape, x)
    cube = square(tape, cast(tape, x, FULL) if tape.autocast else x)
    inner = tanh(tape, scale(tape, add(tape, x, scale(tape, cube))))
    del cube
    return multiply(tape, half, copy(tape, inner))


def dropout(tape: Tape, x: Tensor, chance: float) -> Tensor:
    """Keeps a mask of a byte per element."""
    if not chance:
        return x
    out, mask = like(tape, x), tape.empty(x.count, 1)
    return tape.record(out, _unscale, (x,), (mask,))


# Matrices


def linear(tape: Tape, x: Tensor, weight: Parameter, bias: Parameter | None = None) -> Tensor:
    """x times the transposed weight. An input is kept where the weight is trained, the weight where x has gradients."""
    x, w = autocast(tape, x), autocast(tape, weight)
    inputs = [x, w] + ([autocast(tape, bias)] if bias else [])
    out = tape.empty(x.count // weight.columns * weight.rows, w.width)
    kept = (x if w.needs else None, w if x.needs else None, x.count, w.count, weight.rows)
    return tape.record(out, _unlinear, inputs, kept)


def _unlinear(tape: Tape, node: Node, grad: Tensor) -> Grads:
    _x, _w, inputs, weights, rows = node.saved or ()
    bias = (
        [tape.empty(rows, grad.width)] if len(node.inputs) == 3 and node.wants(2) else [None] * (len(node.inputs) - 2)
    )
    found = [
        tape.empty(inputs, grad.width) if node.wants(0) else None,
        tape.empty(weights, grad.width) if node.wants(1) else None,
    ]
    return [*found, *bias]


def product(tape: Tape, a: Tensor, b: Tensor, count: int) -> Tensor:
    """Of two activations, as in attention: each is kept for the other."""
    a, b = autocast(tape, a), autocast(tape, b)
    kept = (a if b.needs else None, b if a.needs else None, a.count, b.count)
    return tape.record(tape.empty(count, max(a.width, b.width)), _unproduct, (a, b), kept)


def _unproduct(tape: Tape, node: Node, grad: Tensor) -> Grads:
    saved = node.saved or ()
    return [tape.empty(saved[2 + index], grad.width) if node.wants(index) else None for index in (0, 1)]


def embedding(tape: Tape, tokens: Tensor, weight: Parameter) -> Tensor:
    out = tape.empty(tokens.count * weight.columns, weight.width)
    return tape.record(out, _unembedding, (weight,), (tokens, weight.count))


def _unembedding(tape: Tape, node: Node, grad: Tensor) -> Grads:
    return (tape.empty((node.saved or ())[1], grad.width),)


def gather(tape: Tape, x: Tensor, count: int) -> Tensor:
    """Some of its rows, or some rows more than once; backward adds into zeros of the size that it had."""
    return tape.record(tape.empty(count, x.width), _ungather, (x,), (x.count,))


def _ungather(tape: Tape, node: Node, grad: Tensor) -> Grads:
    return (tape.empty((node.saved or ())[0], grad.width),)


def split(tape: Tape, x: Tensor, count: int) -> Tensor:
    """A part of its columns: a view; backward puts it into zeros of the size that it had."""
    return tape.record(Tensor(x.storage, count, x.width), _ungather, (x,), (x.count,))


def join(tape: Tape, a: Tensor, b: Tensor) -> Tensor:
    """Columns side by side again; backward looks at each part."""
    return tape.record(tape.empty(a.count + b.count, a.width), _unjoin, (a, b), (a.count, b.count))


def _unjoin(tape: Tape, node: Node, grad: Tensor) -> Grads:
    saved = node.saved or ()
    return [Tensor(grad.storage, saved[index], grad.width) if node.wants(index) else None for index in (0, 1)]


# Rotary embeddings


def rotate_half(tape: Tape, x: Tensor) -> Tensor:
    """(x1, x2) to (-x2, x1)."""
    negative = tape.empty(x.count // 2, x.width)
    out = like(tape, x)
    del negative
    return tape.record(out, _unrotate_half, (x,), ())


def _unrotate_half(tape: Tape, node: Node, grad: Tensor) -> Grads:
    """Each half is put into zeros of the whole."""
    found = like(tape, grad)
    tape.meter.scratch(grad.count * grad.width)
    return (found,)


def rotary(tape: Tape, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return add(tape, multiply(tape, x, cos), multiply(tape, rotate_half(tape, x), sin))
