# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What finished runs teach: by how much ranks took another amount of a GPU than was predicted. Pure.

Runs of one kind and about one size tell of each other. A rank that took more than predicted always counts. One that
took less tells something only where all of its batches were as long as they may be; else its records may have been
short. It is believed where several say so.
"""

from __future__ import annotations

import math
import typing as t

from .._gpu import catalogue

if t.TYPE_CHECKING:
    from .estimate import Estimate
    from .options import Reading

EDITION = 3
"""Of the estimator. Who changes what it comes to raises this: what was learned of another one is not for it."""
AGREEING = 3
"""Runs that it takes to go below the estimate."""
APART = 0.05
"""And by how much they may differ to agree, as a part of what was predicted."""
STEPS = 2
"""Of an attempt, before its peak is that of the run: the optimizer's states are there in the second one."""
ALIKE = 4.0
"""How many times larger one of two runs may be: what CUDA takes before the first tensor is not a part of the rest."""
LEAST, MOST = 0.8, 2.0
"""Times an estimate that is made of it; more is another fault than one of the estimate."""


class Kind(t.NamedTuple):
    """What runs have in common that tell of each other. method: with bits, and an optimizer other than AdamW."""

    gpu: str
    family: str
    method: str
    stage: str
    engine: str


class Seen(t.NamedTuple):
    """A finished run. predicted: bytes of a process; ratio: what its largest rank took, as a part of that; full: all
    batches were as long as they may be."""

    kind: Kind
    predicted: float
    ratio: float
    full: bool


class Correction(t.NamedTuple):
    factor: float
    """Times the estimate and its bound."""
    runs: int
    spread: float
    """How far apart they are, as a part of what was predicted."""
    kind: Kind

    def words(self) -> str:
        shared = ", ".join(self.kind[1:])
        told = f"corrected by {100 * (self.factor - 1):+.1f} % from {self.runs} run{'s' * (self.runs > 1)}"
        apart = f", {100 * self.spread:.1f} % apart" if self.runs > 1 else ""
        return f"{told} on {self.kind.gpu} ({shared}){apart}"


def kind_of(reading: Reading, gpu: str) -> Kind:
    job = reading.job
    return Kind(gpu, job.shape.family, reading.method, job.physics.stage, job.engine.name)


def prediction(reading: Reading, gpu: str, need: Estimate) -> dict[str, t.Any]:
    """What a run keeps of its estimate, before anything learned: numbers of PyTorch's, and CUDA's besides."""
    sizes = {"allocated": need.allocated, "reserved": need.reserved, "context": need.context, "host": need.host}
    return {"edition": EDITION, **kind_of(reading, gpu)._asdict(), "full": reading.full, **sizes, "tag": need.tag}


def read(nodes: t.Iterable[t.Mapping[str, t.Any]]) -> tuple[Seen, ...]:
    """nodes: what each of them keeps of its finished runs (_engine/memory.py), by id. A run counts once, with the
    largest of its ranks."""
    found: dict[str, Seen] = {}
    for node in nodes:
        for run_id, told in node.items():
            one = _seen(told)
            if one and (run_id not in found or one.ratio > found[run_id].ratio):
                found[run_id] = one
    return tuple(found.values())


def _seen(told: t.Any) -> Seen | None:
    """None where there was no GPU or another one than predicted for, by another estimator, or in another form."""
    try:
        predicted = told["predicted"]
        if predicted["edition"] != EDITION:
            return None
        ranks = [one for one in told["measured"] if "gpu" in one and _same(one["gpu"], predicted["gpu"])]
        taken = max(_taken(one, predicted["context"]) for one in ranks)
        size = float(predicted["reserved"] + predicted["context"])
        ratio = taken / size
        full = predicted["full"] is True and all(one["steps"] >= STEPS for one in ranks)
        of = Kind(*(str(predicted[field]) for field in Kind._fields))
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        return None
    return Seen(of, size, ratio, full) if math.isfinite(ratio) else None


def _taken(rank: t.Mapping[str, t.Any], context: float) -> float:
    """Bytes of its process at the peak: what PyTorch had then, and what the driver says is beside that."""
    beside = rank.get("driver_process", 0) - rank.get("cuda_reserved_now", 0)
    return float(rank["cuda_reserved"] + (beside if beside > 0 else context))


def _same(one: str, other: str) -> bool:
    known = catalogue.find(one)
    return one == other or (known is not None and known == catalogue.find(other))


def correction(seen: t.Iterable[Seen], kind: Kind, size: float) -> Correction | None:
    """size: bytes of a process by the estimate that is to be corrected; None where nothing says so."""
    near = [one for one in seen if one.kind == kind and size / ALIKE <= one.predicted <= size * ALIKE]
    counted = [one.ratio for one in near if one.ratio > 1]
    if not counted:
        counted = [one.ratio for one in near if one.full]
        if len(counted) < AGREEING or max(counted) - min(counted) > APART:
            return None
    factor = min(max(LEAST, *counted), MOST)
    return Correction(factor, len(counted), max(counted) - min(counted), kind)
