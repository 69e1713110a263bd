# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory: what ranks share, and what optimizers keep."""

from __future__ import annotations

import typing as t

import pytest
import yaml
from ansible_collections.llmops.finetune.plugins.module_utils import _parallel
from ansible_collections.llmops.finetune.plugins.module_utils._vram import engines
from ansible_collections.llmops.finetune.plugins.modules import vram_info

from .estimates import LLAMA, found


@pytest.mark.parametrize("engine", engines.NAMES)
def test_every_engine_is_unverified(engine: str) -> None:
    told = found({"finetuning_type": "full"}, world=8, engine=engine)
    assert told.tag == "unverified" and told.reasons == [f"engine {engine} on 8 ranks"]
    alone = found({"finetuning_type": "full"}, engine=engine)
    assert (alone.tag, alone.reasons) == (
        ("replayed", []) if engine == "ddp" else ("unverified", [f"engine {engine}"])
    ), "DeepSpeed and FSDP on one GPU are not measured either"


def test_engines_are_those_that_the_module_tells_and_those_of_train_engine_among_them() -> None:
    told = yaml.safe_load(vram_info.DOCUMENTATION)["options"]["engine"]["choices"]
    assert told == ["auto", *engines.NAMES] and {"zero1", "fsdp"} <= set(told)
    provided = {name for name, one in _parallel.ENGINES.items() if not one.unproved}
    assert provided - {engines.SINGLE} <= set(engines.NAMES)


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
