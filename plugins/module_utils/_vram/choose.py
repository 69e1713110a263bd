# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fastest way to do a run that fits: what its author left open is chosen, what he wrote stays. Pure.

Every combination gets a predicted time (speed.py) and, from the fastest on, an estimate of its memory, until one fits
by the bound. One that does not fit rules out all that need more of the same.
"""

from __future__ import annotations

import itertools
import typing as t
from dataclasses import dataclass, field, replace

from . import estimate, options, shape, speed
from .estimate import Estimate
from .keys import DEFAULTS
from .options import Situation

Arguments = t.Mapping[str, t.Any]

MICRO, ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"
PLAIN, FUSED, BITS = "disable_gradient_checkpointing", "enable_liger_kernel", "quantization_bit"
OPEN = (MICRO, PLAIN, FUSED)
"""Keys that may be chosen, and which change nothing but memory, time and the last bits of numbers."""
LARGEST = 64
"""Records of a micro-batch, at most: more does not fill a GPU better."""
ENGINES = ("ddp", "zero2", "zero3", "zero2_offload", "zero3_offload")
SIMPLER = {"zero2": 1.03, "zero3": 1.06, "zero2_offload": 1.15, "zero3_offload": 1.2}
"""By how much an engine must be faster than a simpler one to be preferred; a judgement. Runs with offload do not resume
to the same weights."""
FUSES = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen2_vl", "qwen2_5_vl", "gemma", "gemma2", "phi3", "glm4")
"""Model types that LLaMA-Factory has Liger's kernels for (model/model_utils/liger_kernel.py), and are walked here."""


class Option(t.NamedTuple):
    """One way to do the run."""

    engine: str
    micro: int
    accumulation: int
    plain: bool
    """Without gradient checkpointing."""
    fused: bool
    bits: int

    def over(self, arguments: Arguments) -> dict[str, t.Any]:
        own = {MICRO: self.micro, ACCUMULATION: self.accumulation, PLAIN: self.plain, FUSED: self.fused}
        return {**arguments, **own, BITS: self.bits or None}

    def needs_more_than(self, other: Option) -> bool:
        """As much of everything that takes memory, with the same engine."""
        return (
            self.engine == other.engine
            and self.micro >= other.micro
            and self.plain >= other.plain
            and self.fused <= other.fused
            and (self.bits or 16) >= (other.bits or 16)
        )

    def words(self) -> str:
        parts = [
            f"{self.micro} × {self.accumulation}",
            self.engine,
            "no checkpointing" if self.plain else "checkpointing",
            *(["Liger"] if self.fused else []),
            *([f"{self.bits} bits"] if self.bits else []),
        ]
        return ", ".join(parts)


@dataclass(frozen=True)
class Tried:
    option: Option
    seconds: float
    """Predicted for an optimizer step; good for an order, not a promise."""
    estimate: Estimate
    fits: bool


@dataclass
class Choice:
    """What was chosen, and what was tried before, fastest first; the last one is it where one fits."""

    tried: list[Tried] = field(default_factory=list)
    possible: int = 0
    """Combinations that there were."""

    @property
    def chosen(self) -> Tried | None:
        return self.tried[-1] if self.tried and self.tried[-1].fits else None


@dataclass(frozen=True)
class Run:
    """What is asked for. open: keys that the author did not write; engine: as he wrote it, `auto` is open;
    per_rank: records of an optimizer step on each rank, which stay; memory: bytes of a GPU that are free; host: bytes
    of its host for each rank, 0 where unknown; engines: what `auto` may become."""

    config: t.Mapping[str, t.Any]
    arguments: Arguments
    situation: Situation
    memory: int
    per_rank: int
    open: t.FrozenSet[str] = frozenset()
    card: speed.Card = field(default_factory=speed.Card)
    engines: t.Sequence[str] = ENGINES
    host: int = 0

    @property
    def settled(self) -> bool:
        """Its weights are quantized already."""
        return bool(self.config.get("quantization_config"))

    def holds(self, need: Estimate) -> bool:
        """By the bound. Of the host only what is offloaded counts: the rest is a guess that refuses nothing."""
        return need.bound <= self.memory and (not self.host or need.host - estimate.PROCESS <= self.host)


def asked(run: Run) -> Option:
    """The run as its arguments have it."""
    given = {**DEFAULTS, **run.arguments}
    engine = "ddp" if run.situation.engine == "auto" else run.situation.engine
    return Option(
        engine,
        int(given[MICRO]),
        int(given[ACCUMULATION]),
        bool(given[PLAIN]),
        bool(given[FUSED]),
        int(given[BITS] or 0),
    )


def possible(run: Run) -> list[Option]:
    """All combinations of what is open."""
    now = asked(run)
    batches = [(now.micro, now.accumulation)]
    if MICRO in run.open:
        sizes = [size for size in range(1, min(run.per_rank, LARGEST) + 1) if run.per_rank % size == 0]
        batches = [(size, run.per_rank // size) for size in sizes]
    engines: t.Sequence[str] = (now.engine,)
    if run.situation.engine == "auto":
        engines = [name for name in run.engines if run.situation.world > 1 or name not in ("zero2", "zero3")]
    checkpoints = PLAIN in run.open and not run.arguments.get("use_unsloth")  # which has its own, always
    plain = (True, False) if checkpoints else (now.plain,)
    fused = (True, False) if FUSED in run.open and can_fuse(run) else (now.fused,)
    bits = (0, 4) if BITS in run.open and not run.settled else (now.bits,)
    combined = itertools.product(engines, batches, plain, fused, bits)
    return [
        Option(engine, micro, accumulation, p, f, b)
        for engine, (micro, accumulation), p, f, b in combined
        if not (b and engine.startswith("zero3"))  # LLaMA-Factory refuses quantized weights with ZeRO-3
    ]


def choose(run: Run) -> Choice:
    """Try from the fastest on. Per engine the leanest first: where that does not fit, nothing of the engine does."""
    left = possible(run)
    found = Choice(possible=len(left))
    too_much: list[Option] = []
    counts = (0.0, 0.0)
    for engine in dict.fromkeys(option.engine for option in left):
        leanest = min(
            (option for option in left if option.engine == engine),
            key=lambda one: (one.micro, one.plain, not one.fused, one.bits or 16),
        )
        need = needed(run, leanest)
        counts = (need.parameters, need.trainable)
        if not run.holds(need):
            too_much.append(leanest)
            found.tried.append(Tried(leanest, predicted(run, leanest, *counts), need, False))
    for option in sorted(left, key=lambda one: predicted(run, one, *counts) * SIMPLER.get(one.engine, 1.0)):
        if any(option.needs_more_than(other) for other in too_much):
            continue
        need = needed(run, option)
        fits = run.holds(need)
        found.tried.append(Tried(option, predicted(run, option, *counts), need, fits))
        if fits:
            break
        too_much.append(option)
    return found


def can_fuse(run: Run) -> bool:
    known = str(run.config.get("model_type")) in FUSES and run.arguments.get("stage", "sft") in ("pt", "sft")
    return known and not run.arguments.get("use_unsloth")  # which has its own kernels


def _situated(run: Run, option: Option) -> Situation:
    return replace(run.situation, engine=option.engine)


def as_option(run: Run, option: Option) -> Run:
    """The run done so, with nothing open."""
    return replace(run, arguments=option.over(run.arguments), situation=_situated(run, option), open=frozenset())


def needed(run: Run, option: Option) -> Estimate:
    return estimate.estimate(run.config, option.over(run.arguments), _situated(run, option))


def predicted(run: Run, option: Option, parameters: float, trained: float) -> float:
    reading = options.read(shape.read(run.config), option.over(run.arguments), _situated(run, option))
    return speed.seconds(reading, parameters, trained, run.card)
