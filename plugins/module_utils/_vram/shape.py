# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The shape of a model, from its config.json: sizes, and how its family builds a layer (transformers 4.57)."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, fields

from .._errors import FinetuneError
from . import packed
from .families import FAMILIES, PLAIN, SEEING, TIED, TURNED
from .fields import DEEPEST, LARGEST, Config, Fields
from .packed import Packed


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

    def parameters(self, text: int) -> int:
        """With what leads to the hidden size of the text; without biases and norms."""
        layer = 4 * self.hidden**2 + (2 + self.gated) * self.hidden * self.intermediate
        joined = self.hidden * self.merge
        return self.layers * layer + 3 * self.patch**2 * self.hidden + joined**2 + joined * text


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
    """The family is one of families.py; else it is taken for the common kind of decoder."""
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


_NAMES = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "num_layers", "n_layer"),
    "heads": ("num_attention_heads", "n_head"),
    "intermediate": ("intermediate_size", "ffn_hidden_size", "n_inner"),
    "vocab": ("vocab_size", "padded_vocab_size"),
}
"""Words that config.json files have for one number."""


def read(config: Config, where: str = "config.json") -> Shape:
    """Refuses what lacks a number that counts, or has one that cannot be."""
    text = config.get("text_config") or config.get("llm_config")
    text = {**config, **text} if isinstance(text, t.Mapping) else config
    fields_ = Fields(text, where)
    named = str(config.get("model_type") or "")
    family = SEEING.get(named, str(text.get("model_type") or named))
    own = FAMILIES.get(family)
    most = {"layers": DEEPEST}
    sizes = {name: fields_.size(*words, most=most.get(name, LARGEST)) for name, words in _NAMES.items()}
    if family == "qwen":  # the size of both halves of its MLP
        sizes["intermediate"] = max(1, sizes["intermediate"] // 2)
    heads = sizes["heads"]
    groups = fields_.maybe("multi_query_group_num") if text.get("multi_query_attention", True) else 0
    head_dim = fields_.maybe("head_dim", "kv_channels", default=sizes["hidden"] // heads)
    if not head_dim:
        raise fields_.wrong("num_attention_heads", heads, f"at most the hidden size, {sizes['hidden']},")
    given: dict[str, t.Any] = {
        **sizes,
        "kv_heads": fields_.maybe("num_key_value_heads", default=groups or heads),
        "head_dim": head_dim,
        "tied": bool(text.get("tie_word_embeddings", family in TIED)),
        "family": family,
        "known": own is not None,
        "turned": fields_.number("partial_rotary_factor", "rotary_pct", default=TURNED.get(family, 1.0)),
        "activation": str(text.get("hidden_act") or ("gelu_new" if family == "phi" else "silu")),
        "experts": _experts(fields_),
        "latent": _latent(fields_),
        "vision": _vision(config, where),
        "packed": packed.read(config),
    }
    if text.get("attention_bias"):
        given |= {"qkv_bias": True, "output_bias": family in ("llama", "mistral", "qwen3", "qwen3_moe")}
    given["mlp_bias"] = bool(text.get("mlp_bias"))
    given |= own or {}
    return Shape(**{key: value for key, value in given.items() if key in _FIELDS})


def modules(config: Config) -> list[str]:
    """Names of the modules that have weights, by config.json; empty where that does not tell them for sure."""
    try:
        found = read(config)
    except FinetuneError:
        return []
    if found.family not in PLAIN or found.experts or found.latent or found.vision:
        return []
    attention = [found.fused_qkv] if found.fused_qkv else ["q_proj", "k_proj", "v_proj"]
    return ["embed_tokens", "lm_head", *attention, found.output_name, *found.mlp_names]


_FIELDS = {one.name for one in fields(Shape)}


def _experts(given: Fields) -> Experts | None:
    count = given.maybe("num_experts", "num_local_experts", "n_routed_experts")
    if count < 2:
        return None
    size = given.size("moe_intermediate_size", "intermediate_size")
    shared = given.maybe("shared_expert_intermediate_size", default=given.maybe("n_shared_experts") * size)
    chosen = given.maybe("num_experts_per_tok", "moe_topk", default=1, most=count)
    return Experts(count, chosen, size, shared, given.maybe("first_k_dense_replace"))


def _latent(given: Fields) -> Latent | None:
    rank = given.maybe("kv_lora_rank")
    if not rank:
        return None
    widths = [given.size(word) for word in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")]
    return Latent(given.maybe("q_lora_rank"), rank, *widths)


def _vision(config: Config, where: str) -> Vision | None:
    tower = config.get("vision_config")
    if not isinstance(tower, t.Mapping):
        return None
    given = Fields(tower, f"{where}, vision_config")
    hidden = given.maybe("embed_dim", "hidden_size")
    if not hidden:
        return None
    ratio = given.number("mlp_ratio", default=4.0, most=100)
    return Vision(
        hidden,
        given.maybe("depth", "num_hidden_layers", most=DEEPEST),
        given.maybe("intermediate_size", default=round(hidden * ratio)),
        str(tower.get("hidden_act")) == "silu",
        given.maybe("spatial_merge_size", default=1) ** 2,
        given.maybe("patch_size", default=14),
    )
