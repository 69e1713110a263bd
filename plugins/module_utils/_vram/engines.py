# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an engine changes for one rank: which part of weights, gradients and states it holds, and its buffers.

None of it is measured but the single GPU: read from DeepSpeed, accelerate and PyTorch.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from .shape import Shape
from .tape import FULL, HALF

BUCKET = 500_000_000
"""Elements of DeepSpeed's reduce and allgather buckets in stage 1 and 2, by default."""
MIB, GIB = 1 << 20, 1 << 30
COLLECTIVE = 512 * MIB
"""NCCL's buffers for each rank: 0.3 to 1 GiB are told, unmeasured here; they lie outside of PyTorch's allocator."""


SINGLE = "single"
"""The name of none, on one rank."""


FSDP2 = "fsdp2"
NAMES = ("ddp", "zero0", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload", "fsdp", FSDP2)
"""What there is, of which train_engine takes most."""


@dataclass(frozen=True)
class Engine:
    name: str = SINGLE
    world: int = 1
    sharded_weights: bool = False
    sharded_gradients: bool = False
    sharded_states: bool = False
    half_weights: bool = False
    """DeepSpeed with bf16 or fp16: all weights are half, an fp32 copy of the trained ones lies with the states."""
    trained_width: int = 0
    """Bytes of an element of a trained weight's shard, where it is another than it is computed with: accelerate makes
    fp32 of them under mixed precision."""
    frozen_width: int = 0
    """And of a frozen one: with FSDP2 accelerate makes fp32 of these too."""
    states_on_host: bool = False
    weights_on_host: bool = False
    buckets: str = ""
    """ddp, zero2, zero3, fsdp: which buffers it has."""

    def stored(self, count: int, width: int, trained: bool) -> float:
        """Bytes of a weight on a rank."""
        if self.weights_on_host:
            return 0
        return count * ((self.trained_width if trained else self.frozen_width) or width) * self.part

    @property
    def part(self) -> float:
        """Of all weights that a rank has."""
        return 1 / self.world if self.sharded_weights else 1.0

    def kept(self, count: int, width: int) -> float | None:
        """Bytes of a gradient on a rank once it is reduced; None is all, as it was made."""
        if not self.sharded_gradients:
            return None
        return 0 if self.states_on_host else count * (self.trained_width or width) / self.world

    def share(self) -> float:
        """The part of the states of the optimizer that is on the GPU."""
        if self.states_on_host:
            return 0.0
        return 1 / self.world if self.sharded_states else 1.0

    def buffers(self, shape: Shape, trained: float, gradients: float, unit: float) -> float:
        """Bytes. trained: elements that are; gradients: bytes of theirs; unit: bytes of the largest layer in half."""
        if self.buckets == "ddp":  # its buckets are copies of the gradients
            return gradients
        if self.buckets == "zero2":
            return 2 * min(BUCKET, trained) * HALF
        if self.buckets == "zero3":  # from the hidden size, as transformers fills in `auto`
            return shape.hidden**2 * HALF * (2 + 0.9)
        if self.buckets == "fsdp":  # the next unit is fetched while one is computed, gradients of one are sent
            return 2 * unit
        return 0.0

    def in_step(self, trained: float) -> float:
        """What a step takes besides: DeepSpeed's flat fp32 gradients."""
        return trained * FULL * self.share() if self.half_weights else 0.0

    def on_host(self, parameters: float, trained: float) -> float:
        """Bytes of the host's memory for this rank, pinned; DeepSpeed plans 1.5 times what lies there."""
        size = 0.0
        if self.states_on_host:
            size += (3 * FULL + HALF) * trained / self.world
        if self.weights_on_host:
            size += HALF * parameters / self.world
        return 1.5 * size


def find(name: str, world: int) -> Engine:
    """By one of NAMES, auto for what one rank or several have by themselves."""
    if world == 1 and name in (SINGLE, "ddp", "auto", ""):
        return Engine()
    made: dict[str, t.Any] = {"name": name, "world": world}
    if name in ("ddp", "auto", SINGLE, ""):
        return Engine(**{**made, "name": "ddp"}, buckets="ddp")
    if name.startswith("zero"):
        stage, offload = int(name[4]), name.endswith("_offload")
        return Engine(
            **made,
            half_weights=True,
            sharded_states=stage >= 1,
            sharded_gradients=stage >= 2,
            sharded_weights=stage == 3,
            states_on_host=offload,
            weights_on_host=offload and stage == 3,
            buckets="zero3" if stage == 3 else "zero2",
        )
    return Engine(
        **made,
        sharded_weights=True,
        sharded_gradients=True,
        sharded_states=True,
        trained_width=FULL,
        frozen_width=FULL if name == FSDP2 else 0,
        buckets="fsdp",
    )
