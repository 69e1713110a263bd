# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cases of the rules about packages (_rules/packages.py)."""

from __future__ import annotations

from .situations import APOLLO, BADAM, BITS, FULL, GALORE, HELD_OUT, WITH, ZERO3, Case

CASES: list[Case] = [
    (
        "package hyper-parallel",
        {**FULL, "use_hyper_parallel": True},
        {},
        {**FULL, "use_hyper_parallel": True},
        {WITH: ["hyper-parallel"]},
    ),
    ("package torchao", {"fp8": True}, {"without": ["torchao"]}, {"fp8": True}, {"gpus": True}),
    (
        "package transformer-engine",
        {"fp8": True, "fp8_backend": "te"},
        {},
        {"fp8": True, "fp8_backend": "te"},
        {"gpus": True, WITH: ["transformer-engine"]},
    ),
    (
        "package modelscope",
        {},
        {"model": "modelscope:org/m", "without": ["modelscope"]},
        {},
        {"model": "modelscope:org/m"},
    ),
    ("package unsloth", {"use_unsloth": True}, {"without": ["unsloth"]}, {"use_unsloth": True}, {"gpus": True}),
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
        {"without": ["mixture-of-depth"]},
        {"mixture_of_depths": "convert"},
        {WITH: {"transformers": "4.44.2"}},
    ),
    ("package galore-torch", GALORE, {"without": ["galore-torch"]}, GALORE, {}),
    ("package apollo-torch", APOLLO, {"without": ["apollo-torch"]}, APOLLO, {}),
    ("package badam", BADAM, {**ZERO3, "without": ["badam"]}, BADAM, ZERO3),
    ("package adam-mini", {"use_adam_mini": True}, {"without": ["adam-mini"]}, {"use_adam_mini": True}, {}),
    (
        "package swanlab",
        {"use_swanlab": True},
        {"without": ["swanlab"], "variables": {"SWANLAB_API_KEY": ""}},
        {"use_swanlab": True},
        {"variables": {"SWANLAB_API_KEY": ""}},
    ),
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
]
