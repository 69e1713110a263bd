# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The shape of a model, from its config.json: sizes, and how its family builds a layer (transformers 4.57)."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, fields

from .._errors import FinetuneError
from . import packed
from .packed import Packed

Config = t.Mapping[str, t.Any]


@dataclass(frozen=True)
class Experts:
    """A mixture: of `count` experts, `chosen` see a token."""

    count: int
    chosen: int
    intermediate: int
    shared: int = 0
    """Intermediate size of what every token sees besides."""
    dense_first: int = 0
    """Layers at the beginning that have a plain MLP."""


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention, as DeepSeek has it."""

    query_rank: int
    key_rank: int
    plain: int
    rotary: int
    value: int


@dataclass(frozen=True)
class Vision:
    """A tower that sees, and what turns its patches into tokens."""

    hidden: int
    layers: int
    intermediate: int
    gated: bool
    merge: int
    """Patches that become one token."""
    patch: int = 14
    """Pixels of its side."""

    @property
    def parameters(self) -> int:
        return self.layers * (4 * self.hidden**2 + (2 + self.gated) * self.hidden * self.intermediate)


@dataclass(frozen=True)
class Shape:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    family: str = ""
    """model_type, as config.json has it."""
    known: bool = True
    """The family is one of those below; else it is taken for the common kind of decoder."""
    activation: str = "silu"
    """hidden_act."""
    norm: str = "rms"
    """rms, gemma (in fp32 throughout), layer."""
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    """A norm behind attention and MLP as well."""
    parallel: int = 0
    """Attention and MLP side by side, behind so many norms."""
    gated: bool = True
    fused_qkv: str = ""
    """The name of the one module for q, k and v, where there is one."""
    fused_gate: bool = False
    output_name: str = "o_proj"
    mlp_names: t.Tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    soft_capped: bool = False
    """Scores and logits go through a tanh, and attention cannot be sdpa."""
    scaled: bool = False
    """What is embedded is multiplied by a number."""
    turned: float = 1.0
    """The part of a head that rotary embeddings turn."""
    experts: Experts | None = None
    latent: Latent | None = None
    vision: Vision | None = None
    packed: Packed | None = None
    """Its weights are quantized already."""

    @property
    def parameters(self) -> int:
        """All of the text model's, nearly: biases and norms are left out."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        layer = self.hidden * (2 * queries + 2 * keys)
        each = (2 + self.gated) * self.hidden
        wide = self.experts
        inner = self.layers * each * self.intermediate
        if wide:
            inner = each * (
                wide.dense_first * self.intermediate
                + (self.layers - wide.dense_first) * (wide.count * wide.intermediate + wide.shared)
            )
        return self.layers * layer + inner + self.vocab * self.hidden * (1 if self.tied else 2)


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
    "mixtral": {},
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

_NAMES = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "num_layers", "n_layer"),
    "heads": ("num_attention_heads", "n_head"),
    "intermediate": ("intermediate_size", "ffn_hidden_size", "n_inner"),
    "vocab": ("vocab_size", "padded_vocab_size"),
}
"""Words that config.json files have for one number."""


def read(config: Config, where: str = "config.json") -> Shape:
    """Refuses what lacks a number that counts."""
    text = config.get("text_config") or config.get("llm_config")
    text = {**config, **text} if isinstance(text, t.Mapping) else config
    named = str(config.get("model_type") or "")
    family = SEEING.get(named, str(text.get("model_type") or named))
    own = FAMILIES.get(family)
    sizes = {name: _number(text, words, where) for name, words in _NAMES.items()}
    if family == "qwen":  # the size of both halves of its MLP
        sizes["intermediate"] //= 2
    heads = sizes["heads"]
    groups = text.get("multi_query_group_num") if text.get("multi_query_attention", True) else None
    given: dict[str, t.Any] = {
        **sizes,
        "kv_heads": int(text.get("num_key_value_heads") or groups or heads),
        "head_dim": int(text.get("head_dim") or text.get("kv_channels") or sizes["hidden"] // heads),
        "tied": bool(text.get("tie_word_embeddings", family in _TIED)),
        "family": family,
        "known": own is not None,
        "turned": float(text.get("partial_rotary_factor") or text.get("rotary_pct") or _TURNED.get(family, 1.0)),
        "activation": str(text.get("hidden_act") or ("gelu_new" if family == "phi" else "silu")),
        "experts": _experts(text),
        "latent": _latent(text),
        "vision": _vision(config),
        "packed": packed.read(config),
    }
    if text.get("attention_bias"):
        given |= {"qkv_bias": True, "output_bias": family in ("llama", "mistral", "qwen3", "qwen3_moe")}
    given["mlp_bias"] = bool(text.get("mlp_bias"))
    given |= own or {}
    return Shape(**{key: value for key, value in given.items() if key in _FIELDS})


_PLAIN = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "glm", "glm4")
"""Families whose modules are all of the text, with the names that transformers gives them."""


def modules(config: Config) -> list[str]:
    """Names of the modules that have weights, by config.json; empty where that does not tell them for sure."""
    try:
        found = read(config)
    except (FinetuneError, ArithmeticError, AttributeError, TypeError, ValueError):
        return []
    if found.family not in _PLAIN or found.experts or found.latent or found.vision:
        return []
    attention = [found.fused_qkv] if found.fused_qkv else ["q_proj", "k_proj", "v_proj"]
    return ["embed_tokens", "lm_head", *attention, found.output_name, *found.mlp_names]


_FIELDS = {one.name for one in fields(Shape)}
_TURNED = {"phi": 0.5, "glm": 0.5, "glm4": 0.5, "chatglm": 0.5, "gpt_neox": 0.25}
_TIED = ("gemma", "gemma2", "gemma3_text")


def _number(config: Config, words: t.Sequence[str], where: str) -> int:
    for word in words:
        value = config.get(word)
        if isinstance(value, list) and value:  # one for each layer: the largest decides
            value = max(value)
        if isinstance(value, int) and value > 0:
            return value
    raise FinetuneError(
        f"The model's config has no {words[0]}.",
        where=where,
        change="give the config.json of a decoder as transformers saves it; adapters and GGUF files have another one",
    )


def _experts(text: Config) -> Experts | None:
    count = next(
        (int(text[key]) for key in ("num_experts", "num_local_experts", "n_routed_experts") if text.get(key)), 0
    )
    if count < 2:
        return None
    size = int(text.get("moe_intermediate_size") or text.get("intermediate_size") or 0)
    shared = int(text.get("shared_expert_intermediate_size") or int(text.get("n_shared_experts") or 0) * size)
    chosen = int(text.get("num_experts_per_tok") or text.get("moe_topk") or 1)
    return Experts(count, chosen, size, shared, int(text.get("first_k_dense_replace") or 0))


def _latent(text: Config) -> Latent | None:
    if not text.get("kv_lora_rank"):
        return None
    numbers = [
        int(text.get(key) or 0)
        for key in ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    ]
    return Latent(*numbers)


def _vision(config: Config) -> Vision | None:
    tower = config.get("vision_config")
    if not isinstance(tower, t.Mapping):
        return None
    hidden = int(tower.get("embed_dim") or tower.get("hidden_size") or 0)
    layers = int(tower.get("depth") or tower.get("num_hidden_layers") or 0)
    inner = int(tower.get("intermediate_size") or hidden * float(tower.get("mlp_ratio") or 4))
    merge = int(tower.get("spatial_merge_size") or 1) ** 2
    patch = int(tower.get("patch_size") or 14)
    return Vision(hidden, layers, inner, str(tower.get("hidden_act")) == "silu", merge, patch) if hidden else None
