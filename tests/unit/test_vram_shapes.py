# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory: what is read of the shape of a model, and of its tower."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.module_utils._vram import shape

from .estimates import CONFIGS, GIB, LLAMA, found

MIXTURE = {
    **CONFIGS["qwen3-4b"],
    **{"model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48, "num_key_value_heads": 4},
    **{"moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "tie_word_embeddings": False},
}
LATENT = {
    **{"model_type": "deepseek_v2", "hidden_size": 2048, "num_hidden_layers": 27, "num_attention_heads": 16},
    **{"intermediate_size": 10944, "moe_intermediate_size": 1408, "n_routed_experts": 64, "n_shared_experts": 2},
    **{"num_experts_per_tok": 6, "first_k_dense_replace": 1, "kv_lora_rank": 512, "qk_nope_head_dim": 128},
    **{"qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 102400, "tie_word_embeddings": False},
}
SEEING = {
    **CONFIGS["qwen2.5-7b"],
    "model_type": "qwen2_5_vl",
    "vision_config": {
        **{"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "hidden_act": "silu"},
        **{"spatial_merge_size": 2, "patch_size": 14},
    },
}


COUNTS: list[tuple[dict[str, t.Any], int]] = [
    (CONFIGS["qwen2.5-0.5b"], 494_032_768),
    (CONFIGS["llama3.2-1b"], 1_235_814_400),
    (CONFIGS["llama3-8b"], 8_030_261_248),
    (CONFIGS["qwen2.5-7b"], 7_615_616_512),
    (CONFIGS["qwen3-4b"], 4_022_468_096),
    (CONFIGS["qwen3-8b"], 8_190_735_360),
    (CONFIGS["mistral-7b"], 7_248_023_552),
    (CONFIGS["gemma-2b"], 2_506_172_416),
    (CONFIGS["gemma2-2b"], 2_614_341_888),
    (CONFIGS["gemma3-1b"], 999_885_952),
    (CONFIGS["phi-2"], 2_779_683_840),
    (CONFIGS["phi3-mini"], 3_821_079_552),
    (CONFIGS["glm4-9b"], 9_400_279_040),
    (MIXTURE, 30_532_122_624),
    (LATENT, 15_706_484_224),
    (SEEING, 8_292_166_656),  # nearly: of the tower without biases and norms
]


@pytest.mark.parametrize(("config", "count"), COUNTS, ids=[config["model_type"] for config, _count in COUNTS])
def test_a_model_has_as_many_parameters_as_its_makers_say(config: dict[str, t.Any], count: int) -> None:
    near = 0.01 if "vision_config" in config else 0
    assert found({"finetuning_type": "full"}, config).parameters == pytest.approx(count, rel=near, abs=0)


@pytest.mark.parametrize(
    "key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"]
)
def test_a_config_that_lacks_a_size_is_refused(key: str) -> None:
    with pytest.raises(FinetuneError, match=key):
        shape.read({name: value for name, value in LLAMA.items() if name != key})


def test_an_unknown_family_is_taken_for_a_plain_decoder_and_said_to_be() -> None:
    told = found(config={**LLAMA, "model_type": "new"})
    assert told.tag == "unverified" and "model type new" in told.reasons[0]
    assert told.tensors == found().tensors


def test_a_tower_sees_all_images_of_a_micro_batch_and_takes_more_where_it_learns() -> None:
    def tower(**keys: t.Any) -> dict[str, float]:
        told, text = (found({"per_device_train_batch_size": 4, **keys}, of) for of in (SEEING, CONFIGS["qwen2.5-7b"]))
        return {name: (size - text.moments[name]) / GIB for name, size in told.moments.items()}

    weights = 2 * 671e6 / GIB
    few, many = tower(image_max_pixels=14 * 14 * 1000), tower(image_max_pixels=14 * 14 * 2000)
    assert few["loss, backward"] == many["loss, backward"] == pytest.approx(weights, rel=0.02), "its graph is not kept"
    a_patch = 2 * (8 * 1280 + 3 * 3420)
    assert many["forward"] - few["forward"] == pytest.approx(4 * 1000 * a_patch / GIB, rel=0.001), "of each record"
    learns = tower(freeze_vision_tower=False, finetuning_type="full")
    assert learns["save"] == pytest.approx((4 + 8) / 2 * weights, rel=0.02)
    assert learns["optimizer step"] == pytest.approx((4 + 4 + 8) / 2 * weights, rel=0.02)
    assert learns["backward of the layers"] > learns["optimizer step"]
    adapted = tower(freeze_vision_tower=False)
    assert weights < adapted["save"] < 1.1 * weights and adapted["loss, backward"] > few["loss, backward"]


def test_the_text_of_a_model_that_sees_is_found_in_its_text_config() -> None:
    text = CONFIGS["qwen2.5-7b"]
    assert found(config={"model_type": "qwen2_5_vl", "text_config": text}).tensors == found(config=text).tensors
