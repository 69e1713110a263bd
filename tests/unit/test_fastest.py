# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fastest way that fits, where a run leaves that open."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _memory, _wish
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.module_utils._vram import choose, estimate, speed

from .plans import DEFAULTS, RECIPES, SCHEMAS, Variables, eth0, make, node, recorded
from .test_memory import CONFIGS, LORA, MODEL, host, peaks, refused, told

FASTEST: Variables = {"train_model": MODEL, "train_fit": "fastest", "train_global_batch_size": 128}


def arguments(plan: t.Any) -> tuple[t.Any, ...]:
    """Micro-batch, accumulation, without checkpointing, Liger, bits, engine."""
    given = plan.resolved["arguments"]
    keys = (choose.MICRO, choose.ACCUMULATION, choose.PLAIN, choose.FUSED, choose.BITS)
    return (*(given.get(key) for key in keys), plan.resolved["engine"])


def test_what_is_open_is_chosen_at_the_same_global_batch() -> None:
    facts = {"a": host(gpus=8)}
    plan = make(facts, train_recipe="full_sft", **FASTEST)
    assert arguments(plan) == (16, 1, None, True, None, "zero2") and plan.resolved["global_batch_size"] == 128
    assert plan.memory["estimate"]["bound"] <= plan.memory["free"]
    came = {line["key"]: line["origin"] for line in plan.nodes["a"]["arguments"]}
    assert came[choose.MICRO] == came[choose.FUSED] == "train_fit" and came["cutoff_len"] == "recipe full_sft"
    text = told(plan, facts)
    assert "  fit     16 × 1, zero2, checkpointing, Liger" in text and ": chosen of " in text
    assert text.count(": too much") == 3 and "predicted from data sheets, not measured" in text


def test_alone_it_is_one_rank_without_an_engine() -> None:
    plan = make({"a": host()}, **{**FASTEST, "train_global_batch_size": 16})
    assert arguments(plan) == (4, 4, True, True, None, "single")
    recipe = make({"a": host()}, **{**FASTEST, "train_global_batch_size": "auto"})
    assert recipe.resolved["global_batch_size"] == make({"a": host()}, **LORA).resolved["global_batch_size"]


@pytest.mark.parametrize(
    ("wish", "kept"),
    [
        ({"train_engine": "zero3"}, {"engine": "zero3"}),
        ({"train_set": "per_device_train_batch_size=2"}, {choose.MICRO: 2, choose.ACCUMULATION: 8}),
        ({"train_set": "gradient_accumulation_steps=16"}, {choose.MICRO: 1, choose.ACCUMULATION: 16}),
        ({"train_args": {"enable_liger_kernel": False}}, {choose.FUSED: False}),
        ({"train_args": {"disable_gradient_checkpointing": False}}, {choose.PLAIN: False}),
    ],
)
def test_what_is_written_stays(wish: Variables, kept: Variables) -> None:
    plan = make({"a": host("A100", gpus=8)}, **FASTEST, **wish)
    now = {**plan.resolved["arguments"], "engine": plan.resolved["engine"]}
    assert {key: now[key] for key in kept} == kept
    assert plan.resolved["global_batch_size"] == 128


@pytest.mark.parametrize(
    ("wish", "facts", "never"),
    [
        ({"train_set": "optim=adamw_8bit"}, {}, "offload"),  # DeepSpeed has no such optimizer on the host
        ({}, {"memory": 2**30}, "offload"),
        ({}, {"compilers": []}, "offload"),
        ({"train_recipe": "badam"}, {}, "zero2"),  # layer-wise, which is ZeRO-3's alone
    ],
)
def test_what_is_refused_elsewhere_is_not_chosen(wish: Variables, facts: Variables, never: str) -> None:
    one = {**host(gpus=2), **facts}
    refusal = plan = None
    try:
        plan = make({"a": one}, **{"train_recipe": "full_sft", **FASTEST, **wish})
    except FinetuneError as error:
        refusal = error
    assert plan is None or never not in plan.resolved["engine"]
    assert refusal is None or "does not fit" in refusal.what


def test_weights_are_quantized_only_where_that_is_allowed() -> None:
    t4 = {"a": host("T4")}
    with pytest.raises(FinetuneError, match="It does not fit") as refusal:
        make(t4, **{**FASTEST, "train_engine": "ddp"})
    assert "quantization_bit: 4" in refusal.value.change and "train_fit" in refusal.value.where
    assert "also as 1 × 128, ddp, checkpointing, Liger, which needs least of " in refusal.value.what
    plan = make(t4, train_fit_quantize=True, **{**FASTEST, "train_engine": "ddp"})
    assert plan.resolved["arguments"]["quantization_bit"] == 4
    assert "train_fit_quantize" in refused(t4, train_fit_quantize=True, **LORA).where


def test_who_a_run_is_changes_only_with_the_wish_to_choose() -> None:
    facts = {"a": host(gpus=8)}
    before = make(facts, **LORA)
    assert not before.request.keys() & {"fit", "quantize"}
    chosen = make(facts, train_fit="fastest", **LORA)
    assert chosen.id != before.id and chosen.request["fit"] == "fastest"
    assert make({"a": host("A100", gpus=8)}, train_fit="fastest", **LORA).id == chosen.id, "what comes out is not in it"


@pytest.mark.parametrize("state", ["staged", "interrupted", "finished"])
def test_a_recorded_choice_is_kept_and_a_better_one_told(state: str) -> None:
    many = {**FASTEST, "train_recipe": "full_sft", "train_global_batch_size": 1024}
    first = make({"a": host("A100 40GB", gpus=8)}, **many)
    runs = recorded(first)["runs"]
    runs[first.id]["state"] = state
    again = {"a": host("A100 40GB", gpus=8, runs=runs)}
    plan = make(again, **many)
    assert plan.recorded and plan.resolved == first.resolved
    assert plan.nodes["a"]["arguments"] == first.nodes["a"]["arguments"], "also where each value came from"
    assert not any("Drift" in notice for notice in plan.notices)
    larger = {"a": host("B200", gpus=8, runs=runs)}
    plan = make(larger, **many)
    assert plan.resolved == first.resolved
    drift = [notice for notice in plan.notices if "would choose" in notice]
    assert len(drift) == (state != "finished")
    if state == "staged":
        assert "engine zero2" in drift[0] or "engine ddp" in drift[0]
    if state == "interrupted":
        fresh = make(larger, train_resolve="refresh", **many)
        assert fresh.resolved["engine"] == first.resolved["engine"], "its checkpoints are of that"
        assert fresh.resolved["arguments"] != first.resolved["arguments"]


def test_on_cpus_and_without_a_config_it_is_as_asked() -> None:
    asked = make({"a": node(model={"config": CONFIGS["llama3-8b"]})}, **LORA)
    plan = make({"a": node(model={"config": CONFIGS["llama3-8b"]})}, train_fit="fastest", **LORA)
    assert plan.resolved == asked.resolved
    unknown = {"a": host(config={})}
    plan = make(unknown, train_fit="fastest", **LORA)
    assert plan.resolved == make(unknown, **LORA).resolved and "nothing is chosen" in told(plan, unknown)


def test_eight_nodes_take_few_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    """An estimate takes less than 20 ms, all else next to nothing: planning takes less than half a second."""
    count = 0
    real = estimate.estimate

    def counting(*args: t.Any, **kwargs: t.Any) -> t.Any:
        nonlocal count
        count += 1
        return real(*args, **kwargs)

    monkeypatch.setattr(estimate, "estimate", counting)
    facts = {name: host(gpus=8, interfaces=eth0(f"10.0.0.{i + 1}")) for i, name in enumerate("abcdefgh")}
    for recipe in ("full_sft", "lora_sft"):
        count = 0
        plan = make(facts, **{**FASTEST, "train_global_batch_size": 4096, "train_recipe": recipe})
        assert plan.resolved["world_size"] == 64 and 0 < count <= 20


def test_links_between_ranks_are_the_slowest_of_all_ways() -> None:
    wish = _wish.read({**DEFAULTS, "train_datasets": [{"file": "a.json"}]}, SCHEMAS, RECIPES)
    one = host(gpus=2)
    assert _memory._link(wish, {"a": one}) == speed.PCIE
    linked = {**one, "gpu_links": [[0, 1, "NV18"]]}
    assert _memory._link(wish, {"a": linked}) == 18 * 25e9
    assert _memory._link(wish, {"a": {**one, "gpu_links": [[0, 1, "SYS"]]}}) == speed.PCIE
    assert _memory._link(wish, {"a": linked, "b": linked}) == 10e9 / 8
    fast = {**linked, "interfaces": [{**eth0("10.0.0.1")[0], "speed": 100_000}]}
    assert _memory._link(wish, {"a": fast, "b": fast}) == 100e9 / 8


def test_the_fastest_that_fits_is_chosen_by_what_was_learned() -> None:
    wish = {**FASTEST, "train_global_batch_size": 16}
    first = make({"a": host()}, **wish)
    taught = {"a": host(peaks={"x-1": peaks(first, 1.4)})}
    plan = make(taught, **wish)
    assert arguments(plan) != arguments(first) and plan.memory["estimate"]["bound"] <= plan.memory["free"]
