# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cases of the rules about models: adapters, attention, quantization (_rules/model.py)."""

from __future__ import annotations

from .situations import ADAPTER, BITS, FSDP, FULL, HEAD, PPO, QWEN3, READS_GPTQ, WITH, ZERO3, Case

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
    (
        "is read on the nodes",
        {"new_special_tokens_config": "t.yaml"},
        {},
        {"new_special_tokens_config": "/t.yaml"},
        {"folders": {"/t.yaml": ["."]}},
    ),
    (
        "not every node has that file",
        {"new_special_tokens_config": "/t.yaml"},
        {"folders": {"/t.yaml": []}},
        {"new_special_tokens_config": "/t.yaml"},
        {"folders": {"/t.yaml": ["."]}},
    ),
    (
        "has an adapter in that folder",
        {"adapter_name_or_path": "/a,/b"},
        {"folders": {"/a": ADAPTER, "/b": HEAD}},
        {"adapter_name_or_path": "/a,/b"},
        {"folders": {"/a": ADAPTER, "/b": ADAPTER}},
    ),
    (
        "has an adapter in that folder",
        {"adapter_name_or_path": "/a"},
        {"folders": {"/a": HEAD}},
        {"adapter_name_or_path": "/a", "adapter_folder": "lora"},
        {"folders": {"/a": HEAD}},
    ),
    ("an adapter goes with", {**FULL, "adapter_name_or_path": "/a"}, {}, {"adapter_name_or_path": "/a"}, {}),
    ("several adapters", {**BITS, "adapter_name_or_path": "/a,/b"}, {}, {**BITS, "adapter_name_or_path": "/a"}, {}),
    ("several adapters", {"adapter_name_or_path": "/a,/b"}, ZERO3, {"adapter_name_or_path": "/a,/b"}, {}),
    ("fa3", {"flash_attn": "fa3"}, {}, {"flash_attn": "sdpa"}, {}),
    ("no flash-attn", {"flash_attn": "fa2"}, {}, {"flash_attn": "fa2"}, {WITH: ["flash-attn"]}),
    ("on GPUs alone", {"enable_liger_kernel": True}, {}, {"enable_liger_kernel": True}, {"gpus": True}),
    ("huggingface alone", {"infer_backend": "vllm"}, {}, {"infer_backend": "huggingface"}, {}),
    (
        "unsloth does not",
        {"use_unsloth": True},
        {**ZERO3, WITH: ["unsloth"]},
        {"use_unsloth": True},
        {WITH: ["unsloth"]},
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
    ("PiSSA cannot start from quantized weights", {"pissa_init": True}, READS_GPTQ, {"pissa_init": True}, QWEN3),
    ("DoRA refuses quantized weights", {"use_dora": True}, READS_GPTQ, {"use_dora": True}, QWEN3),
    ("several adapters", {"adapter_name_or_path": "/a,/b"}, READS_GPTQ, {"adapter_name_or_path": "/a"}, READS_GPTQ),
    ("shift_attn needs", {"shift_attn": True}, {}, {"shift_attn": True}, {WITH: {"transformers": "4.47.1"}}),
    (
        "mixture-of-depth, of which",
        {"mixture_of_depths": "convert"},
        {},
        {"mixture_of_depths": "convert"},
        {WITH: {"transformers": "4.44.2"}},
    ),
    ("transformers 5.6.0", {"flash_attn": "fa2"}, {WITH: {"transformers": "5.6.0", "flash-attn": "2"}}, {}, {}),
    ("are for NPUs", {"use_v1_kernels": True}, {}, {}, {}),
    (
        "goes with finetuning_type lora",
        {**PPO, **FULL},
        {},
        {**PPO, **FULL, "reward_model_type": "full"},
        {},
    ),
    ("shift_attn", {**PPO, "shift_attn": True}, {}, PPO, {}),
]
