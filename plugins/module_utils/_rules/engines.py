# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Megatron and KTransformers, which have trainers and keys of their own."""

from __future__ import annotations

import math
import typing as t

from .._parallel import MODEL_SIZES
from .rule import Rule, View, remove

_WORKFLOW = "train/mca/workflow.py"
_ARGUMENTS = "mcore_adapter training_args.py"
_KT_ARGUMENTS = "hparams/model_args.py KTransformersArguments"
_KT_KERNEL = "kt-kernel kt_kernel/sft"

_MEGATRON_MODELS = (
    *("deepseek_v3", "glm4_moe", "llama", "mistral", "mixtral", "qwen2", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
    *("qwen3_vl_moe", "qwen3", "qwen3_moe", "qwen3_next", "qwen3_5", "qwen3_5_moe"),
)
"""extras/constants.py"""
_KT_MODELS = (
    *("DeepseekV2", "DeepseekV3", "DeepseekV4", "KimiK2"),
    *("Qwen2Moe", "Qwen3Moe", "Qwen3VLMoe", "Qwen3_5Moe", "Glm4Moe", "Mixtral"),
)
"""What the names of architectures contain: mixtures of experts."""
_KT_CONFIG = (
    *("kt_backend", "kt_expert_weight_format", "kt_force_fused_expert_lora", "kt_max_cache_depth"),
    *("kt_model_max_length", "kt_num_gpu_experts", "kt_num_threads", "kt_share_backward_bb", "kt_share_cache_pool"),
    *("kt_threadpool_count", "kt_tp_enabled", "kt_weight_lifecycle"),
)
"""Fields of KTConfig that neither LLaMA-Factory's keys decide nor KTransformers itself."""


def _product(c: View, *keys: str) -> int:
    return math.prod(c[key] or 1 for key in keys)


def _experts(c: View) -> int:
    """Ranks that hold all experts once: their tensor groups are as large as the others where nothing is said."""
    tensor = c["expert_tensor_parallel_size"] or c["tensor_model_parallel_size"] or 1
    return int(tensor * _product(c, "expert_model_parallel_size", "pipeline_model_parallel_size"))


def _other_architecture(c: View) -> bool:
    known = c.now.weights.architectures
    return bool(known) and not any(name in architecture for architecture in known for name in _KT_MODELS)


RULES: t.Tuple[Rule, ...] = (
    Rule(
        ("train_gpus", "train_engine"),
        lambda c: c.now.engine.gpus_alone and not c.now.gpus,
        "this engine runs on GPUs alone, and no rank has one",
        "take GPUs, or choose another train_engine",
        "megatron-core, kt-kernel",
    ),
    Rule(
        ("stage", "train_engine"),
        lambda c: c.megatron and c["stage"] not in ("pt", "sft", "dpo"),
        "with Megatron LLaMA-Factory has the stages pt, sft and dpo alone",
        "choose another train_engine",
        "train/tuner.py",
    ),
    Rule(
        ("finetuning_type", "train_engine"),
        lambda c: c.megatron and c["finetuning_type"] != "full",
        "with Megatron LLaMA-Factory trains all weights, whatever finetuning_type says",
        "set finetuning_type: full, or choose another train_engine",
        _WORKFLOW,
    ),
    Rule(
        (*MODEL_SIZES, "train_gpus"),
        lambda c: c.megatron and c.now.world_size % _product(c, *MODEL_SIZES),
        "one copy of the model takes tensor × pipeline × context parallel ranks, of which the number of ranks is no "
        "multiple",
        lambda c: f"let the product divide {c.now.world_size}, or choose other GPUs with train_gpus",
        "megatron-core parallel_state.py initialize_model_parallel",
    ),
    Rule(
        ("expert_model_parallel_size", "expert_tensor_parallel_size", "train_gpus"),
        lambda c: c.megatron and c.now.world_size % _experts(c),
        "all experts take expert tensor × expert × pipeline parallel ranks, and the number of ranks is no multiple of "
        "that",
        lambda c: f"let the product divide {c.now.world_size}; expert_tensor_parallel_size: 1 splits no expert",
        "megatron-core parallel_state.py initialize_model_parallel",
    ),
    Rule(
        ("sequence_parallel", "tensor_model_parallel_size"),
        lambda c: c.megatron and c["sequence_parallel"] and (c["tensor_model_parallel_size"] or 1) < 2,
        "sequence_parallel is for tensor parallel ranks, and there are none",
        remove("sequence_parallel", after=", or set tensor_model_parallel_size"),
        "megatron-core model_parallel_config.py",
    ),
    Rule(
        ("overlap_param_gather", "use_distributed_optimizer", "overlap_grad_reduce"),
        lambda c: (
            c.megatron
            and c["overlap_param_gather"]
            and not (c["use_distributed_optimizer"] and c["overlap_grad_reduce"])
        ),
        "overlap_param_gather goes with use_distributed_optimizer and overlap_grad_reduce alone",
        remove("overlap_param_gather", before="set both, or "),
        _ARGUMENTS,
    ),
    Rule(
        ("variable_seq_lengths", "moe_token_dispatcher_type"),
        lambda c: c.megatron and c["variable_seq_lengths"] and c["moe_token_dispatcher_type"] == "allgather",
        "variable_seq_lengths does not go with the dispatcher allgather",
        "set moe_token_dispatcher_type: alltoall",
        _ARGUMENTS,
    ),
    Rule(
        ("seed",),
        lambda c: c.megatron and c["seed"] < 1,
        "Megatron takes seeds from 1 on",
        "set seed: 1 or more",
        "mcore_adapter initialize.py",
    ),
    Rule(
        ("train_model",),
        lambda c: c.megatron and c.now.weights.type and c.now.weights.type not in _MEGATRON_MODELS,
        "LLaMA-Factory has no Megatron for this type of model",
        "choose another train_engine, or one of " + ", ".join(_MEGATRON_MODELS),
        f"{_WORKFLOW}, extras/constants.py",
    ),
    Rule(
        ("finetuning_type", "train_engine"),
        lambda c: c.ktransformers and c["finetuning_type"] not in ("lora", "full"),
        "KTransformers trains LoRA adapters or all weights",
        "set finetuning_type: lora",
        _KT_ARGUMENTS,
    ),
    Rule(
        ("adapter_name_or_path",),
        lambda c: c.ktransformers and any(not path.startswith("/") for path in c.words("adapter_name_or_path")),
        "KTransformers takes an adapter from a folder alone, and none from a hub",
        "name the full path of its folder on the nodes",
        _KT_ARGUMENTS,
    ),
    Rule(
        ("compute_accuracy", "predict_with_generate"),
        lambda c: c.ktransformers and c["stage"] == "sft" and (c["compute_accuracy"] or c["predict_with_generate"]),
        "KTransformers has neither compute_accuracy nor predict_with_generate",
        remove("compute_accuracy", "predict_with_generate"),
        "train/sft/workflow.py",
    ),
    Rule(
        ("gradient_checkpointing", "gradient_checkpointing_kwargs"),
        lambda c: c.ktransformers and (c["gradient_checkpointing"] or c["gradient_checkpointing_kwargs"] is not None),
        "KTransformers goes by disable_gradient_checkpointing alone",
        remove("gradient_checkpointing", "gradient_checkpointing_kwargs"),
        _KT_ARGUMENTS,
    ),
    Rule(
        ("kt_cpu_activation", "disable_gradient_checkpointing"),
        lambda c: c.ktransformers and c["kt_cpu_activation"] == "recompute" and c["disable_gradient_checkpointing"],
        "kt_cpu_activation: recompute needs gradient checkpointing",
        "set kt_cpu_activation: retain",
        _KT_ARGUMENTS,
    ),
    Rule(
        ("kt_config",),
        lambda c: c.ktransformers and isinstance(c["kt_config"], dict) and c["kt_config"].keys() - set(_KT_CONFIG),
        "kt_config has keys that KTransformers does not know, or that are keys of LLaMA-Factory's own",
        "keep of it " + ", ".join(_KT_CONFIG),
        f"{_KT_KERNEL}/config.py, {_KT_ARGUMENTS}",
    ),
    Rule(
        ("train_model",),
        lambda c: c.ktransformers and _other_architecture(c),
        "KTransformers is for mixtures of experts, and for none like this model",
        "choose another train_engine, or a model of one of " + ", ".join(_KT_MODELS),
        f"{_KT_KERNEL}/arch.py",
    ),
    Rule(
        ("train_model",),
        lambda c: c.ktransformers and c.now.model == "demo",
        "KTransformers is for mixtures of experts, which the demo's model is not",
        "name another model, or choose another train_engine",
        f"{_KT_KERNEL}/arch.py",
    ),
    Rule(
        ("use_unsloth", "use_unsloth_gc"),
        lambda c: c.ktransformers and (c["use_unsloth"] or c["use_unsloth_gc"]),
        "KTransformers does not go with unsloth",
        remove("use_unsloth", "use_unsloth_gc"),
        _KT_ARGUMENTS,
    ),
)
