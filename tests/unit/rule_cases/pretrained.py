# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cases of the rules about the model itself (_rules/pretrained.py)."""

from __future__ import annotations

from .situations import BITS, FREEZE, FSDP, FULL, GPTQ, PACKED, PRO, QWEN3, READS_GPTQ, WITH, ZERO3, Case, lies

PROJECTIONS = lies(modules=["embed_tokens", "q_proj", "v_proj"])

CASES: list[Case] = [
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
        "passes over it in lora_target",
        {"lora_target": "query_key_value"},
        PROJECTIONS,
        {"lora_target": "all"},
        PROJECTIONS,
    ),
    (
        "passes over it in lora_target",
        {"lora_target": "q_proj,w_proj"},
        PROJECTIONS,
        {"lora_target": ["self_attn.q_proj"]},
        PROJECTIONS,
    ),
    (
        "passes over it in additional_target",
        {"additional_target": "all"},
        PROJECTIONS,
        {"additional_target": "embed_tokens"},
        PROJECTIONS,
    ),
    ("not what its header says", {}, lies(damaged=["a.safetensors"]), {}, lies()),
    (
        "not what its header says",
        {},
        lies(damaged=["a.safetensors"]),
        {"train_from_scratch": True},
        lies(damaged=["a.safetensors"]),
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
        {**QWEN3, WITH: {"transformers": "4.44.2"}},
        {"mixture_of_depths": "convert"},
        {**lies(type="llama"), WITH: {"transformers": "4.44.2"}},
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
]
