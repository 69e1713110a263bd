# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every row of the rules: arguments that break it, and the least change that is taken."""

from __future__ import annotations

import runpy
import typing as t

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _model, _recipe, _rules, _schema, _sources
from ansible_collections.llmops.finetune.plugins.module_utils._engine import base_model
from ansible_collections.llmops.finetune.plugins.module_utils._parallel import Engine

from ..conftest import REPOSITORY

SCHEMAS = _sources.schemas()
MAIN = SCHEMAS["main"]
BASE: dict[str, t.Any] = {"stage": "sft", "finetuning_type": "lora", "do_train": True, "report_to": "none"}
FULL = {"finetuning_type": "full"}
GALORE = {**FULL, "use_galore": True, "optim": "adamw_torch"}
APOLLO = {**FULL, "use_apollo": True, "optim": "adamw_torch"}
BADAM = {**FULL, "use_badam": True}
BITS = {"quantization_bit": 4}
STREAM = {"streaming": True, "max_steps": 9, "dataloader_num_workers": 1}
PPO = {"stage": "ppo", "reward_model": "/reward"}
DPO = {"stage": "dpo"}
HEAD, ADAPTER = frozenset(["value_head.safetensors"]), frozenset(["adapter_config.json"])
HELD_OUT = {"eval_datasets": 1}
FREEZE = {"finetuning_type": "freeze"}
PRO = {**FREEZE, "use_llama_pro": True}
PACKED = {"neat_packing": True, "flash_attn": "fa2", "per_device_train_batch_size": 1}
BEST = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 500}
ZERO3 = {"engine": Engine(zero_stage=3)}
OFFLOAD = {"engine": Engine(zero_stage=2, offload=True)}
FSDP = {"engine": Engine(fsdp=True)}
WITH = "packages"
"""In a situation: packages besides those of the lock."""


def lies(**known: t.Any) -> dict[str, t.Any]:
    """A situation in which this is known of the model."""
    return {"weights": _model.Model(**known)}


GPTQ = lies(quantized="gptq")
READS_GPTQ = {**GPTQ, WITH: ["gptqmodel"]}
QWEN3 = lies(type="qwen3", layers=28, length=4096, first_length=4096)

Case = tuple[str, dict[str, t.Any], dict[str, t.Any], dict[str, t.Any], dict[str, t.Any]]
"""What the row says, breaking arguments and situation, repaired arguments and situation."""

CASES: list[Case] = [
    ("image_max_pixels is smaller", {"image_max_pixels": 9}, {}, {"image_max_pixels": 2000}, {}),
    ("video_max_pixels is smaller", {"video_max_pixels": 9}, {}, {"video_max_pixels": 2000}, {}),
    (
        "quantizing an export",
        {"export_quantization_bit": 4},
        {},
        {"export_quantization_bit": 4, "export_quantization_dataset": "d"},
        {},
    ),
    (
        "by slow tokenizers",
        {**PPO, "split_special_tokens": True},
        {},
        {**PPO, "split_special_tokens": True, "use_fast_tokenizer": False},
        {},
    ),
    ("dies on a list", {"adapter_name_or_path": ["/a"]}, {}, {"adapter_name_or_path": "/a"}, {}),
    ("an adapter goes with", {**FULL, "adapter_name_or_path": "/a"}, {}, {"adapter_name_or_path": "/a"}, {}),
    ("several adapters", {**BITS, "adapter_name_or_path": "/a,/b"}, {}, {**BITS, "adapter_name_or_path": "/a"}, {}),
    ("several adapters", {"adapter_name_or_path": "/a,/b"}, ZERO3, {"adapter_name_or_path": "/a,/b"}, {}),
    ("fa3", {"flash_attn": "fa3"}, {}, {"flash_attn": "sdpa"}, {}),
    ("no flash-attn", {"flash_attn": "fa2"}, {}, {"flash_attn": "fa2"}, {WITH: ["flash-attn"]}),
    ("on GPUs alone", {"enable_liger_kernel": True}, {}, {"enable_liger_kernel": True}, {"gpus": True}),
    ("huggingface alone", {"infer_backend": "vllm"}, {}, {"infer_backend": "huggingface"}, {}),
    ("KTransformers trains", {**FULL, "use_kt": True}, {WITH: ["kt-kernel"]}, {"use_kt": True}, {WITH: ["kt-kernel"]}),
    (
        "unsloth does not",
        {"use_unsloth": True},
        {**ZERO3, WITH: ["unsloth"]},
        {"use_unsloth": True},
        {WITH: ["unsloth"]},
    ),
    (
        "KTransformers does not",
        {"use_kt": True},
        {**ZERO3, WITH: ["kt-kernel"]},
        {"use_kt": True},
        {WITH: ["kt-kernel"]},
    ),
    ("trained with LoRA or OFT", {**BITS, **FULL}, {}, BITS, {}),
    ("bnb, hqq or eetq", {**BITS, "quantization_method": "gptq"}, {}, BITS, {}),
    ("no such width", {"quantization_bit": 3}, {}, BITS, {}),
    ("only 4-bit bnb", {"quantization_bit": 8}, ZERO3, BITS, ZERO3),
    ("only 4-bit bnb", {"quantization_bit": 8}, FSDP, BITS, FSDP),
    ("PiSSA cannot start from", {**BITS, "pissa_init": True}, {}, {"pissa_init": True}, {}),
    ("cannot be resized", {**BITS, "add_tokens": "a"}, {}, {"add_tokens": "a"}, {}),
    (
        "no new adapter",
        {**BITS, "adapter_name_or_path": "/a", "create_new_adapter": True},
        {},
        {**BITS, "adapter_name_or_path": "/a"},
        {},
    ),
    ("places the model itself", {**BITS, "quantization_device_map": "auto"}, {}, BITS, {}),
    ("DoRA refuses", {**BITS, "use_dora": True}, {}, {"use_dora": True}, {}),
    ("FP8 training", {**BITS, "fp8": True}, {WITH: ["torchao"]}, {"fp8": True}, {WITH: ["torchao"]}),
    ("reference model is", {"ref_model_quantization_bit": 3}, {}, {"ref_model_quantization_bit": 8}, {}),
    ("reward model is quantized", {"reward_model_quantization_bit": 3}, {}, {"reward_model_quantization_bit": 8}, {}),
    ("split off or given", {"val_size": 0.1}, HELD_OUT, {"val_size": 0.1}, {}),
    (
        "nothing to mix_strategy",
        {"interleave_probs": "0.5,0.5"},
        {"datasets": 2},
        {"interleave_probs": "0.5,0.5", "mix_strategy": "interleave_under"},
        {"datasets": 2},
    ),
    (
        "one number per dataset",
        {"interleave_probs": "0.5,0.5", "mix_strategy": "interleave_under"},
        {"datasets": 3},
        {"interleave_probs": "0.5,0.3,0.2", "mix_strategy": "interleave_under"},
        {"datasets": 3},
    ),
    ("no known length", {**STREAM, "val_size": 0.1}, {}, {**STREAM, "val_size": 10}, {}),
    ("max_samples does not", {**STREAM, "max_samples": 9}, {}, STREAM, {}),
    ("no known end", {**STREAM, "max_steps": -1}, {}, STREAM, {}),
    ("stored in tokenized_path", {**STREAM, "tokenized_path": "/t"}, {}, {"tokenized_path": "/t"}, {}),
    ("no worker reads", {**STREAM, "dataloader_num_workers": 0}, {}, STREAM, {}),
    ("masks what the other", {"mask_history": True, "train_on_prompt": True}, {}, {"mask_history": True}, {}),
    ("no such template", {"template": "qwen33"}, {}, {"template": "qwen3"}, {}),
    ("no such template", {"template": ""}, {}, {"template": "empty"}, {}),
    ("nothing of a text", {"cutoff_len": 0}, {}, {"cutoff_len": 1}, {}),
    ("nothing of a text", {"cutoff_len": 1, "packing": True}, {}, {"cutoff_len": 2, "packing": True}, {}),
    ("val_size is below 0", {"val_size": -0.1}, {}, {"val_size": 0.1}, {}),
    ("no record to train on", {"val_size": 9}, {"records": 9}, {"val_size": 9}, {"records": 10}),
    ("no record to train on", {"val_size": 0.1}, {"records": 1}, {"val_size": 0.1}, {"records": 2}),
    (
        "no record to train on",
        {"val_size": 9, "max_samples": 9},
        {"records": 10},
        {"val_size": 9, "max_samples": 9},
        {"records": 18, "datasets": 2},
    ),
    ("no record to train on", {"val_size": 1.0}, {}, {"val_size": 1}, {}),
    ("no record of a dataset", {"max_samples": 0}, {}, {"max_samples": 1}, {}),
    (
        "preprocessing_num_workers is",
        {"preprocessing_num_workers": 0},
        {},
        {"preprocessing_num_workers": 1},
        {},
    ),
    (
        "end of text elsewhere",
        {"template": "glm4", "train_on_prompt": True},
        {},
        {"template": "llama3", "train_on_prompt": True},
        {},
    ),
    (
        "empty thoughts",
        {"template": "qwen3"},
        {"model": "Qwen/Qwen3-4B-Instruct-2507"},
        {"template": "qwen3_nothink"},
        {"model": "Qwen/Qwen3-4B-Instruct-2507"},
    ),
    ("template is for text", {"template": "llama3"}, {"media": True}, {"template": "qwen2_vl"}, {"media": True}),
    (
        "batches of a stream",
        STREAM,
        {"world_size": 2},
        {**STREAM, "accelerator_config": {"dispatch_batches": False}},
        {"world_size": 2},
    ),
    (
        "one packed sequence",
        {**PACKED, "per_device_train_batch_size": 2},
        {WITH: ["flash-attn"]},
        PACKED,
        {WITH: ["flash-attn"]},
    ),
    ("weights of the model are not", {}, lies(absent=["model.safetensors"]), {}, lies()),
    (
        "weights of the model are not",
        {},
        lies(absent=["model.safetensors"]),
        {"train_from_scratch": True},
        lies(absent=["model.safetensors"]),
    ),
    ("sharded by ZeRO-3 or FSDP", {}, {**READS_GPTQ, **ZERO3}, {}, READS_GPTQ),
    ("sharded by ZeRO-3 or FSDP", {}, {**READS_GPTQ, **FSDP}, {}, {**lies(quantized="fp8"), **FSDP}),
    ("quantized weights are trained", FULL, READS_GPTQ, {}, READS_GPTQ),
    ("quantized weights are trained", FREEZE, READS_GPTQ, FREEZE, lies(quantized="mxfp4")),
    ("PiSSA cannot start from quantized weights", {"pissa_init": True}, READS_GPTQ, {"pissa_init": True}, QWEN3),
    ("DoRA refuses quantized weights", {"use_dora": True}, READS_GPTQ, {"use_dora": True}, QWEN3),
    ("several adapters", {"adapter_name_or_path": "/a,/b"}, READS_GPTQ, {"adapter_name_or_path": "/a"}, READS_GPTQ),
    ("quantized already", BITS, READS_GPTQ, BITS, QWEN3),
    ("quantized with gptq", {}, GPTQ, {}, READS_GPTQ),
    ("quantized with gptq", {}, {"model": "org/m-GPTQ"}, {}, {"model": "org/m-GPTQ", WITH: ["gptqmodel"]}),
    ("quantized with gptq", {}, {"model": "org/m_gptq_4bit"}, {}, {"model": "/srv/m-gptq", **QWEN3}),
    ("quantized with awq", {}, lies(quantized="awq"), {}, {**lies(quantized="awq"), WITH: ["autoawq"]}),
    ("quantized with aqlm", {}, lies(quantized="aqlm"), {}, {**lies(quantized="aqlm"), WITH: ["aqlm"]}),
    ("does not divide", {**PRO, "freeze_trainable_layers": 8}, QWEN3, {**PRO, "freeze_trainable_layers": 7}, QWEN3),
    ("does not divide", {**PRO, "freeze_trainable_layers": 0}, QWEN3, {**PRO, "freeze_trainable_layers": 28}, QWEN3),
    (
        "fewer layers",
        {**FREEZE, "freeze_trainable_layers": -29},
        QWEN3,
        {**FREEZE, "freeze_trainable_layers": -28},
        QWEN3,
    ),
    ("no layer to train", {**FREEZE, "freeze_trainable_layers": 0}, {}, {**FREEZE, "freeze_trainable_layers": 1}, {}),
    (
        "no layer of the model has such a module",
        {**FREEZE, "freeze_trainable_modules": "mlp,self_atn"},
        lies(parts=["mlp", "self_attn"]),
        {**FREEZE, "freeze_trainable_modules": "mlp,self_attn"},
        lies(parts=["mlp", "self_attn"]),
    ),
    (
        "no such module beside its layers",
        {**FREEZE, "freeze_extra_modules": "wte"},
        lies(others=["embed_tokens", "norm"]),
        {**FREEZE, "freeze_extra_modules": "embed_tokens"},
        lies(others=["embed_tokens", "norm"]),
    ),
    (
        "none of these modules",
        {"lora_target": "query_key_value"},
        lies(modules=["q_proj", "v_proj"]),
        {"lora_target": ["self_attn.q_proj"]},
        lies(modules=["q_proj", "v_proj"]),
    ),
    ("passes over rope_scaling", {"rope_scaling": "yarn"}, QWEN3, {"rope_scaling": "yarn", "cutoff_len": 8192}, QWEN3),
    (
        "passes over rope_scaling",
        {"rope_scaling": "yarn", "cutoff_len": 4096},
        lies(length=8192, first_length=4096),
        {"rope_scaling": "yarn", "cutoff_len": 4097},
        lies(length=8192, first_length=4096),
    ),
    ("not made for texts", {"cutoff_len": 4097}, QWEN3, {"cutoff_len": 4096}, QWEN3),
    ("not made for texts", {"cutoff_len": 4097}, QWEN3, {"cutoff_len": 4097, "rope_scaling": "yarn"}, QWEN3),
    ("shift_attn needs", {"shift_attn": True}, {}, {"shift_attn": True}, {WITH: {"transformers": "4.47.1"}}),
    ("transformers 5.6.0", {"flash_attn": "fa2"}, {WITH: {"transformers": "5.6.0", "flash-attn": "2"}}, {}, {}),
    ("are for NPUs", {"use_v1_kernels": True}, {}, {}, {}),
    (
        "liger has no kernels",
        {"enable_liger_kernel": True},
        {"gpus": True, **lies(type="bloom")},
        {"enable_liger_kernel": True},
        {"gpus": True, **QWEN3},
    ),
    (
        "does not know this kind",
        {"mixture_of_depths": "convert"},
        {**QWEN3, WITH: ["mixture-of-depth"]},
        {"mixture_of_depths": "convert"},
        {**lies(type="llama"), WITH: ["mixture-of-depth"]},
    ),
    (
        "neat_packing with fa2 is not",
        PACKED,
        {**lies(type="gemma4"), WITH: ["flash-attn"]},
        {**PACKED, "flash_attn": "sdpa"},
        lies(type="gemma4"),
    ),
    ("hears and sees", {"neat_packing": True}, lies(type="qwen2_5_omni"), {}, lies(type="qwen2_5_omni")),
    (
        "3-D convolution",
        {},
        {**lies(type="qwen2_vl"), WITH: {"torch": "2.9.1"}},
        {},
        {**lies(type="qwen2_vl"), WITH: {"torch": "2.10.0"}},
    ),
    (
        "a form of its own",
        {},
        lies(architectures=["InternVLChatModel"]),
        {},
        lies(architectures=["InternVLForConditionalGeneration"]),
    ),
    ("package kernels", {}, lies(type="gpt_oss"), {}, {**lies(type="gpt_oss"), WITH: ["kernels"]}),
    (
        "unsloth does not go with OFT",
        {"finetuning_type": "oft", "use_unsloth": True},
        {WITH: ["unsloth"]},
        {"use_unsloth": True},
        {WITH: ["unsloth"]},
    ),
    (
        "package hyper-parallel",
        {**FULL, "use_hyper_parallel": True},
        {},
        {**FULL, "use_hyper_parallel": True},
        {WITH: ["hyper-parallel"]},
    ),
    ("package torchao", {"fp8": True}, {}, {"fp8": True}, {WITH: ["torchao"]}),
    (
        "package transformer-engine",
        {"fp8": True, "fp8_backend": "te"},
        {WITH: ["torchao"]},
        {"fp8": True, "fp8_backend": "te"},
        {WITH: ["transformer-engine"]},
    ),
    ("generated in stage sft", {**DPO, "predict_with_generate": True}, HELD_OUT, DPO, {}),
    ("neat_packing is for", {**DPO, "neat_packing": True}, {}, DPO, {}),
    ("are for stage sft", {**DPO, "mask_history": True}, {}, DPO, {}),
    (
        "predictions are generated",
        {"do_predict": True},
        HELD_OUT,
        {"do_predict": True, "predict_with_generate": True},
        HELD_OUT,
    ),
    (
        "cannot load the best",
        {"stage": "rm", "load_best_model_at_end": True, "save_strategy": "best"},
        {},
        {"stage": "rm"},
        {},
    ),
    ("needs a reward model", {"stage": "ppo"}, {}, PPO, {}),
    (
        "there is no reward model",
        PPO,
        {"reward_model": frozenset(["config.json"])},
        PPO,
        {"reward_model": HEAD | ADAPTER},
    ),
    (
        "of the other type",
        PPO,
        {"reward_model": HEAD | {"config.json"}},
        {**PPO, "reward_model_type": "full"},
        {"reward_model": HEAD | {"config.json"}},
    ),
    (
        "of the other type",
        {**PPO, "reward_model_type": "full"},
        {"reward_model": HEAD | ADAPTER},
        PPO,
        {"reward_model": HEAD | ADAPTER},
    ),
    ("no held-out data", PPO, HELD_OUT, PPO, {}),
    ("no held-out data", {**PPO, "val_size": 0.1}, {}, PPO, {}),
    ("fewer records than one", PPO, {"records": 7, "world_size": 2}, PPO, {"records": 8}),
    ("fewer records than one", {**PPO, "max_samples": 9, "ppo_buffer_size": 2}, {}, {**PPO, "max_samples": 9}, {}),
    ("counts logging_steps", {**PPO, "logging_steps": 0.1}, {}, {**PPO, "logging_steps": 1}, {}),
    ("counts save_steps", {**PPO, "save_strategy": "no"}, {}, {**PPO, "save_steps": 9}, {}),
    (
        "goes with finetuning_type lora",
        {**PPO, **FULL},
        {},
        {**PPO, **FULL, "reward_model_type": "full"},
        {},
    ),
    ("PPO only trains", {**PPO, "do_train": False}, {}, PPO, {}),
    ("shift_attn", {**PPO, "shift_attn": True}, {}, PPO, {}),
    (
        "an adapter does not go with",
        {**PPO, "use_unsloth": True},
        {WITH: ["unsloth"]},
        {**PPO, "use_unsloth": True, "reward_model_type": "full"},
        {WITH: ["unsloth"]},
    ),
    ("PPO reports to", {**PPO, "report_to": "mlflow"}, {}, PPO, {}),
    ("PPO reports to", {**PPO, "report_to": "trackio"}, {WITH: ["trackio"]}, {**PPO, "report_to": "tensorboard"}, {}),
    (
        "pref_loss sigmoid alone",
        {**DPO, "pref_loss": "ipo", "dpo_label_smoothing": 0.1},
        {},
        {**DPO, "dpo_label_smoothing": 0.1},
        {},
    ),
    ("nothing to evaluate on", {"do_eval": True}, {}, {"do_eval": True}, HELD_OUT),
    ("nothing to evaluate on", {"eval_strategy": "steps"}, {}, {"eval_strategy": "steps", "val_size": 0.1}, {}),
    (
        "without generating",
        {"predict_with_generate": True, "compute_accuracy": True},
        HELD_OUT,
        {"compute_accuracy": True},
        HELD_OUT,
    ),
    (
        "generated under ZeRO-3",
        {"predict_with_generate": True},
        {**ZERO3, **HELD_OUT},
        {"predict_with_generate": True},
        HELD_OUT,
    ),
    ("LLaMA-Pro goes", {**FULL, "use_llama_pro": True}, {}, {"finetuning_type": "freeze", "use_llama_pro": True}, {}),
    (
        "not an adapter",
        {**GALORE, "finetuning_type": "lora"},
        {WITH: ["galore-torch"]},
        GALORE,
        {WITH: ["galore-torch"]},
    ),
    (
        "exclude each other",
        {**GALORE, "use_apollo": True},
        {WITH: ["galore-torch", "apollo-torch"]},
        APOLLO,
        {WITH: ["galore-torch", "apollo-torch"]},
    ),
    ("PiSSA changes", {**DPO, "pissa_init": True}, {}, {**DPO, "pissa_init": True, "pref_loss": "simpo"}, {}),
    ("loraplus_lr_ratio is for", {**FULL, "loraplus_lr_ratio": 16.0}, {}, {"loraplus_lr_ratio": 16.0}, {}),
    ("use_rslora is for", {**FULL, "use_rslora": True}, {}, {"use_rslora": True}, {}),
    ("use_dora is for", {**FULL, "use_dora": True}, {}, {"use_dora": True}, {}),
    ("pissa_init is for", {**FULL, "pissa_init": True}, {}, {"pissa_init": True}, {}),
    ("start under ZeRO-3", {"pissa_init": True}, ZERO3, {"pissa_init": True}, {}),
    (
        "exactly one of oft_rank",
        {"finetuning_type": "oft", "oft_rank": 8},
        {},
        {"finetuning_type": "oft", "oft_rank": 8, "oft_block_size": 0},
        {},
    ),
    ("pure_bf16 needs", {**FULL, "pure_bf16": True}, {}, {**FULL, "pure_bf16": True}, {"bf16": True}),
    (
        "pure_bf16 does not",
        {**FULL, "pure_bf16": True},
        {"bf16": True, **ZERO3},
        {**FULL, "pure_bf16": True},
        {"bf16": True},
    ),
    (
        "layer-wise GaLore",
        {**GALORE, "galore_layerwise": True},
        {WITH: ["galore-torch"]},
        GALORE,
        {WITH: ["galore-torch"]},
    ),
    (
        "layer-wise APOLLO",
        {**APOLLO, "apollo_layerwise": True},
        {WITH: ["apollo-torch"]},
        APOLLO,
        {WITH: ["apollo-torch"]},
    ),
    ("BAdam by ratio", {**BADAM, "badam_mode": "ratio"}, {WITH: ["badam"]}, BADAM, {**ZERO3, WITH: ["badam"]}),
    ("BAdam needs ZeRO-3", BADAM, {WITH: ["badam"]}, BADAM, {**ZERO3, WITH: ["badam"]}),
    (
        "not go with DeepSpeed",
        GALORE,
        {"engine": Engine(zero_stage=2), WITH: ["galore-torch"]},
        GALORE,
        {WITH: ["galore-torch"]},
    ),
    ("GaLore does not know", {**GALORE, "optim": "sgd"}, {WITH: ["galore-torch"]}, GALORE, {WITH: ["galore-torch"]}),
    ("APOLLO does not know", {**APOLLO, "optim": "sgd"}, {WITH: ["apollo-torch"]}, APOLLO, {WITH: ["apollo-torch"]}),
    ("package kt-kernel", {"use_kt": True}, {}, {"use_kt": True}, {WITH: ["kt-kernel"]}),
    ("package unsloth", {"use_unsloth": True}, {}, {"use_unsloth": True}, {WITH: ["unsloth"]}),
    (
        "package liger-kernel",
        {"enable_liger_kernel": True},
        {"without": ["liger-kernel"]},
        {"enable_liger_kernel": True},
        {"gpus": True},
    ),
    (
        "package mixture-of-depth",
        {"mixture_of_depths": "convert"},
        {},
        {"mixture_of_depths": "convert"},
        {WITH: ["mixture-of-depth"]},
    ),
    ("package galore-torch", GALORE, {}, GALORE, {WITH: ["galore-torch"]}),
    ("package apollo-torch", APOLLO, {}, APOLLO, {WITH: ["apollo-torch"]}),
    ("split by FSDP2", {"stage": "rm"}, FSDP, {"stage": "rm"}, ZERO3),
    ("searched for", {"auto_find_batch_size": True}, ZERO3, {"auto_find_batch_size": True}, FSDP),
    ("whole checkpoint", {**BEST, "save_only_model": True}, {**FSDP, **HELD_OUT}, BEST, {**FSDP, **HELD_OUT}),
    ("takes its Adam", {"optim": "adafactor"}, OFFLOAD, {"optim": "adamw_torch"}, OFFLOAD),
    ("package badam", BADAM, ZERO3, BADAM, {**ZERO3, WITH: ["badam"]}),
    ("package adam-mini", {"use_adam_mini": True}, {}, {"use_adam_mini": True}, {WITH: ["adam-mini"]}),
    ("package swanlab", {"use_swanlab": True}, {}, {"use_swanlab": True}, {WITH: ["swanlab"]}),
    ("package matplotlib", {"plot_loss": True}, {"without": ["matplotlib"]}, {"plot_loss": True}, {}),
    (
        "package rouge-chinese",
        {"predict_with_generate": True},
        {**HELD_OUT, "without": ["rouge-chinese"]},
        {"predict_with_generate": True},
        HELD_OUT,
    ),
    ("package bitsandbytes", BITS, {"without": ["bitsandbytes"]}, BITS, {}),
    (
        "package hqq",
        {**BITS, "quantization_method": "hqq"},
        {},
        {**BITS, "quantization_method": "hqq"},
        {WITH: ["hqq"]},
    ),
    (
        "package eetq",
        {"quantization_bit": 8, "quantization_method": "eetq"},
        {},
        {"quantization_bit": 8, "quantization_method": "eetq"},
        {WITH: ["eetq"]},
    ),
    ("bf16 and fp16", {"bf16": True, "fp16": True}, {"bf16": True}, {"bf16": True}, {"bf16": True}),
    ("bf16 needs GPUs", {"bf16": True}, {}, {"bf16": True, "use_cpu": True}, {}),
    ("part of the steps", {"warmup_ratio": 1.5}, {}, {"warmup_ratio": 0.5}, {}),
    (
        "evaluated when it is saved",
        {"load_best_model_at_end": True},
        {},
        {"load_best_model_at_end": True, "eval_strategy": "steps"},
        HELD_OUT,
    ),
    (
        "reduce_lr_on_plateau needs",
        {"lr_scheduler_type": "reduce_lr_on_plateau"},
        {},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps"},
        HELD_OUT,
    ),
    (
        "evaluated when it is saved",
        {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 30, "save_steps": 100},
        HELD_OUT,
        {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 50, "save_steps": 100},
        HELD_OUT,
    ),
    ("tf32 needs", {"tf32": True}, {}, {"tf32": False}, {}),
    (
        "only workers fetch ahead",
        {"dataloader_prefetch_factor": 2},
        {},
        {"dataloader_prefetch_factor": 2, "dataloader_num_workers": 1},
        {},
    ),
    ("torch_empty_cache_steps is", {"torch_empty_cache_steps": 0}, {}, {"torch_empty_cache_steps": 1}, {}),
    ("seed is out", {"seed": -1}, {}, {"seed": 0}, {}),
    ("warmup_steps is", {"warmup_steps": -1}, {}, {"warmup_steps": 0}, {}),
    ("logging_steps is 0", {"logging_steps": 0}, {}, {"logging_steps": 1}, {}),
    (
        "stands in for it",
        {"eval_strategy": "steps", "logging_steps": 0, "logging_strategy": "epoch"},
        HELD_OUT,
        {"eval_strategy": "steps", "logging_steps": 0, "logging_strategy": "epoch", "eval_steps": 9},
        HELD_OUT,
    ),
    ("logging_steps is neither", {"logging_steps": 2.5}, {}, {"logging_steps": 0.5}, {}),
    ("save_steps is neither", {"save_steps": 2.5}, {}, {"save_steps": 2}, {}),
    (
        "eval_steps is neither",
        {"eval_steps": 2.5, "eval_strategy": "steps"},
        HELD_OUT,
        {"eval_steps": 2, "eval_strategy": "steps"},
        HELD_OUT,
    ),
    ("there is no step", {"max_steps": 0}, {}, {"max_steps": 1}, {}),
    ("there is no step", {"num_train_epochs": 0}, {}, {"num_train_epochs": 0, "max_steps": 3}, {}),
    ("learning rate below 0", {"learning_rate": -1.0}, {}, {"learning_rate": 1e-4}, {}),
    ("a managed run trains", {"do_train": False}, {}, {}, {}),
    ("trains nothing", {"learning_rate": 0}, {}, {"learning_rate": 1e-4}, {}),
    ("no checkpoint to go on", {"save_steps": 0}, {}, {"save_steps": 0, "save_strategy": "epoch"}, {}),
    ("dataloader_num_workers is", {"dataloader_num_workers": -1}, {}, {"dataloader_num_workers": 0}, {}),
    ("adam_beta1 is", {"adam_beta1": 1.0}, {}, {"adam_beta1": 0.0}, {}),
    ("adam_beta2 is", {"adam_beta2": -0.1}, {}, {"adam_beta2": 0.9}, {}),
    ("weight_decay is", {"weight_decay": -0.1}, {}, {"weight_decay": 0.0}, {}),
    ("names no module", {"lora_target": ""}, {}, {"lora_target": "all"}, {}),
    ("rank of at least 1", {"lora_rank": 0}, {}, {"lora_rank": 1}, {}),
    ("lora_dropout is", {"lora_dropout": 2.0}, {}, {"lora_dropout": 0.5}, {}),
    *(
        (
            f"package {package}",
            {"report_to": tracker},
            {"without": [package]},
            {"report_to": tracker},
            {WITH: [package]},
        )
        for tracker, package in (
            ("wandb", "wandb"),
            ("tensorboard", "tensorboard"),
            ("mlflow", "mlflow"),
            ("trackio", "trackio"),
            ("swanlab", "swanlab"),
            ("comet_ml", "comet-ml"),
            ("neptune", "neptune"),
            ("clearml", "clearml"),
            ("codecarbon", "codecarbon"),
            ("dvclive", "dvclive"),
        )
    ),
    (
        "trackio needs",
        {"report_to": "trackio", "project": ""},
        {WITH: ["trackio"]},
        {"report_to": "trackio", "project": "x"},
        {WITH: ["trackio"]},
    ),
]


def told(arguments: dict[str, t.Any], situation: dict[str, t.Any]) -> list[str]:
    """What the rules say of these arguments over BASE, in the environment of their stage."""
    return [problem.what for problem in problems(arguments, situation)]


def problems(arguments: dict[str, t.Any], situation: dict[str, t.Any]) -> list[t.Any]:
    situation = dict(situation)
    schema = SCHEMAS[_recipe.environment(arguments.get("stage"))]
    more, fewer = situation.pop(WITH, []), situation.pop("without", [])
    packages = {name: version for name, version in schema.packages.items() if name not in fewer}
    packages.update(more if isinstance(more, dict) else dict.fromkeys(more, "1"))
    schema = schema._replace(packages=packages)
    found = _rules.problems({**BASE, **arguments}, schema, _rules.Situation(**situation), arguments)
    assert all(problem.change for problem in found)
    return found


@pytest.mark.parametrize(("says", "broken", "there", "repaired", "then"), CASES)
def test_what_breaks_a_row_is_told_and_its_repair_is_taken(
    says: str, broken: dict[str, t.Any], there: dict[str, t.Any], repaired: dict[str, t.Any], then: dict[str, t.Any]
) -> None:
    assert [what for what in told(broken, there) if says in what], told(broken, there)
    assert told(repaired, then) == []


def test_every_row_has_a_case() -> None:
    unbroken = [rule.what for rule in _rules.RULES if not any(case[0] in rule.what for case in CASES)]
    assert unbroken == []


def test_the_page_of_rules_is_written_from_the_tables() -> None:
    written = runpy.run_path(str(REPOSITORY / "scripts" / "rules.py"))
    assert written["PAGE"].read_text(encoding="utf-8") == written["page"](), "python scripts/rules.py writes it"


def test_rows_are_about_keys_and_inputs_that_exist() -> None:
    for rule in _rules.RULES:
        for key in rule.keys:
            assert key in MAIN.keys or key.startswith("train_"), key


@pytest.mark.parametrize("recipe", _recipe.RECIPES)
def test_recipes_are_taken_as_they_are(recipe: str) -> None:
    arguments = _recipe.RECIPES[recipe].arguments
    needed = {"reward_model": "/reward"} if recipe == "ppo" else {}
    assert told({**arguments, **needed}, {}) == []
    schema = SCHEMAS[_recipe.environment(arguments["stage"])]
    assert _schema.typed(arguments, schema, "recipe") == arguments
    own = base_model.IN_ENVIRONMENT.get(_recipe.environment(arguments["stage"]), {})
    demo = {**arguments, **needed, **base_model.RECIPE["fine_tuning"], **own}
    assert told(demo, {}) == [] and _schema.typed(demo, schema, "model demo") == demo
