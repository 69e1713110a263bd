# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cases of the rules about Megatron and KTransformers. See cases.py for what the fields of a case are."""

from __future__ import annotations

from .situations import DPO, FULL, KTRANSFORMERS, MEGATRON, Case, lies

EIGHT = {**MEGATRON, "world_size": 8}
MOE = {**FULL, "pipeline_model_parallel_size": 4, "expert_model_parallel_size": 2}
OVERLAP = {**FULL, "overlap_param_gather": True, "overlap_grad_reduce": True}
MIXTURE = lies(type="qwen3_moe", architectures=["Qwen3MoeForCausalLM"])
DENSE = lies(type="qwen3", architectures=["Qwen3ForCausalLM"])

CASES: list[Case] = [
    ("no rank has one", FULL, {**MEGATRON, "gpus": False}, FULL, MEGATRON),
    ("no rank has one", {}, {**KTRANSFORMERS, "gpus": False}, {}, KTRANSFORMERS),
    ("pt, sft and dpo alone", {**FULL, "stage": "kto"}, MEGATRON, {**FULL, **DPO}, MEGATRON),
    ("trains all weights, whatever", {}, MEGATRON, FULL, MEGATRON),
    (
        "one copy of the model takes",
        {**FULL, "tensor_model_parallel_size": 3},
        EIGHT,
        {**FULL, "tensor_model_parallel_size": 4, "context_parallel_size": 2},
        EIGHT,
    ),
    ("one copy of the model takes", MOE, {**MEGATRON, "world_size": 6}, MOE, EIGHT),
    ("all experts take", MOE | {"expert_model_parallel_size": 4}, EIGHT, MOE, EIGHT),
    (
        "all experts take",
        {**FULL, "tensor_model_parallel_size": 4, "expert_model_parallel_size": 4},
        EIGHT,
        {**FULL, "tensor_model_parallel_size": 4, "expert_model_parallel_size": 4, "expert_tensor_parallel_size": 1},
        EIGHT,
    ),
    (
        "sequence_parallel is for",
        {**FULL, "sequence_parallel": True},
        EIGHT,
        {**FULL, "sequence_parallel": True, "tensor_model_parallel_size": 2},
        EIGHT,
    ),
    ("overlap_param_gather goes", OVERLAP, MEGATRON, {**OVERLAP, "use_distributed_optimizer": True}, MEGATRON),
    (
        "the dispatcher allgather",
        {**FULL, "variable_seq_lengths": True},
        MEGATRON,
        {**FULL, "variable_seq_lengths": True, "moe_token_dispatcher_type": "alltoall"},
        MEGATRON,
    ),
    ("seeds from 1 on", {**FULL, "seed": 0}, MEGATRON, {**FULL, "seed": 1}, MEGATRON),
    ("no Megatron for this type", FULL, {**MEGATRON, **lies(type="gpt_oss")}, FULL, {**MEGATRON, **DENSE}),
    ("LoRA adapters or all weights", {"finetuning_type": "freeze"}, KTRANSFORMERS, FULL, KTRANSFORMERS),
    ("none from a hub", {"adapter_name_or_path": "o/a"}, KTRANSFORMERS, {"adapter_name_or_path": "/a"}, KTRANSFORMERS),
    ("neither compute_accuracy", {"compute_accuracy": True}, KTRANSFORMERS, {}, KTRANSFORMERS),
    ("goes by disable_gradient", {"gradient_checkpointing": True}, KTRANSFORMERS, {}, KTRANSFORMERS),
    (
        "needs gradient checkpointing",
        {"kt_cpu_activation": "recompute", "disable_gradient_checkpointing": True},
        KTRANSFORMERS,
        {"kt_cpu_activation": "retain", "disable_gradient_checkpointing": True},
        KTRANSFORMERS,
    ),
    (
        "kt_config has keys",
        {"kt_config": {"kt_backend": "auto", "lora_rank": 8}},
        KTRANSFORMERS,
        {"kt_config": {"kt_backend": "auto", "kt_num_threads": 96}},
        KTRANSFORMERS,
    ),
    ("kt_config has keys", {"kt_config": {"kt_weight_path": "/w"}}, KTRANSFORMERS, {}, KTRANSFORMERS),
    ("for none like this model", {}, {**KTRANSFORMERS, **DENSE}, {}, {**KTRANSFORMERS, **MIXTURE}),
    ("which the demo's model is not", {}, {**KTRANSFORMERS, "model": "demo"}, {}, {**KTRANSFORMERS, "model": "o/m"}),
    (
        "not go with unsloth",
        {"use_unsloth_gc": True},
        KTRANSFORMERS,
        {"use_unsloth_gc": False},
        KTRANSFORMERS,
    ),
    (
        "several adapters",
        {"adapter_name_or_path": "/a,/b"},
        KTRANSFORMERS,
        {"adapter_name_or_path": "/a"},
        KTRANSFORMERS,
    ),
]
