# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cases of the rules about ways to tune (_rules/tuning.py)."""

from __future__ import annotations

from .situations import APOLLO, BADAM, DPO, FREEZE, FULL, GALORE, HELD_OUT, OFT, WITH, ZERO2, ZERO3, Case

CASES: list[Case] = [
    ("no layer to train", {**FREEZE, "freeze_trainable_layers": 0}, {}, {**FREEZE, "freeze_trainable_layers": 1}, {}),
    (
        "unsloth does not go with OFT",
        {**OFT, "use_unsloth": True},
        {"gpus": True},
        {"use_unsloth": True},
        {"gpus": True},
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
        {**OFT, "oft_rank": 8},
        {},
        {**OFT, "oft_rank": 8, "oft_block_size": 0},
        {},
    ),
    ("marked as ready twice", {"finetuning_type": "oft"}, {}, OFT, {}),
    ("marked as ready twice", {**OFT, "ddp_find_unused_parameters": True}, {}, {"finetuning_type": "oft"}, ZERO2),
    (
        "marked as ready twice",
        {"finetuning_type": "oft"},
        {},
        {"finetuning_type": "oft", "use_reentrant_gc": False},
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
        {**ZERO2, WITH: ["galore-torch"]},
        GALORE,
        {WITH: ["galore-torch"]},
    ),
    ("GaLore does not know", {**GALORE, "optim": "sgd"}, {WITH: ["galore-torch"]}, GALORE, {WITH: ["galore-torch"]}),
    ("APOLLO does not know", {**APOLLO, "optim": "sgd"}, {WITH: ["apollo-torch"]}, APOLLO, {WITH: ["apollo-torch"]}),
    ("bf16 needs GPUs", {"bf16": True}, {}, {"bf16": True, "use_cpu": True}, {}),
    (
        "the first step fails",
        {"use_asft_loss": True},
        {},
        {"use_asft_loss": True, "ref_model": "/srv/m"},
        {},
    ),
    ("the first step fails", {"use_asft_loss": True}, {}, {**FULL, "use_asft_loss": True}, {}),
    (
        "fails in the first evaluation",
        {**FULL, "use_asft_loss": True, "val_size": 0.1},
        {},
        {**FULL, "use_asft_loss": True},
        {},
    ),
    (
        "fails in the first evaluation",
        {**FULL, "use_asft_loss": True},
        HELD_OUT,
        {**FULL, "use_dft_loss": True},
        HELD_OUT,
    ),
    (
        "Liger's kernels leave no logits",
        {**FULL, "use_asft_loss": True, "enable_liger_kernel": True},
        {"gpus": True},
        {**FULL, "use_asft_loss": True},
        {"gpus": True},
    ),
    ("names no module", {"lora_target": ""}, {}, {"lora_target": "all"}, {}),
    ("lora_dropout is", {"lora_dropout": 2.0}, {}, {"lora_dropout": 0.5}, {}),
]
