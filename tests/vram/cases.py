# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is measured on a GPU: configurations of which each settles something that is only planned, and the pairs whose
speed is compared. In LLaMA-Factory's keys."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from ansible_collections.llmops.finetune.plugins.module_utils._vram import choose, hardware, speed
from ansible_collections.llmops.finetune.plugins.module_utils._vram.options import Situation
from ansible_collections.llmops.finetune.plugins.plugin_utils import _recipes

Keys = dict[str, t.Any]


@dataclass(frozen=True)
class Case:
    name: str
    model: str
    """Of a file in tests/vram/configs; empty for what is there before any model."""
    keys: Keys = field(default_factory=dict)
    padded: bool = False
    """Every second record is short, so that batches have a mask."""
    expandable: bool = True
    """As in runs of this collection."""
    settles: int = 2
    """Steps before those that are read."""
    steps: int = 1
    """Steps that are read."""
    history: bool = False
    """All that is allocated in these is written down."""

    @property
    def arguments(self) -> Keys:
        return {**BASE, **self.keys}


BASE: Keys = {
    "stage": "sft",
    "finetuning_type": "lora",
    "lora_target": "all",
    "bf16": True,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "cutoff_len": 2048,
}


def _keys(batch: int, length: int, **more: t.Any) -> Keys:
    return {"per_device_train_batch_size": batch, "cutoff_len": length, **more}


_PURE: Keys = {"finetuning_type": "full", "pure_bf16": True, "bf16": False}
_FULL: Keys = {"finetuning_type": "full"}
_PLAIN: Keys = {"disable_gradient_checkpointing": True}
_LLAMA, _SMALL = "llama3-8b", "qwen2.5-0.5b"

PLAN = (
    Case("01 context and workspaces", ""),
    Case("02 all weights in half", _SMALL, _PURE),
    Case("03 without checkpoints", _SMALL, {**_PURE, **_PLAIN}),
    Case("04 all weights, autocast", _SMALL, _FULL),
    Case("05 without checkpoints", _SMALL, {**_FULL, **_PLAIN}),
    Case("06 foreach", _SMALL, _keys(4, 2048, **_FULL, optim="adamw_torch")),
    Case("07 accumulation", _SMALL, _keys(4, 2048, **_FULL, gradient_accumulation_steps=2)),
    Case("08 tied, many words", "llama3.2-1b", _keys(8, 1024, **_FULL)),
    Case("09 long", "llama3.2-1b", _keys(1, 8192, **_FULL)),
    Case("10 short", "llama3.2-1b", _keys(4, 512, **_FULL)),
    Case("11 adapters", _LLAMA, history=True),
    Case("12 a larger batch", _LLAMA, _keys(4, 2048)),
    Case("13 long", _LLAMA, _keys(1, 8192)),
    Case("14 without checkpoints", _LLAMA, _PLAIN),
    Case("15 rank and dropout", _LLAMA, _keys(1, 1024, **_PLAIN, lora_rank=64, lora_dropout=0.05)),
    Case("16 eager attention", _LLAMA, _keys(1, 1024, **_PLAIN, flash_attn="disabled")),
    Case("17 a mask", _LLAMA, _keys(4, 2048), padded=True),
    Case("18 4 bits", _LLAMA, {"quantization_bit": 4}),
    Case("19 4 bits without checkpoints", _LLAMA, {"quantization_bit": 4, **_PLAIN}),
    Case("20 all weights in half", _LLAMA, _PURE),
    Case("21 very long", _LLAMA, _keys(1, 16384, **_PURE)),
    Case("22 all weights, autocast", _LLAMA, _FULL),
    Case("23 segments that grow", "qwen2.5-7b", _keys(4, 2048)),
    Case("24 segments that do not", "qwen2.5-7b", _keys(4, 2048), expandable=False),
    Case("25 norms of queries and keys", "qwen3-4b", _keys(2, 2048, **_PURE)),
    Case("26 dpo", _LLAMA, _keys(1, 1024, stage="dpo")),
    Case("27 some layers", _LLAMA, {"finetuning_type": "freeze", "freeze_trainable_layers": 2}),
    Case("28 Liger's kernels", _LLAMA, _keys(4, 2048, enable_liger_kernel=True)),
)

RACES = (("lora_sft", _LLAMA), ("full_sft", _SMALL), ("qlora_sft", "qwen2.5-7b"))
"""Recipe and model, as their plain defaults have them and as the planner would."""
READ = ("stage", "finetuning_type", "cutoff_len", choose.MICRO, choose.ACCUMULATION, "lora_rank", "lora_target")
QUANTIZED = (choose.BITS, "quantization_method")


def race(recipe: str, model: str, config: t.Mapping[str, t.Any], gpu: hardware.Gpu, free: int) -> tuple[Case, Case]:
    """The plain one and the chosen one, of the same samples in an optimizer step. free: bytes of the GPU."""
    given = _recipes.read()[recipe].arguments
    plain = {key: given[key] for key in (*READ, *QUANTIZED) if key in given} | {"bf16": gpu.bf16, "fp16": not gpu.bf16}
    run = choose.Run(
        config,
        plain,
        Situation(engine="ddp", gpu=gpu),
        free,
        plain[choose.MICRO] * plain[choose.ACCUMULATION],
        open=frozenset(choose.OPEN),
        card=speed.card(gpu.name),
    )
    chosen = choose.choose(run).chosen
    keys = chosen.option.over(plain) if chosen else plain
    named = f"{recipe} {model}"
    return (
        Case(f"{named} plain", model, plain, steps=3),
        Case(f"{named} chosen", model, {key: value for key, value in keys.items() if value is not None}, steps=3),
    )
