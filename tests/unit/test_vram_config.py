# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory: a config.json is anybody's. What is odd in one is refused in words, and never a traceback or a hang."""

from __future__ import annotations

import random
import re
import typing as t

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.module_utils._vram import estimate, shape
from ansible_collections.llmops.finetune.plugins.module_utils._vram.options import Situation

from ..conftest import REPOSITORY
from ..vram import rows

LLAMA = rows.configs(REPOSITORY / "tests" / "vram" / "configs")["llama3-8b"]
SHORT = {"bf16": True, "per_device_train_batch_size": 1, "cutoff_len": 128}


@pytest.mark.parametrize(
    ("field", "value", "due"),
    [
        ("hidden_size", "4096", "a whole number from 1 to 10000000"),
        ("hidden_size", -1, "a whole number"),
        ("hidden_size", 1.5, "a whole number"),
        ("hidden_size", True, "a whole number"),
        ("hidden_size", {"a": 1}, "a whole number"),
        ("vocab_size", 10**30, "a whole number"),
        ("num_hidden_layers", 10**12, "a whole number from 1 to 1000 is due"),
        ("num_hidden_layers", ["a"], "a whole number"),
        ("num_attention_heads", 8192, "at most the hidden size, 4096"),
        ("num_key_value_heads", "8", "a whole number"),
        ("head_dim", float("nan"), "a whole number"),
        ("partial_rotary_factor", float("nan"), "a number above 0, and at most 1"),
        ("partial_rotary_factor", "half", "a number"),
        ("partial_rotary_factor", 2, "a number"),
        ("quantization_config", {"quant_method": "gptq", "bits": "4"}, "a whole number from 1 to 16"),
        ("quantization_config", {"quant_method": "gptq", "bits": 4, "group_size": -7}, "a whole number"),
        ("vision_config", {"hidden_size": "wide"}, "a whole number"),
    ],
)
def test_a_field_that_cannot_be_is_named(field: str, value: t.Any, due: str) -> None:
    with pytest.raises(FinetuneError) as told:
        shape.read({**LLAMA, field: value})
    name = {"quantization_config": "bits|group_size", "vision_config": "hidden_size"}.get(field, field)
    assert re.match(f"({name}) of the model's config is ", told.value.what) and due in told.value.what
    assert told.value.where.startswith("config.json")


@pytest.mark.parametrize("value", [None, 0])
def test_what_is_null_is_as_if_it_were_not_there(value: t.Any) -> None:
    optional = ("head_dim", "num_local_experts", "kv_lora_rank", "multi_query_group_num")
    assert shape.read({**LLAMA, **dict.fromkeys(optional, value)}) == shape.read(LLAMA)


def test_more_experts_than_there_are_cannot_see_a_token() -> None:
    mixture = {**LLAMA, "num_local_experts": 8, "num_experts_per_tok": 9}
    with pytest.raises(FinetuneError, match="num_experts_per_tok of the model's config is 9"):
        shape.read(mixture)
    assert shape.read({**mixture, "num_experts_per_tok": [1, 2]}).experts == shape.Experts(8, 2, 14336)


BASES: dict[str, dict[str, t.Any]] = {
    "dense": LLAMA,
    "experts": {**LLAMA, "model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2},
    "experts of a family with two matrices": {**LLAMA, "model_type": "phi3", "num_local_experts": 4},
    "latent": {
        **{**LLAMA, "model_type": "deepseek_v3", "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128},
        **{"qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 8, "n_shared_experts": 1},
        **{"num_experts_per_tok": 2, "moe_intermediate_size": 2048, "first_k_dense_replace": 3},
    },
    "sees": {
        **{**LLAMA, "model_type": "qwen2_5_vl"},
        "vision_config": {"hidden_size": 1280, "depth": 32, "intermediate_size": 3420, "patch_size": 14},
    },
    "text inside": {"model_type": "llava", "text_config": LLAMA, "vision_config": {"hidden_size": 1024}},
    "packed": {**LLAMA, "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}},
    "glm": {**LLAMA, "model_type": "chatglm", "multi_query_attention": True, "multi_query_group_num": 2},
}
ODD: tuple[t.Any, ...] = (
    *(None, "", "x", "8", -1, 0, 1, 1.5, float("nan"), float("inf"), [], {}, [1, 2], ["a"], True, {"a": 1}),
    *(1000, 10**6, 10**30),
)
OTHERS = (
    *("head_dim", "hidden_act", "attention_bias", "mlp_bias", "partial_rotary_factor", "rotary_pct", "model_type"),
    *("text_config", "vision_config", "quantization_config", "num_experts", "kv_lora_rank", "moe_topk", "kv_channels"),
)


def places(config: dict[str, t.Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in config.items():
        found.append((*above, key))
        found += places(value, (*above, key)) if isinstance(value, dict) else []
    return found


def changed(config: dict[str, t.Any], place: tuple[str, ...], value: t.Any) -> dict[str, t.Any]:
    first, *rest = place
    return {**config, first: changed(config[first], tuple(rest), value) if rest else value}


@pytest.mark.parametrize("name", BASES)
def test_whatever_stands_in_it_is_estimated_or_refused_in_words(name: str) -> None:
    """A part of all odd values in all places, another one for each kind of model."""
    base, numbers = BASES[name], random.Random(name)
    cases = [(place, odd) for place in (*places(base), *((other,) for other in OTHERS)) for odd in ODD]
    outcomes = set()
    for place, odd in numbers.sample(cases, 40):
        try:
            found = estimate.estimate(changed(base, place, odd), SHORT, Situation())
        except FinetuneError as error:
            assert error.where and error.change, place
            outcomes.add("refused")
        else:
            assert 0 < found.context < found.process < found.bound, (place, odd)
            outcomes.add("estimated")
    assert outcomes == {"refused", "estimated"}
