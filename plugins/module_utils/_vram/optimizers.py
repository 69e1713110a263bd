# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Optimizers of transformers and LLaMA-Factory: what each keeps of a trained weight, and what a step takes besides.

Sizes are bytes. Measured: adamw_torch (foreach), on a T4. All others are read from their code.
"""

from __future__ import annotations

import typing as t

from .tape import FULL, HALF

BLOCKWISE = 256
"""Values that share an fp32 scale in bitsandbytes' 8-bit states; tensors below 4096 keep fp32."""
SMALLEST_8BIT = 4096


class Weight(t.NamedTuple):
    rows: int
    columns: int
    """1 of a vector."""
    width: int
    """Bytes of an element."""
    end: bool = False
    """The embedding or the head, which GaLore, APOLLO and Muon leave to AdamW (LLaMA-Factory,
    train/trainer_utils.py)."""

    @property
    def inner(self) -> bool:
        """A matrix of a layer."""
        return self.columns > 1 and not self.end


Sizes = t.Callable[[Weight], t.Sequence[float]]


class Optimizer(t.NamedTuple):
    states: Sizes
    """What is kept of one weight, tensor by tensor."""
    together: Sizes = lambda weight: ()
    """What a step takes for all weights at once (foreach)."""
    alone: Sizes = lambda weight: ()
    """What it takes for one weight after the other."""
    paged: bool = False
    """Its states may go to the memory of the host."""
    measured: bool = False


def _count(weight: Weight) -> int:
    return weight.rows * weight.columns


def _as_weight(times: int) -> Sizes:
    return lambda weight: [_count(weight) * weight.width] * times


def _full(times: int) -> Sizes:
    return lambda weight: [_count(weight) * FULL] * times


def _eight_bit(times: int) -> Sizes:
    def sizes(weight: Weight) -> t.Sequence[float]:
        count = _count(weight)
        if count < SMALLEST_8BIT:
            return [count * FULL] * times
        return [count, -(-count // BLOCKWISE) * FULL] * times

    return sizes


def _factored(weight: Weight) -> t.Sequence[float]:
    rows, columns = weight[:2]
    return [rows * FULL, columns * FULL] if columns > 1 else [rows * FULL]


def _muon(weight: Weight) -> t.Sequence[float]:
    """Momentum alone for matrices of layers."""
    return [_count(weight) * weight.width] * (1 if weight.inner else 2)


def _newton_schulz(weight: Weight) -> t.Sequence[float]:
    return [_count(weight) * HALF] * 3 if weight.inner else []


def projected(rank: int, projector: bool) -> Sizes:
    """States of a gradient that is projected to `rank` rows; GaLore keeps the projector, APOLLO makes it again."""

    def sizes(weight: Weight) -> t.Sequence[float]:
        rows, columns, width, _end = weight
        if not weight.inner or min(rows, columns) <= rank:
            return _as_weight(2)(weight)
        small, large = sorted((rows, columns))
        return [rank * large * width] * 2 + ([small * rank * width] if projector else [])

    return sizes


ADAMW = Optimizer(_as_weight(2), together=_as_weight(1), measured=True)
FUSED = Optimizer(_as_weight(2))
EIGHT_BIT = Optimizer(_eight_bit(2))

OPTIMIZERS: dict[str, Optimizer] = {
    "adamw_torch": ADAMW,
    "adamw_torch_fused": FUSED,
    "adamw_apex_fused": FUSED,
    "adamw_hf": Optimizer(_as_weight(2), alone=_as_weight(1)),
    "adamw_anyprecision": Optimizer(_as_weight(2), alone=_as_weight(1)),
    "adamw_bnb_8bit": EIGHT_BIT,
    "adamw_8bit": EIGHT_BIT,
    "adamw_torch_8bit": EIGHT_BIT,
    "paged_adamw_8bit": EIGHT_BIT._replace(paged=True),
    "paged_adamw": Optimizer(_full(2), paged=True),
    "paged_adamw_32bit": Optimizer(_full(2), paged=True),
    "lion_32bit": Optimizer(_full(1)),
    "lion_8bit": Optimizer(_eight_bit(1)),
    "paged_lion_32bit": Optimizer(_full(1), paged=True),
    "paged_lion_8bit": Optimizer(_eight_bit(1), paged=True),
    "adafactor": Optimizer(_factored, alone=_full(3)),
    "sgd": Optimizer(lambda weight: ()),
    "adagrad": Optimizer(_as_weight(1), together=_as_weight(1)),
    "rmsprop": Optimizer(_as_weight(1), together=_as_weight(1)),
    "adam_mini": Optimizer(lambda weight: [_count(weight) * FULL, weight.rows * FULL], alone=_full(1)),
    "badam": Optimizer(_full(4)),  # a copy, its gradient and two states in fp32, of the active block
    "muon": Optimizer(_muon, alone=_newton_schulz),
}


def find(name: str, galore_rank: int = 0, apollo_rank: int = 0) -> Optimizer | None:
    """None where this table does not have it."""
    if galore_rank or apollo_rank:
        sizes = projected(galore_rank or apollo_rank, projector=bool(galore_rank))
        return Optimizer(sizes, alone=_as_weight(1))
    return OPTIMIZERS.get(name)
