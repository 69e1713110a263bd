# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A tape of what PyTorch would hold in memory: tensors without content, and autograd over them.

A Storage lives for as long as somebody refers to it, as in PyTorch: CPython counts references, and so do we. So the
code that describes a model keeps tensors alive exactly where the model's own code does, and nothing is booked by hand.
All sizes are bytes, rounded up to the 512 of PyTorch's allocator.
"""

from __future__ import annotations

import heapq
import sys
import typing as t

BLOCK = 512
HALF, FULL, LONG, BYTE = 2, 4, 8, 1
"""Bytes of an element: bf16 or fp16, fp32, int64, uint8."""


Place = t.Tuple[str, str]
"""A moment of a run, and where in it: with each further layer, a place grows by the same bytes."""


class Meter:
    """Counts live bytes: the peak of each place, and what was taken and given back, in order."""

    def __init__(self) -> None:
        self.live = 0
        self.peaks: dict[Place, int] = {}
        self.sizes: list[int] = []
        """By key of a storage."""
        self.events: list[int] = []
        """A key where a storage was taken, ~key where it was given back."""
        self.marks: dict[str, int] = {}
        """Where in the events something begins."""
        self.visited: list[tuple[Place, int]] = []
        """Places that were left, each with its peak, since somebody emptied this."""
        self.passes: dict[t.Hashable, t.Any] = {}
        """What was seen of passes that are run again (passes.py)."""
        self.place = ("", "")
        self.peak = 0
        """Of this visit of the place."""

    def moment(self, name: str, place: str = "") -> None:
        """What follows belongs to this moment."""
        before = self.place
        if before[0]:
            self.peaks[before] = max(self.peak, self.peaks.get(before, 0))
            self.visited.append((before, self.peak))
        self.place, self.peak = (name, place), self.live

    def within(self, place: str) -> None:
        """What follows belongs to the same moment, at this place."""
        self.moment(self.place[0], place)

    def scratch(self, size: float) -> None:
        """What a kernel takes and gives back while it runs."""
        Storage(self, size)


class Storage:
    __slots__ = ("key", "meter", "size")

    def __init__(self, meter: Meter, size: float) -> None:
        self.size = whole = -int(-size // BLOCK) * BLOCK
        self.meter = meter
        self.key = len(meter.sizes)
        meter.sizes.append(whole)
        meter.events.append(self.key)
        meter.live += whole
        if meter.live > meter.peak:
            meter.peak = meter.live

    def __del__(self) -> None:
        self.meter.live -= self.size
        self.meter.events.append(~self.key)


class Tensor:
    """count elements of width bytes. node: the operation that made it, where autograd goes on from it."""

    __slots__ = ("count", "grad", "needs", "node", "storage", "width")

    def __init__(self, storage: Storage | None, count: int, width: int, node: Node | None = None) -> None:
        self.storage = storage
        self.count = count
        self.width = width
        self.node = node
        self.needs = node is not None
        self.grad: Tensor | None = None


class Parameter(Tensor):
    """A weight of `rows` outputs and `columns` inputs; a vector has one column.

    width: what it is computed with. stored: bytes that a rank holds of it. kept: of its gradient once it is whole, None
    is all. Of a weight that is used twice, as a head that is the embedding too, it is whole when both have come.
    """

    __slots__ = ("columns", "kept", "partial", "rows", "waits")

    def __init__(
        self,
        tape: Tape,
        rows: int,
        columns: int = 1,
        width: int = HALF,
        trained: bool = False,
        stored: float | None = None,
        kept: float | None = None,
    ) -> None:
        size = rows * columns * width if stored is None else stored
        super().__init__(Storage(tape.meter, size), rows * columns, width)
        self.rows = rows
        self.columns = columns
        self.needs = trained
        self.kept = kept
        self.waits = 0
        """Uses whose gradient has not come."""
        self.partial: Tensor | None = None
        """What has come of it, where a part is kept alone."""


Backward = t.Callable[["Tape", "Node", Tensor], t.Sequence[t.Optional[Tensor]]]
"""From the gradient of what a node made to the gradients of its inputs; None where none is asked for."""


class Node:
    """One operation of the graph. saved: what its backward needs, and so is held until then."""

    __slots__ = ("backward", "grad", "inputs", "order", "saved")

    def __init__(self, order: int, backward: Backward, inputs: t.Sequence[Tensor], saved: t.Sequence[t.Any]) -> None:
        self.order = order
        self.backward = backward
        self.inputs = [_edge(tensor) for tensor in inputs]
        self.saved: t.Sequence[t.Any] | None = saved
        self.grad: Tensor | None = None

    def lead_to(self, tensor: Tensor) -> None:
        """Its gradient goes on to what made this tensor."""
        self.inputs = [_edge(tensor)]

    def wants(self, index: int) -> bool:
        return self.inputs[index] is not None


def _edge(tensor: Tensor) -> Node | Tensor | None:
    """Where the gradient goes: to the node that made it, into the leaf, or nowhere."""
    if not tensor.needs:
        return None
    if tensor.node is None and isinstance(tensor, Parameter):
        tensor.waits += 1
    return tensor.node or tensor


class Tape:
    """The state of a process that trains: its meter, whether gradients are on, and autocast."""

    def __init__(self, meter: Meter, half: str = "bf16") -> None:
        self.meter = meter
        self.half = half
        """What a HALF is: bf16 or fp16."""
        self.grad = True
        self.autocast = False
        self.casts: dict[int, Tensor] = {}
        """Half copies of trained weights, which autocast keeps until it ends."""
        self._order = 0

    def empty(self, count: float, width: int) -> Tensor:
        return Tensor(Storage(self.meter, count * width), int(count), width)

    def record(
        self, output: Tensor, backward: Backward, inputs: t.Sequence[Tensor], saved: t.Sequence[t.Any]
    ) -> Tensor:
        """Make the output part of the graph, where an input is."""
        if self.grad:
            for tensor in inputs:
                if tensor.needs:
                    self.attach(output, backward, inputs, saved)
                    break
        return output

    def attach(self, output: Tensor, backward: Backward, inputs: t.Sequence[Tensor], saved: t.Sequence[t.Any]) -> None:
        self._order += 1
        output.node = Node(self._order, backward, inputs, saved)
        output.needs = True

    def under_autocast(self, run: t.Callable[[], t.Any], enabled: bool) -> t.Any:
        """Run with autocast on or off; the copies of weights go when the outermost one ends."""
        before, self.autocast = self.autocast, enabled
        try:
            return run()
        finally:
            self.autocast = before
            if not before:
                self.casts.clear()

    def without_grad(self, run: t.Callable[[], t.Any]) -> t.Any:
        before, self.grad = self.grad, False
        try:
            return run()
        finally:
            self.grad = before

    def backward(self, output: Tensor, grad: Tensor) -> None:
        """Autograd's engine: nodes in the reverse order of their making, gradients added up where they meet."""
        before, self.grad = self.grad, False
        ready: list[tuple[int, Node]] = []
        edge = _edge(output)
        if edge is not None:
            self._deliver(ready, edge, [grad])
        del grad
        while ready:
            node = heapq.heappop(ready)[1]
            given, node.grad = node.grad, None
            found = list(node.backward(self, node, t.cast(Tensor, given)))
            node.saved = given = None
            for edge in node.inputs:
                hand = [found.pop(0)]
                if edge is not None and hand[0] is not None:
                    self._deliver(ready, edge, hand)
                hand.clear()
        self.grad = before

    def _deliver(self, ready: list[tuple[int, Node]], edge: Node | Tensor, hand: list[Tensor | None]) -> None:
        """The first gradient is taken as it is, unless it is a leaf's and others hold it too. Further ones are added,
        in place where nobody else holds the sum (autograd/input_buffer.cpp, accumulate_grad.h)."""
        leaf = isinstance(edge, Tensor)
        if isinstance(edge, Parameter):
            edge.waits -= 1
        if isinstance(edge, Parameter) and edge.kept is not None:
            edge.partial = (edge.partial or hand.pop()) if edge.waits else None
            if not edge.waits and edge.grad is None and edge.kept:
                edge.grad = self.empty(edge.kept, 1)
        elif edge.grad is None:
            edge.grad = hand.pop()
            if leaf and not _alone(edge):
                edge.grad = self.empty(t.cast(Tensor, edge.grad).count, t.cast(Tensor, edge.grad).width)
            if isinstance(edge, Node):
                heapq.heappush(ready, (-edge.order, edge))
        elif not leaf and not _alone(edge):
            edge.grad = self.empty(edge.grad.count, edge.grad.width)


def _alone(edge: t.Any) -> bool:
    """Nobody but this edge refers to its gradient, and no other tensor to the storage of that."""
    return _references(edge) <= _ONE


def _references(edge: t.Any) -> tuple[int, int]:
    return sys.getrefcount(edge.grad), sys.getrefcount(edge.grad.storage)


_one = Tensor(None, 0, 0)
_one.grad = Tensor(t.cast(Storage, object()), 0, 0)
_ONE = _references(_one)
"""As this Python counts one."""
