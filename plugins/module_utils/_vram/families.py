# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Families of models by `model_type`: how their layers differ from Llama's (transformers 4.57)."""

from __future__ import annotations

import typing as t

_FUSED = {"fused_qkv": "qkv_proj", "fused_gate": True, "mlp_names": ("gate_up_proj", "down_proj")}
_GEMMA = {"norm": "gemma", "scaled": True}
_NEOX = {"norm": "layer", "gated": False, "qkv_bias": True, "output_bias": True, "mlp_bias": True}

FAMILIES: dict[str, dict[str, t.Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
    "qwen3_moe": {"qk_norm": True},
    "qwen2_moe": {"qkv_bias": True},
    "mixtral": {"mlp_names": ("w1", "w3", "w2")},
    "deepseek_v2": {},
    "deepseek_v3": {},
    "gemma": _GEMMA,
    "gemma2": {**_GEMMA, "post_norms": True, "soft_capped": True},
    "gemma3_text": {**_GEMMA, "post_norms": True, "qk_norm": True},
    "phi": {**_NEOX, "parallel": 1, "output_name": "dense", "mlp_names": ("fc1", "fc2"), "head_bias": True},
    "phi3": _FUSED,
    "glm": {"fused_gate": True, "mlp_names": ("gate_up_proj", "down_proj")},
    "glm4": {"fused_gate": True, "mlp_names": ("gate_up_proj", "down_proj"), "post_norms": True},
    "glm4_moe": {},
    "chatglm": {
        "fused_qkv": "query_key_value",
        "fused_gate": True,
        "output_name": "dense",
        "mlp_names": ("dense_h_to_4h", "dense_4h_to_h"),
        "qkv_bias": True,
    },
    "qwen": {"fused_qkv": "c_attn", "qkv_bias": True, "output_name": "c_proj", "mlp_names": ("w1", "w2", "c_proj")},
    "gpt_neox": {
        **_NEOX,
        "parallel": 2,
        "fused_qkv": "query_key_value",
        "output_name": "dense",
        "mlp_names": ("dense_h_to_4h", "dense_4h_to_h"),
    },
    "baichuan": {"fused_qkv": "W_pack"},
    "internlm2": {"fused_qkv": "wqkv", "output_name": "wo", "mlp_names": ("w1", "w3", "w2")},
}
"""How the layers of a family differ from Llama's."""

SEEING = {"qwen2_vl": "qwen2", "qwen2_5_vl": "qwen2", "qwen3_vl": "qwen3", "llava": "llama", "gemma3": "gemma3_text"}
"""Models with a tower that sees, and the family of their text."""

TURNED = {"phi": 0.5, "glm": 0.5, "glm4": 0.5, "chatglm": 0.5, "gpt_neox": 0.25}
"""The part of a head that rotary embeddings turn, where config.json does not say."""
TIED = ("gemma", "gemma2", "gemma3_text")
"""Whose head is the embedding, where config.json does not say."""
PLAIN = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "glm", "glm4")
"""Whose modules are all of the text, with the names that transformers gives them."""
