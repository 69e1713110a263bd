# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""LLaMA-Factory's arguments in the words of memory."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, replace

from .._errors import FinetuneError
from . import engines, optimizers, trust
from .engines import Engine
from .hardware import Gpu
from .keys import DEFAULTS, UNKNOWN
from .optimizers import Optimizer
from .physics import Physics
from .shape import Shape
from .stages import PAIRED, WITHOUT_REFERENCE, Run
from .tape import HALF
from .walk import Job

if t.TYPE_CHECKING:
    from .learned import Seen

ADAPTERS = ("lora", "oft")
"""Methods that leave the model's own weights as they are."""


@dataclass(frozen=True)
class Situation:
    """What is known besides the arguments."""

    world: int = 1
    engine: str = "auto"
    """As in train_engine."""
    gpu: Gpu | None = None
    torch: str = "2.8.0"
    padded: bool | None = None
    """Whether batches are padded; None takes it from batch and packing."""
    expandable: bool = True
    seen: t.Tuple[Seen, ...] = ()
    """What finished runs took."""


class Reading(t.NamedTuple):
    job: Job
    tag: str
    reasons: t.List[str]
    """Why it is not `replayed`."""
    patches: int
    """Of the images of one record, where the model sees."""
    method: str
    """How it learns, as people say it."""
    full: bool
    """All batches are as long as they may be, and what a process took at most is told of all of its life."""


def read(shape: Shape, arguments: t.Mapping[str, t.Any], situation: Situation) -> Reading:
    """The arguments may leave out what has LLaMA-Factory's default."""
    given = {**DEFAULTS, **{key: value for key, value in arguments.items() if value is not None}}
    for key, name in UNKNOWN.items():
        if given[key]:
            raise FinetuneError(
                f"What {name} keeps on a GPU is not known here.", where=f"args, key {key}", change=f"remove {key}"
            )
    engine = engines.find(_engine_name(given, situation), situation.world)
    batch, length = int(given["per_device_train_batch_size"]), int(given["cutoff_len"])
    stage = str(given["stage"])
    physics = _physics(shape, given, situation, engine, batch)
    name, optimizer = _optimizer(given, arguments, situation)
    run = Run(batch, length, str(given["pref_loss"]), int(given["max_new_tokens"]) if stage == "ppo" else 0)
    evaluates = bool(given["do_eval"]) or float(given["val_size"]) > 0 or given["eval_strategy"] != "no"
    job = Job(
        shape,
        physics,
        optimizer,
        run,
        engine,
        int(given["gradient_accumulation_steps"]),
        Run(int(given["per_device_eval_batch_size"]), length) if evaluates else None,
        situation.expandable,
        not (situation.expandable or _packed(given)),
        situation.gpu.workspace if situation.gpu else 0,
    )
    tag, reasons = trust.tag(shape, given, physics, engine, name, evaluates)
    patches = int(given["image_max_pixels"]) // shape.vision.patch**2 if shape.vision else 0
    full = _packed(given) and bool(arguments.get("skip_memory_metrics", True))  # else transformers resets the counters
    return Reading(job, tag, reasons, patches, _method(physics, name), full)


def _method(physics: Physics, optimizer: str) -> str:
    bits = f" in {physics.quantization} bits" if physics.quantization else ""
    return physics.method + bits + (f" with {optimizer}" if not optimizer.startswith("adamw_torch") else "")


def _engine_name(given: t.Mapping[str, t.Any], situation: Situation) -> str:
    if situation.engine == "auto" and given["use_badam"] and given["badam_mode"] == "layer" and situation.world > 1:
        return "zero3"
    return situation.engine


def _physics(shape: Shape, given: t.Mapping[str, t.Any], situation: Situation, engine: Engine, batch: int) -> Physics:
    method, stage = str(given["finetuning_type"]), str(given["stage"])
    padded = _padded(given, stage, batch) if situation.padded is None else situation.padded
    attention = {"auto": "sdpa", "disabled": "eager"}.get(str(given["flash_attn"]), str(given["flash_attn"]))
    bits = int(given["quantization_bit"] or 0)
    if attention == "sdpa" and shape.soft_capped:
        attention = "eager"
    if bits not in (0, 4, 8) and not shape.packed:
        raise FinetuneError(
            f"quantization_bit is {bits}.", where="args, key quantization_bit", change="use 4 or 8, or leave it out"
        )
    if (shape.packed.bits if shape.packed else bits) and method not in ADAPTERS:
        raise FinetuneError(
            f"Weights that are quantized cannot be trained with finetuning_type {method}.",
            where="args, keys quantization_bit, finetuning_type" if bits else "config.json, quantization_config",
            change="use finetuning_type lora or oft, or weights that are not quantized",
        )
    targets = given["lora_target"]
    names = [str(name).strip() for name in (targets.split(",") if isinstance(targets, str) else targets)]
    extra = str(given["additional_target"] or "")
    anchored = bool(given["use_asft_loss"]) and stage == "sft"
    own_loss = anchored or given.get("use_dft_loss") or given.get("use_eaft_loss")  # of logits, which are made then
    found = Physics(
        stage=stage,
        method=method,
        half="fp16" if given["fp16"] else "bf16",
        rank=int(given["lora_rank"]) if method == "lora" else 0,
        targets=frozenset() if "all" in names else frozenset(names),
        dropout=float(given["lora_dropout"]),
        dora=bool(given["use_dora"]),
        turned=int(given["oft_block_size"]) if method == "oft" else 0,
        sees=not given["freeze_vision_tower"] and method != "freeze",
        trains_ends="embed" in extra or "lm_head" in extra,
        quantization=shape.packed.bits if shape.packed else bits,
        double_quantization=shape.packed.double if shape.packed else bool(given["double_quantization"]),
        packed=shape.packed,
        trained_layers=int(given["freeze_trainable_layers"]) if method == "freeze" else None,
        checkpointing=_checkpointing(given),
        reentrant=bool(given["use_reentrant_gc"]) and engine.name != engines.FSDP2,
        attention=attention,
        fused=bool(given["enable_liger_kernel"] or given["use_unsloth"]),
        loss="plain" if own_loss else _loss(given, stage),
        padded=padded,
        biased=bool(given["neat_packing"]),
        layerwise=bool(
            (given["use_galore"] and given["galore_layerwise"]) or (given["use_apollo"] and given["apollo_layerwise"])
        ),
        anchored=anchored,
        reference=(stage in ("dpo", "kto", "ppo") and method != "lora" and given["pref_loss"] not in WITHOUT_REFERENCE)
        or (anchored and method != "lora")
        or bool(given["ref_model"]),
    )
    if given["use_badam"]:
        found = replace(found, trained_layers=-1)
    return _precision(found, given, engine)


def _padded(given: t.Mapping[str, t.Any], stage: str, batch: int) -> bool:
    """Whether attention gets a mask. Sequences that are packed neatly are kept apart by one, but with FlashAttention's
    own kernels (data/collator.py)."""
    if given["neat_packing"]:
        return str(given["flash_attn"]) != "fa2"
    return (batch > 1 or stage in PAIRED) and not _packed(given)


def _checkpointing(given: t.Mapping[str, t.Any]) -> str:
    """unsloth has its own, whatever is asked for (model/model_utils/unsloth.py)."""
    if given["disable_gradient_checkpointing"] and not given["use_unsloth"]:
        return "off"
    return "host" if given["use_unsloth_gc"] or given["use_unsloth"] else "on"


def _loss(given: t.Mapping[str, t.Any], stage: str) -> str:
    if stage not in ("pt", "sft"):
        return "plain"
    return "kept" if given["use_unsloth"] else "liger" if given["enable_liger_kernel"] else "plain"


def _packed(given: t.Mapping[str, t.Any]) -> bool:
    """All sequences are as long as they may be."""
    return bool(given["neat_packing"] or (given["stage"] == "pt" if given["packing"] is None else given["packing"]))


def _precision(physics: Physics, given: t.Mapping[str, t.Any], engine: Engine) -> Physics:
    if engine.half_weights:  # DeepSpeed casts the model, and nothing is left for autocast
        return replace(physics, autocast=False, outputs_in_full=False, trained_width=HALF, adapter_width=HALF)
    if given["pure_bf16"] or given["use_badam"]:
        mixed = bool(given["bf16"] or given["fp16"])
        return replace(physics, autocast=mixed, outputs_in_full=mixed, trained_width=HALF, adapter_width=HALF)
    if engine.buckets == "fsdp":  # weights are gathered in half
        return replace(physics, trained_width=HALF, adapter_width=HALF)
    if given["bf16"] or given["fp16"]:
        return physics
    return replace(physics, autocast=False, outputs_in_full=False)


def _optimizer(
    given: t.Mapping[str, t.Any], arguments: t.Mapping[str, t.Any], situation: Situation
) -> tuple[str, Optimizer]:
    name = str(given["optim"])
    if "optim" not in arguments and _version(situation.torch) < (2, 8):
        name = "adamw_torch"
    for key, other in (("use_badam", "badam"), ("use_adam_mini", "adam_mini"), ("use_muon", "muon")):
        name = other if given[key] else name
    galore = int(given["galore_rank"]) if given["use_galore"] else 0
    apollo = int(given["apollo_rank"]) if given["use_apollo"] else 0
    found = optimizers.find(name, galore, apollo)
    if found is None:
        raise FinetuneError(
            f"What optimizer {name} keeps is not known here.",
            where="args, key optim",
            change=f"use one of {', '.join(sorted(optimizers.OPTIMIZERS))}",
        )
    return ("galore" if galore else "apollo" if apollo else name), found


def _version(text: str) -> tuple[int, int]:
    numbers = [int("".join(filter(str.isdigit, part)) or 0) for part in text.split("+")[0].split(".")[:2]]
    return (numbers[0], numbers[1] if len(numbers) > 1 else 0)
