# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What to change where a run does not fit: the three nearest ways that would, of those that are not refused for another
reason, and the smallest hardware for it as it is asked. Pure."""

from __future__ import annotations

import itertools
import typing as t
from dataclasses import dataclass, replace

from .._errors import FinetuneError
from .._gpu import catalogue
from . import estimate
from .choose import ACCUMULATION, BITS, FUSED, MICRO, PLAIN, Run, can_fuse
from .estimate import Estimate, gib
from .hardware import find
from .keys import DEFAULTS

EVALUATED = "per_device_eval_batch_size"
NEAREST = 3
MOST_CHANGES = 3
COUNTS = (1, 2, 4, 8, 16, 32, 64)
"""GPUs of a fleet that is looked for."""


Taken = t.Callable[[t.Mapping[str, t.Any], str], bool]
"""Whether the run would be taken with these keys over its own, and this engine (empty for the one that it has)."""


def all_taken(_keys: t.Mapping[str, t.Any], _engine: str) -> bool:
    return True


class Change(t.NamedTuple):
    """A thing to give up. keys: LLaMA-Factory's, with the values that they get; engine: another one."""

    words: str
    keys: t.Mapping[str, t.Any] = {}
    engine: str = ""


@dataclass(frozen=True)
class Way:
    changes: tuple[Change, ...]
    estimate: Estimate

    def words(self) -> str:
        return ", ".join(change.words for change in self.changes)


def changes(run: Run) -> list[Change]:
    """What this run could give up, from what costs least on: nothing but time, then what is learned."""
    given = {**DEFAULTS, **run.arguments}
    world, method = run.situation.world, str(given["finetuning_type"])
    length, found = int(given["cutoff_len"]), []
    evaluates = given["do_eval"] or float(given["val_size"]) > 0 or given["eval_strategy"] != "no"
    if evaluates and int(given[EVALUATED]) > 1:
        found.append(Change(f"{EVALUATED}: 1", {EVALUATED: 1}))
    if int(given[MICRO]) > 1:
        words = f"{MICRO}: 1, {ACCUMULATION}: {run.per_rank}"
        found.append(Change(words, {MICRO: 1, ACCUMULATION: run.per_rank}))
    if given[PLAIN]:
        found.append(Change(f"{PLAIN}: false", {PLAIN: False}))
    if not given[FUSED] and can_fuse(run):
        found.append(Change(f"{FUSED}: true", {FUSED: True}))
    engines = ["zero2", "zero3"] * (world > 1) + ["zero3_offload"]
    quantized = bool(given[BITS]) or run.settled
    if not quantized:
        now = run.situation.engine
        found += [Change(f"train_engine: {name}", engine=name) for name in engines if name != now]
    if method in ("full", "freeze") and not given["pure_bf16"]:
        found.append(Change("pure_bf16: true", {"pure_bf16": True}))
    if method == "full":
        words = "finetuning_type: lora" + ", pure_bf16: false" * bool(given["pure_bf16"])
        found.append(Change(words, {"finetuning_type": "lora", "pure_bf16": False}))
    if method == "lora" and not quantized and "zero3" not in run.situation.engine:
        found.append(Change(f"{BITS}: 4", {BITS: 4}))
    found += [Change(f"cutoff_len: {part}", {"cutoff_len": part}) for part in (length // 2, length // 4) if part >= 256]
    return found


def nearest(run: Run, taken: Taken = all_taken) -> list[Way]:
    """Those with the fewest changes, of what is taken."""
    found: list[Way] = []
    possible = changes(run)
    for many in range(1, MOST_CHANGES + 1):
        for together in itertools.combinations(possible, many):
            if _at_odds(together) or any(all(one in together for one in way.changes) for way in found):
                continue
            if not taken(*_merged(together)):
                continue
            need = needed(run, together)
            if need is not None and run.holds(need):
                found.append(Way(together, need))
            if len(found) == NEAREST:
                return found
    return found


def smallest(run: Run, taken: Taken = all_taken) -> str:
    """The smallest GPUs that would take it as asked, as many as are asked for; else the smallest number of the smallest
    that do it with weights spread over them, where that is taken. Empty where none does."""
    now = run.situation.world
    for world in (now, *(count for count in COUNTS if count > now)):
        engine = run.situation.engine if world == now else "zero3"
        if world != now and (run.arguments.get(BITS) or run.settled or not taken({}, engine)):
            return ""
        for known in sorted(catalogue.KNOWN, key=lambda one: (one.memory, one.also == ())):
            gpu = find(known.name)
            situation = replace(run.situation, world=world, engine=engine, gpu=gpu)
            if run.arguments.get("bf16") and not gpu.bf16:
                continue
            if estimate.estimate(run.config, run.arguments, situation).bound <= gpu.memory:
                many = f"{world} × " if world > 1 else ""
                return f"{many}{known.name} ({gib(gpu.memory)})" + (f" with {engine}" if world != now else "")
    return ""


def refusal(run: Run, need: Estimate, where: str, taken: Taken = all_taken, how: str = "") -> FinetuneError:
    """What is asked for does not fit; what would. how: in which way the run was taken, where that was not asked for."""
    ways = [f"{way.words()}  ({gib(way.estimate.bound)})" for way in nearest(run, taken)]
    hardware = smallest(run, taken)
    change = "one of\n            " + "\n            ".join(ways) if ways else "a smaller model"
    if hardware:
        change += f"\n          or, as it is asked for, {hardware}"
    return FinetuneError(
        f"It does not fit: {how}a rank needs {gib(need.process)}, up to {gib(need.bound)} ({need.tag}), in the "
        f"{need.binding}, and there is {gib(run.memory)}.",
        where=where,
        change=change,
    )


def _at_odds(together: tuple[Change, ...]) -> bool:
    """Two engines, two lengths, quantized weights that are spread."""
    keys = [key for change in together for key in change.keys]
    engines = [change.engine for change in together if change.engine]
    return len(set(keys)) < len(keys) or len(engines) > 1 or (BITS in keys and bool(engines))


def _merged(together: tuple[Change, ...]) -> tuple[dict[str, t.Any], str]:
    """All keys, and the engine; empty where it stays."""
    keys = {key: value for change in together for key, value in change.keys.items()}
    return keys, next((change.engine for change in together if change.engine), "")


def needed(run: Run, together: tuple[Change, ...]) -> Estimate | None:
    keys, engine = _merged(together)
    engine = engine or run.situation.engine
    try:
        return estimate.estimate(run.config, {**run.arguments, **keys}, replace(run.situation, engine=engine))
    except FinetuneError:
        return None
