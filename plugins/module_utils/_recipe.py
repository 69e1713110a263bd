# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recipes: named sets of LLaMA-Factory's keys. The values are starting points that `train_args` overrides."""

from __future__ import annotations

import typing as t

from ._errors import FinetuneError

LLAMAFACTORY = {"main": "0.9.5", "ppo": "0.9.3", "megatron": "0.9.5", "ktransformers": "0.9.6.dev0"}
"""By environment: the version that its lock pins, whose keys and templates are in roles/train/files."""
UNLOCKED = {"megatron": ("mcore-adapter", "megatron-core")}
"""Environments without a lock in requirements/, and what a site's own lock has besides LLaMA-Factory: mcore-adapter is
made from its sources, and what the public registry has under that name (0.0.1) is empty."""


def environment(stage: t.Any, own: str = "") -> str:
    """The environment of a stage, whose lock is requirements/node-<environment>.txt: PPO is alone, with the only trl
    that its trainer can be imported with. own: that of the engine, which goes before."""
    return own or ("ppo" if stage == "ppo" else "main")


class Recipe(t.NamedTuple):
    purpose: str
    hardware: str
    arguments: dict[str, t.Any]


_EVERY_RUN: dict[str, t.Any] = {
    "do_train": True,
    "cutoff_len": 2048,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "num_train_epochs": 3,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "logging_steps": 10,
    "save_steps": 100,
    "save_total_limit": 2,
    "plot_loss": True,
    "report_to": "none",
}

_ADAPTER: dict[str, t.Any] = {"finetuning_type": "lora", "lora_rank": 8, "lora_target": "all"}

RECIPES: dict[str, Recipe] = {
    "lora_sft": Recipe(
        purpose="supervised fine-tuning of a low-rank adapter",
        hardware="one GPU that holds the model in 16 bits, or a CPU for small models",
        arguments={
            **_EVERY_RUN,
            "stage": "sft",
            **_ADAPTER,
            "learning_rate": 1e-4,
        },
    ),
    "qlora_sft": Recipe(
        purpose="supervised fine-tuning of a low-rank adapter on a model quantized to 4 bits",
        hardware="one GPU that holds a quarter of the model in 16 bits, or a CPU for small models",
        arguments={
            **_EVERY_RUN,
            "stage": "sft",
            **_ADAPTER,
            "quantization_bit": 4,
            "quantization_method": "bnb",
            "learning_rate": 1e-4,
        },
    ),
    "dpo": Recipe(
        purpose="direct preference optimization of a low-rank adapter, from pairs of a chosen and a rejected answer",
        hardware="one GPU that holds the model in 16 bits and two sequences, or a CPU for small models",
        arguments={
            **_EVERY_RUN,
            "stage": "dpo",
            **_ADAPTER,
            "pref_beta": 0.1,
            "pref_loss": "sigmoid",
            "learning_rate": 5e-6,
        },
    ),
    "reward": Recipe(
        purpose="reward model from pairs of a chosen and a rejected answer: an adapter and a value head",
        hardware="one GPU that holds the model in 16 bits, or a CPU for small models",
        arguments={
            **_EVERY_RUN,
            "stage": "rm",
            **_ADAPTER,
            "learning_rate": 1e-4,
        },
    ),
    "ppo": Recipe(
        purpose="reinforcement learning of a low-rank adapter by PPO: answers to prompts, scored by a reward model",
        hardware="one GPU that holds the model in 16 bits and the answers it generates, or a CPU for small models",
        arguments={
            **_EVERY_RUN,
            "stage": "ppo",
            **_ADAPTER,
            "reward_model_type": "lora",
            "max_new_tokens": 512,
            "top_k": 0,
            "top_p": 0.9,
            "learning_rate": 1e-5,
        },
    ),
    "full_sft": Recipe(
        purpose="supervised fine-tuning of all weights",
        hardware="about 18 bytes of GPU memory per parameter, or a CPU for small models",
        arguments={**_EVERY_RUN, "stage": "sft", "finetuning_type": "full", "learning_rate": 1e-5},
    ),
}


def find(name: str) -> Recipe:
    """The recipe of that name; an unknown name is refused with the ones there are."""
    try:
        return RECIPES[name]
    except KeyError:
        raise FinetuneError(
            f"There is no recipe {name!r}.", where="train_recipe", change="use one of " + ", ".join(RECIPES)
        ) from None
