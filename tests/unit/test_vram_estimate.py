# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory: what is read of config.json and LLaMA-Factory's keys, how much it is trusted, and what is decided."""

from __future__ import annotations

import dataclasses
import json
import typing as t

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _parallel, _sources
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.module_utils._vram import (
    engines,
    estimate,
    hardware,
    keys,
    report,
    shape,
    trust,
)
from ansible_collections.llmops.finetune.plugins.module_utils._vram.options import Situation

from ..conftest import REPOSITORY
from ..vram import rows

CONFIGS = rows.configs(REPOSITORY / "tests" / "vram" / "configs")
LLAMA = CONFIGS["llama3-8b"]
ONE = {"bf16": True, "per_device_train_batch_size": 1}
GIB = 1 << 30


def found(arguments: dict[str, t.Any] | None = None, config: t.Any = LLAMA, **situation: t.Any) -> estimate.Estimate:
    return estimate.estimate(config, {**ONE, **(arguments or {})}, Situation(**situation))


def test_a_quick_estimate_is_decided_on_with_a_wider_bound() -> None:
    exact = estimate.estimate(LLAMA, ONE, thorough=True)
    assert found().tensors == exact.tensors
    assert found().band == exact.band + trust.QUICK


# Shapes

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


# Options


def test_defaults_are_those_of_llamafactory() -> None:
    known = _sources.schemas()["main"].keys
    looked_at = {**keys.DEFAULTS, **keys.UNSEEN}
    assert {key: known[key].default for key in looked_at} == looked_at
    assert not keys.DEFAULTS.keys() & keys.UNSEEN.keys()


@pytest.mark.parametrize(
    ("arguments", "tag"),
    [
        ({}, "replayed"),
        ({"finetuning_type": "full"}, "replayed"),
        ({"quantization_bit": 4}, "replayed"),
        ({"stage": "dpo"}, "replayed"),
        ({"gradient_accumulation_steps": 4}, "replayed"),
        ({"enable_liger_kernel": True}, "formula"),
        ({"flash_attn": "fa2"}, "formula"),
        ({"use_dora": True}, "replayed"),
        ({"use_dora": True, "quantization_bit": 4}, "formula"),
        ({"quantization_bit": 8}, "unverified"),
        ({"stage": "ppo"}, "unverified"),
        ({"stage": "kto"}, "replayed"),
        ({"stage": "rm"}, "replayed"),
        ({"stage": "dpo", "finetuning_type": "full"}, "replayed"),
        ({"finetuning_type": "oft"}, "replayed"),
        ({"optim": "adamw_bnb_8bit"}, "unverified"),
        ({"finetuning_type": "full", "use_galore": True}, "unverified"),
        ({"use_unsloth_gc": True}, "unverified"),
        ({"use_unsloth": True}, "unverified"),
        ({"fp8": True}, "unverified"),
        ({"adapter_name_or_path": "/a"}, "unverified"),
        ({"adapter_name_or_path": "/a", "create_new_adapter": True}, "replayed"),
        ({"use_dft_loss": True}, "unverified"),
        ({"eval_strategy": "steps", "eval_steps": 10}, "formula"),
        ({"val_size": 0.1}, "formula"),
        ({"finetuning_type": "freeze", "freeze_extra_modules": "norm"}, "unverified"),
        ({"upcast_layernorm": True}, "unverified"),
        ({"enable_liger_kernel": True, "quantization_bit": 8}, "unverified"),
    ],
)
def test_what_nothing_checked_says_so_and_has_a_wider_bound(arguments: dict[str, t.Any], tag: str) -> None:
    told = found(arguments)
    assert (told.tag, told.band) == (tag, trust.BAND[tag] + trust.QUICK)
    assert bool(told.reasons) is (tag != "replayed")
    assert told.bound == round(told.process * (1 + told.band))


@pytest.mark.parametrize("engine", engines.NAMES)
def test_every_engine_is_unverified(engine: str) -> None:
    told = found({"finetuning_type": "full"}, world=8, engine=engine)
    assert told.tag == "unverified" and told.reasons == [f"engine {engine} on 8 ranks"]
    alone = found({"finetuning_type": "full"}, engine=engine)
    assert (alone.tag, alone.reasons) == (
        ("replayed", []) if engine == "ddp" else ("unverified", [f"engine {engine}"])
    ), "DeepSpeed and FSDP on one GPU are not measured either"


def test_engines_of_train_engine_are_among_them() -> None:
    provided = {name for name, one in _parallel.ENGINES.items() if not one.unproved}
    assert provided - {engines.SINGLE} <= set(engines.NAMES)


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"quantization_bit": 4}, {}),
        ({}, {"disable_gradient_checkpointing": True}),
        ({}, {"lora_rank": 64}),
        ({"enable_liger_kernel": True}, {}),
        ({"use_unsloth_gc": True}, {}),
        ({}, {"stage": "dpo"}),
        ({"cutoff_len": 1024}, {}),
        ({}, {"do_eval": True}),
        ({}, {"finetuning_type": "freeze"}),
        ({"finetuning_type": "full", "pure_bf16": True, "bf16": False}, {"finetuning_type": "full"}),
        ({"finetuning_type": "full"}, {"finetuning_type": "full", "optim": "adamw_torch"}),
        ({"finetuning_type": "full"}, {"finetuning_type": "full", "stage": "dpo"}),
        ({"finetuning_type": "full", "optim": "adamw_bnb_8bit"}, {"finetuning_type": "full"}),
        ({"finetuning_type": "full", "use_badam": True}, {"finetuning_type": "full"}),
        ({"finetuning_type": "full", "use_galore": True, "galore_layerwise": True}, {"finetuning_type": "full"}),
        ({"finetuning_type": "full", "use_muon": True}, {"finetuning_type": "full"}),
    ],
    ids=str,
)
def test_what_needs_more(less: dict[str, t.Any], more: dict[str, t.Any]) -> None:
    assert found(less).tensors < found(more).tensors


@pytest.mark.parametrize(
    ("engine", "resident"),
    [
        ("ddp", 12 + 4),  # buckets are copies of the gradients
        ("zero1", 2 + 12 / 8 + 2 * 2 * 5e8 / 8.03e9),
        ("zero2", 2 + 12 / 8 + 2 * 2 * 5e8 / 8.03e9),
        ("zero2_offload", 2 + 2 * 2 * 5e8 / 8.03e9),
        ("zero3", (2 + 12) / 8),
        ("zero3_offload", 0),
        ("fsdp2", (4 + 8) / 8),
        ("fsdp", (4 + 8) / 8),
    ],
)
def test_what_lies_on_one_of_eight_ranks_between_steps(engine: str, resident: float) -> None:
    """Bytes for each of 8.03 B parameters."""
    told = found({"finetuning_type": "full"}, world=8, engine=engine)
    assert told.resident == pytest.approx(resident * 8.03e9, rel=0.01, abs=1e9)


def test_of_a_frozen_model_fsdp2_has_fp32_and_others_half() -> None:
    told = {name: found({}, world=8, engine=name).resident for name in ("fsdp", "fsdp2", "zero3")}
    more = (told["fsdp2"] - told["fsdp"]) / (8.03e9 / 8)
    assert more == pytest.approx(2, rel=0.01) and told["zero3"] == pytest.approx(told["fsdp"], abs=1e9)


def test_4_bits_stay_4_bits_where_ranks_share_them() -> None:
    """Of 6.98 B quantized weights; embedding and head are shared as well."""
    told = {name: found({"quantization_bit": 4}, world=8, engine=name) for name in ("ddp", "fsdp")}
    less = told["ddp"].resident - told["fsdp"].resident
    assert less == pytest.approx((0.5 * 6.98e9 + 2 * 1.05e9) * 7 / 8, rel=0.08)


def test_buckets_of_ddp_have_the_width_of_the_gradients() -> None:
    half = {"finetuning_type": "full", "pure_bf16": True, "bf16": False}
    assert found(half, world=2).resident == pytest.approx((2 + 4 + 2) * 8.03e9, rel=0.01)


@pytest.mark.parametrize(
    ("keys", "more"),
    [({"use_galore": True}, 8), ({"use_apollo": True}, 8), ({"use_muon": True}, 4)],  # GaLore beside 16 of 4096 rows
)
def test_embedding_and_head_are_adamws(keys: dict[str, t.Any], more: float) -> None:
    """So their states grow with the vocabulary as AdamW's do, by 8 bytes each; all weights have 4 besides."""
    full = {"finetuning_type": "full", **keys}
    wide = {**LLAMA, "vocab_size": 2 * LLAMA["vocab_size"]}
    grown = found(full, wide).resident - found(full).resident
    assert grown == pytest.approx((4 + 8) * 2 * 128256 * 4096, rel=0.001)
    layers = found(full).resident - (4 + 8) * 2 * 128256 * 4096
    assert layers < (4 + more) * 6.98e9 * 1.001, "those of the layers are not"


def test_what_is_packed_neatly_has_a_mask() -> None:
    """And keys and values of all heads, but with FlashAttention's own kernels."""
    plain = {"disable_gradient_checkpointing": True, "packing": True}
    neat = {**plain, "neat_packing": True}
    more = found(neat).tensors - found(plain).tensors
    assert more == pytest.approx(32 * 2048 * 4 * (4096 - 1024) + 2 * 2048**2, rel=0.02)
    fa2 = {"flash_attn": "fa2"}
    assert found({**neat, **fa2}).tensors == found({**plain, **fa2}).tensors


def test_the_default_optimizer_is_that_of_the_version_of_torch() -> None:
    full = {"finetuning_type": "full"}
    assert found(full, torch="2.7.1").tensors > found(full, torch="2.8.0").tensors


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"optim": "schedule_free_radam"}, "optim"),
        ({"quantization_bit": 3}, "quantization_bit"),
        ({"quantization_bit": 4, "finetuning_type": "full"}, "cannot be trained with finetuning_type full"),
        ({"quantization_bit": 8, "finetuning_type": "freeze"}, "cannot be trained with finetuning_type freeze"),
    ],
)
def test_what_is_not_known_is_refused(arguments: dict[str, t.Any], word: str) -> None:
    with pytest.raises(FinetuneError, match=word):
        found(arguments)


# Weights that are quantized already


def quantized(method: str, **more: t.Any) -> dict[str, t.Any]:
    return {**LLAMA, "quantization_config": {"quant_method": method, **more}}


IN_4_BITS = quantized("bitsandbytes", load_in_4bit=True, bnb_4bit_use_double_quant=True)
IN_LAYERS = {"llm_int8_skip_modules": ["lm_head", "model.layers.1.mlp", "o_proj"]}


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (IN_4_BITS, 5.545),  # as quantization_bit 4 leaves it
        (quantized("bitsandbytes", load_in_8bit=True), 8.696),
        (quantized("gptq", bits=4, group_size=128), 3.38 + 1.96 + 0.24),  # layers; embedding and head; adapters
        (quantized("awq", w_bit=4, q_group_size=128), 3.37 + 1.96 + 0.24),
        (quantized("gptq", bits=8, group_size=-1), 6.50 + 1.96 + 0.24),
        (quantized("fp8"), 15.192),
        ({**LLAMA, "quantization_config": {}}, 15.192),
    ],
)
def test_weights_that_are_quantized_lie_there_as_they_are(config: dict[str, t.Any], size: float) -> None:
    told = found(config=config)
    assert told.resident / GIB == pytest.approx(size, rel=0.005)
    assert told.parameters == found().parameters
    assert (told.tag == "unverified") is bool(config["quantization_config"])


def test_all_weights_of_a_packed_model_cannot_be_trained() -> None:
    with pytest.raises(FinetuneError, match="finetuning_type full") as told:
        found({"finetuning_type": "full"}, IN_4_BITS)
    assert told.value.where == "config.json, quantization_config"
    assert found({"finetuning_type": "full"}, quantized("fp8")).tensors == found({"finetuning_type": "full"}).tensors


def test_what_is_kept_of_a_product_is_that_of_the_method() -> None:
    plain = {"disable_gradient_checkpointing": True}
    packed = {name: quantized(name, bits=4, group_size=128) for name in ("gptq", "awq")}
    more = {name: (found(plain, config).tensors - found(plain, IN_4_BITS).tensors) for name, config in packed.items()}
    assert more["gptq"] == pytest.approx(32 * 2 * 218e6, rel=0.02)  # all matrices in 16 bits wait for backward
    assert more["awq"] == pytest.approx(32 * 2 * 2048 * (6 * 4096 + 14336), rel=0.02)  # an fp16 copy of all inputs
    half = {"bf16": False, "fp16": True, **plain}
    assert found(half, packed["awq"]).tensors == pytest.approx(found(half, IN_4_BITS).tensors, rel=0.002)


def test_modules_that_are_left_as_they_were_are_counted_or_told() -> None:
    told = found(config={**LLAMA, "quantization_config": {**IN_4_BITS["quantization_config"], **IN_LAYERS}})
    assert told.resident - found(config=IN_4_BITS).resident == pytest.approx(32 * 4096**2 * (2 - 0.516), rel=0.01)
    assert "but 1 modules, which are not looked at" in told.reasons[0]


@pytest.mark.parametrize("given", [{"quant_method": "aqlm"}, {"quant_method": "gptq"}, {"bits": 4}], ids=str)
def test_weights_whose_size_is_not_known_are_refused(given: dict[str, t.Any]) -> None:
    with pytest.raises(FinetuneError, match="quantized already"):
        found(config={**LLAMA, "quantization_config": given})


@pytest.mark.parametrize("key", keys.UNKNOWN)
def test_what_keeps_other_things_on_a_gpu_is_refused(key: str) -> None:
    with pytest.raises(FinetuneError, match="is not known here"):
        found({key: True})


def test_unsloth_has_its_own_checkpoints_and_kernels() -> None:
    told = found({"use_unsloth": True})
    assert told.tensors < found().tensors and told.reasons == ["unsloth"]
    assert told.host == found({"use_unsloth_gc": True}).host > found().host
    assert found({"use_unsloth": True, "disable_gradient_checkpointing": True}).tensors == told.tensors


# GPUs and verdicts


@pytest.mark.parametrize(("text", "size"), [("1.5GiB", 3 << 29), ("2 GB", 2 * 10**9), ("800MiB", 800 << 20)])
def test_amounts_of_memory(text: str, size: int) -> None:
    assert hardware.amount(text, "used") == size
    with pytest.raises(FinetuneError, match="used"):
        hardware.amount(f"{text}s", "used")


@pytest.mark.parametrize(
    ("wanted", "name", "mib"),
    [
        ("H100", "NVIDIA H100 80GB HBM3", 81_559),
        ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-40GB", 40_960),
        ("rtx 4090", "NVIDIA GeForce RTX 4090", 24_564),
        ("24GiB", "24GiB", 24_576),
    ],
)
def test_gpus_are_found_by_their_names(wanted: str, name: str, mib: int) -> None:
    gpu = hardware.find(wanted)
    assert (gpu.name, gpu.memory) == (name, mib << 20)


def test_an_unknown_gpu_is_refused() -> None:
    with pytest.raises(FinetuneError, match="T1000"):
        hardware.find("T1000")


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_the_verdict_is_on_the_bound(factor: float) -> None:
    told = found()
    judged = estimate.verdict(told, round(told.bound * factor))
    assert judged.fits is (factor > 1) and (judged.free > 0) is judged.fits
    assert ("decides" in judged.why) is not judged.fits


def test_what_others_hold_is_not_there() -> None:
    told = found()
    assert estimate.verdict(told, told.bound).fits
    assert not estimate.verdict(told, told.bound, used=1).fits


def test_asft_has_a_reference_and_its_logits() -> None:
    """Like dpo's; where the loss is made, it is five more of the size of the logits in fp32."""
    full = {"finetuning_type": "full", "cutoff_len": 1024}
    plain, asft = found(full), found({**full, "use_asft_loss": True})
    adapter, anchored = found({"cutoff_len": 1024}), found({"cutoff_len": 1024, "use_asft_loss": True})
    weights, logits = 2 * plain.parameters, 4 * 1024 * LLAMA["vocab_size"]
    assert asft.resident - plain.resident == pytest.approx(weights, rel=0.01)
    assert anchored.resident == adapter.resident, "its adapter is left out for it, or there is another model"
    grown = anchored.moments["loss, forward"] - adapter.moments["loss, forward"]
    assert 5 * logits < grown < 6 * logits
    assert "the loss of ASFT" in asft.reasons and asft.tag == "unverified"
    assert found({**full, "use_asft_loss": True, "stage": "pt"}).resident == found({**full, "stage": "pt"}).resident


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "for       a micro-batch of 8, sequences of 2048 tokens"),
        (
            {"per_device_train_batch_size": 1, "cutoff_len": 512, "do_eval": True},
            "for       a micro-batch of 1, sequences of 512 tokens; evaluation in batches of 8",
        ),
        (
            {"val_size": 0.1, "per_device_eval_batch_size": 2},
            "for       a micro-batch of 8, sequences of 2048 tokens; evaluation in batches of 2",
        ),
    ],
)
def test_what_it_is_for_is_told(arguments: dict[str, t.Any], said: str) -> None:
    told = estimate.estimate(CONFIGS["llama3-8b"], arguments)
    assert f"  {said}" in report.lines(told, None, 1)


def test_every_moment_has_its_words() -> None:
    for arguments in ({}, {"do_eval": True}, {"stage": "ppo"}):
        told = found(arguments)
        assert told.binding in told.moments and told.moments[told.binding] == told.tensors
        lines = "\n".join(report.lines(told, estimate.verdict(told, 8 * GIB), 1))
        assert told.tag in lines and "does not fit" in lines and all(name in lines for name in told.moments)
    assert set(estimate.ADVICE) <= set(estimate.WORDS.values())
    assert json.dumps(dataclasses.asdict(found()))
