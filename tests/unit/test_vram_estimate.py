# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory: what is read of config.json and LLaMA-Factory's keys, how much it is trusted, and what is decided."""

from __future__ import annotations

import dataclasses
import json
import typing as t

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _sources
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.module_utils._vram import (
    estimate,
    hardware,
    keys,
    report,
    trust,
)

from .estimates import CONFIGS, GIB, LLAMA, ONE, found


def test_a_quick_estimate_is_decided_on_with_a_wider_bound() -> None:
    exact = estimate.estimate(LLAMA, ONE, thorough=True)
    assert found().tensors == exact.tensors
    assert found().band == exact.band + trust.QUICK


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
