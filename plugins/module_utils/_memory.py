# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether ranks on GPUs have the memory that they need, by an estimate (_vram): what a plan refuses and tells. Pure."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from . import _parallel, _ranks
from ._engine import base_model
from ._errors import FinetuneError
from ._ranks import Facts
from ._vram import advise, choose, estimate, learned, options, shape, speed
from ._vram.estimate import GIB, Estimate, gib
from ._vram.hardware import Gpu
from ._vram.keys import DEFAULTS
from ._vram.options import Situation
from ._wish.wish import DEMO_MODEL, Wish

ADAPTER = ("finetuning_type", "lora_rank", "lora_target", "lora_dropout", "use_dora", "oft_block_size")
"""LLaMA-Factory's keys that decide how large an adapter is."""
LOADED, MERGED = "adapter_name_or_path", "create_new_adapter"
NVLINK = 25 * speed.GIGA
"""Bytes a second of one link in one direction, by data sheets of Volta to Hopper."""
NETWORK = 10_000
"""Mbit/s of a network that does not tell its speed; a judgement. RDMA is not looked for."""

Resolved = t.Mapping[str, t.Any]
Wrong = t.Callable[[t.Dict[str, t.Any]], t.Sequence[t.Any]]
"""What is wrong with a run that is resolved so."""


class Device(t.NamedTuple):
    """The GPU that decides what fits: of all that are used the one with the least to give."""

    host: str
    gpu: Gpu
    free: int
    """Bytes that a rank can have of it."""

    def words(self) -> str:
        told = f"{self.gpu.name} of {self.host}"
        held = self.gpu.memory - self.free
        return told + (f", of which others hold {gib(held)}" if held > GIB else "")


@dataclass(frozen=True)
class Memory:
    """What a plan has of it. told: lines for people; estimate: of a rank, empty where there is none; predicted: what of
    that the run keeps, to be held against what it takes."""

    told: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    estimate: dict[str, t.Any] = field(default_factory=dict)
    free: int = 0
    predicted: dict[str, t.Any] = field(default_factory=dict)


def check(wish: Wish, resolved: Resolved, facts: t.Mapping[str, Facts], wrong: Wrong) -> Memory:
    """Refuse what does not fit by the bound, unless its author insists. Nothing to tell on CPUs."""
    device = smallest(wish, facts)
    if device is None:
        return Memory()
    found = asked(wish, resolved, facts, device)
    need = found if isinstance(found, str) else needed(found)
    if isinstance(found, str) or isinstance(need, str):
        return Memory([f"memory  not estimated: {need}"])
    notices = []
    if need.bound > device.free:
        if not wish.risks:
            variables = "train_model, train_args, train_engine"
            raise refusal(found, need, variables, device, taken(resolved, facts, wrong))
        notices.append(
            f"By the estimate it does not fit, up to {gib(need.bound)} in {gib(device.free)}; train_insist has memory."
        )
    reading = options.read(shape.read(found.config), found.arguments, found.situation)
    fix = estimate.correction(need, reading, found.situation)
    told = _lines(need, device) + ([f"        {fix.words()}"] if fix else [])
    return Memory(told, notices, need.as_dict(), device.free, learned.prediction(reading, device.gpu.name, need))


def smallest(wish: Wish, facts: t.Mapping[str, Facts]) -> Device | None:
    """None where ranks run on CPUs."""
    found = [
        _device(host, node, gpu) for host, node in facts.items() for gpu in _ranks.gpus(wish.gpus, node["gpus"], host)
    ]
    return min(found, key=lambda device: device.free, default=None)


def unlearned(facts: t.Mapping[str, Facts]) -> dict[str, Facts]:
    """Facts without what other runs took, which corrects estimates."""
    return {host: {**node, "peaks": {}} for host, node in facts.items()}


def used(wish: Wish, node: Facts) -> list[dict[str, t.Any]]:
    """The GPUs of a host that has what is asked for."""
    return _ranks.gpus(wish.gpus, node["gpus"], "")


def _device(host: str, node: Facts, gpu: t.Mapping[str, t.Any]) -> Device:
    """What is taken of a GPU that a run has goes with that run; else it is somebody's who stays."""
    memory = int(gpu.get("memory") or 0)
    free = int(gpu.get("memory_free") or memory)
    leased = node["leases"].get(gpu["uuid"]) is not None
    return Device(host, Gpu(gpu["name"], memory, gpu["compute_capability"]), memory if leased else min(free, memory))


def taken(resolved: Resolved, facts: t.Mapping[str, Facts], wrong: Wrong) -> advise.Taken:
    """Whether a run that is resolved otherwise passes what a request does: the rules, and what engines ask of nodes."""

    def so(keys: t.Mapping[str, t.Any], engine: str = "") -> bool:
        arguments = {**resolved["arguments"], **keys}
        picked = _parallel.pick(engine or resolved["engine"], arguments, resolved["world_size"])
        try:
            _parallel.refuse(picked, facts)
        except FinetuneError:
            return False
        return not wrong({**resolved, "arguments": arguments, "engine": picked})

    return so


def asked(wish: Wish, resolved: Resolved, facts: t.Mapping[str, Facts], device: Device) -> choose.Run | str:
    """The run as it is resolved, nothing open; or why its memory cannot be told."""
    arguments, engine = _loaded(wish, resolved["arguments"]), resolved["engine"]
    known = config(wish, facts)
    if not device.gpu.memory:
        return f"the memory of {device.gpu.name} is not known"
    if _parallel.ENGINES[engine].unproved:
        return f"what runs in environment {wish.environment} with engine {engine} take is not known"
    if not known:
        return "the model's config.json is not known here"
    per_rank = arguments[choose.MICRO] * arguments[choose.ACCUMULATION]
    seen = learned.read(node.get("peaks") or {} for node in facts.values())
    situation = Situation(resolved["world_size"], "ddp" if engine == "single" else engine, device.gpu, seen=seen)
    card = speed.card(device.gpu.name, _link(wish, facts))
    return choose.Run(known, arguments, situation, device.free, per_rank, card=card)


def _loaded(wish: Wish, arguments: t.Mapping[str, t.Any]) -> t.Mapping[str, t.Any]:
    """An adapter of an earlier run that goes on being trained is of the size that it has, whatever is asked for."""
    adapter = wish.left.get("adapter")
    return {**arguments, **adapter, LOADED: None} if adapter and not arguments.get(MERGED) else arguments


def left(wish: Wish, resolved: t.Mapping[str, t.Any], facts: t.Mapping[str, Facts]) -> dict[str, t.Any]:
    """What is known before a run of what one that begins with it will find."""
    arguments = {**DEFAULTS, **_loaded(wish, resolved["arguments"])}
    adapts = arguments["finetuning_type"] in ("lora", "oft")
    adapter = {key: arguments[key] for key in ADAPTER} if adapts else {}
    return {"config": dict(config(wish, facts)), "adapter": adapter}


def refusal(
    run: choose.Run, need: Estimate, variables: str, device: Device, allowed: advise.Taken, how: str = ""
) -> FinetuneError:
    """allowed: ways that may be told; how: as in advise.refusal."""
    told = advise.refusal(run, need, f"{variables}; {device.words()}", allowed, how)
    last = "\n          or train_insist: [memory], where you know that it fits"
    return FinetuneError(told.what, where=told.where, change=told.change + last)


def needed(run: choose.Run) -> Estimate | str:
    """Or why not: a config.json is anybody's."""
    try:
        return choose.needed(run, choose.asked(run))
    except FinetuneError as error:
        return error.what
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        return "the model's config.json is none that is understood"


def config(wish: Wish, facts: t.Mapping[str, Facts]) -> t.Mapping[str, t.Any]:
    """That of the model, as the first node has it that knows."""
    if DEMO_MODEL in (wish.model, wish.family):
        sizes = base_model.RECIPE["architecture"]
        return {**sizes, "model_type": "qwen3", "vocab_size": base_model.RECIPE["tokenizer"]["vocab_size"]}
    if wish.begins_with:
        return wish.left.get("config") or {}
    told = (node.get(of) or {} for node in facts.values() for of in ("model", "hub"))
    return next((one["config"] for one in told if one.get("config")), {})


def _lines(need: Estimate, device: Device) -> list[str]:
    doubt = f"{need.tag}: {', '.join(need.reasons)}" if need.reasons else need.tag
    return [
        f"memory  {gib(need.process)} a rank, taken for at most {gib(need.bound)}, of {gib(device.free)} on "
        f"{device.words()}",
        f"        most in the {need.binding}; {doubt}",
    ]


def _link(wish: Wish, facts: t.Mapping[str, Facts]) -> float:
    """Bytes a second between ranks, by the slowest of all ways: NVLinks, PCIe, the network between hosts."""
    found = []
    for node in facts.values():
        indices = {gpu["index"] for gpu in used(wish, node)}
        ways = [way for one, two, way in node.get("gpu_links") or () if {one, two} <= indices]
        links = [int(way[2:]) if way.startswith("NV") and way[2:].isdigit() else 0 for way in ways]
        found.append(max(min(links, default=0) * NVLINK, speed.PCIE))
        if len(facts) > 1:
            megabits = max((interface["speed"] for interface in node["interfaces"]), default=0) or NETWORK
            found.append(megabits * 1e6 / 8)
    return min(found)
