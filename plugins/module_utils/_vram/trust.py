# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far estimates are trusted: the weakest of what a run uses, and by how much of itself one may be too low."""

from __future__ import annotations

import typing as t

from .engines import SINGLE, Engine
from .keys import UNSEEN
from .physics import Physics
from .shape import Shape

REPLAYED, FORMULA, UNVERIFIED = "replayed", "formula", "unverified"
"""Checked against measured peaks, or the real classes on tensors without content; derived from code that is, or from
published numbers of a part; read from code, and checked against nothing."""
BAND = {REPLAYED: 0.04, FORMULA: 0.06, UNVERIFIED: 0.20}
"""By how much of itself an estimate may be too low. `replayed` covers what the allocator was seen to do (docs/vram.md);
the others are a judgement until something is measured."""
QUICK = 0.03
"""And by how much more, where a few layers of each kind stand for all: some of what is reserved is missed."""
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "glm4")
"""Those of tests/vram/truth.csv."""
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd")


def tag(
    shape: Shape, given: t.Mapping[str, t.Any], physics: Physics, engine: Engine, optimizer: str, evaluates: bool
) -> tuple[str, list[str]]:
    """And why it is not `replayed`. given: all keys, with their defaults."""
    # into weights, before a new one is made
    merged = {"adapter_name_or_path"} if given["create_new_adapter"] else set()
    unseen = [
        f"{key}, which is not looked at"
        for key, default in UNSEEN.items()
        if given.get(key, default) != default and key not in merged
    ]
    unverified = {
        f"engine {engine.name} on {engine.world} ranks": engine.world > 1,
        f"engine {engine.name}": engine.world == 1 and engine.name != SINGLE,
        f"model type {shape.family or 'unnamed'}, taken for a plain decoder": not shape.known,
        "experts": shape.experts is not None,
        "latent attention": shape.latent is not None,
        "a tower that sees": shape.vision is not None,
        f"stage {physics.stage}": physics.stage == "ppo",
        "the loss of ASFT": physics.anchored,
        f"optimizer {optimizer}": optimizer not in OPTIMIZERS,
        shape.packed.words() if shape.packed else "": shape.packed is not None,
        "quantization in 8 bits": physics.quantization == 8 and not shape.packed,
        "quantization other than bitsandbytes": bool(physics.quantization)
        and not shape.packed
        and given["quantization_method"] != "bnb",
        "unsloth": bool(given["use_unsloth"]),
        "inputs of layers on the host (use_unsloth_gc)": bool(given["use_unsloth_gc"]),
        "additional_target": physics.trains_ends,
        "predictions that are kept in evaluation": bool(given["compute_accuracy"]),
    }
    formula = {
        f"model type {shape.family}": shape.family not in FAMILIES,
        "Liger's kernels": bool(given["enable_liger_kernel"]),
        "flash_attn fa2": physics.attention == "fa2",
        "evaluation": evaluates,
        "DoRA on quantized weights": physics.dora and bool(physics.quantization),
    }
    reasons = unseen + [what for what, holds in unverified.items() if holds]
    weaker = [what for what, holds in formula.items() if holds]
    return (UNVERIFIED if reasons else FORMULA if weaker else REPLAYED), reasons + weaker
