# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""LLaMA-Factory's keys that estimates look at, those they know nothing of, and their defaults."""

from __future__ import annotations

import typing as t

DEFAULTS: dict[str, t.Any] = {
    "additional_target": None,
    "apollo_layerwise": False,
    "apollo_rank": 16,
    "badam_mode": "layer",
    "bf16": False,
    "compute_accuracy": False,
    "create_new_adapter": False,
    "cutoff_len": 2048,
    "disable_gradient_checkpointing": False,
    "do_eval": False,
    "double_quantization": True,
    "enable_liger_kernel": False,
    "eval_strategy": "no",
    "finetuning_type": "lora",
    "flash_attn": "auto",
    "fp16": False,
    "freeze_trainable_layers": 2,
    "freeze_vision_tower": True,
    "galore_layerwise": False,
    "galore_rank": 16,
    "gradient_accumulation_steps": 1,
    "image_max_pixels": 589824,
    "lora_dropout": 0.0,
    "lora_rank": 8,
    "lora_target": "all",
    "max_new_tokens": 1024,
    "neat_packing": False,
    "oft_block_size": 32,
    "optim": "adamw_torch_fused",
    "packing": None,
    "per_device_eval_batch_size": 8,
    "per_device_train_batch_size": 8,
    "pref_loss": "sigmoid",
    "pure_bf16": False,
    "quantization_bit": None,
    "quantization_method": "bnb",
    "ref_model": None,
    "reward_model_type": "lora",
    "stage": "sft",
    "use_adam_mini": False,
    "use_apollo": False,
    "use_asft_loss": False,
    "use_badam": False,
    "use_dora": False,
    "use_galore": False,
    "use_kt": False,
    "use_mca": False,
    "use_muon": False,
    "use_reentrant_gc": True,
    "use_unsloth": False,
    "use_unsloth_gc": False,
    "val_size": 0.0,
}
"""Of LLaMA-Factory 0.9.5, for the keys that are looked at."""

UNSEEN: dict[str, t.Any] = {
    "adapter_name_or_path": None,
    "apollo_target": "all",
    "fp8": False,
    "freeze_extra_modules": None,
    "freeze_language_model": False,
    "freeze_multi_modal_projector": True,
    "galore_target": "all",
    "mixture_of_depths": None,
    "predict_with_generate": False,
    "resize_vocab": False,
    "shift_attn": False,
    "torch_compile": False,
    "upcast_layernorm": False,
    "upcast_lmhead_output": False,
    "use_dft_loss": False,
    "use_eaft_loss": False,
}
"""Keys that change what is kept, and of which estimates know nothing, with their defaults."""

UNKNOWN = {"use_kt": "KTransformers", "use_mca": "Megatron"}
"""Keys of what keeps other things on a GPU than is walked here, and its name."""
