# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan: who the run is, arguments, records reused, drift told, what a person reads."""

from __future__ import annotations

import re
import typing as t

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import (
    _describe,
    _identity,
    _plan,
    _ranks,
    _request,
    _wish,
)
from ansible_collections.llmops.finetune.plugins.module_utils._engine import base_model
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

from .plans import (
    DATA,
    DEFAULTS,
    DEMO_ARGUMENTS,
    LOCK,
    RECIPES,
    SCHEMAS,
    Variables,
    eth0,
    known,
    lines,
    make,
    node,
    origins,
    recorded,
)


def test_each_layer_goes_over_the_one_before_and_is_named() -> None:
    plan = make({"a": node()}, train_args={"lora_rank": 16, "seed": 7}, train_set="seed=8")
    written, where = lines(plan), origins(plan)
    demo = base_model.RECIPE["fine_tuning"]
    assert (written["lora_target"], where["lora_target"]) == ("all", "recipe lora_sft")
    assert (written["learning_rate"], where["learning_rate"]) == (demo["learning_rate"], "model demo")
    assert (written["lora_rank"], where["lora_rank"]) == (16, "train_args")
    assert (written["seed"], where["seed"]) == (8, "train_set")
    assert (where["model_name_or_path"], where["dataset"], where["output_dir"]) == (
        "train_model",
        "train_datasets",
        "the run's folder",
    )


@pytest.mark.parametrize("asked", [0, None, "", 2, "2"])
def test_a_run_goes_with_the_hosts_that_there_should_be(asked: object) -> None:
    _ranks.refuse_incomplete({"a": asked, "b": asked})


@pytest.mark.parametrize("asked", [3, 1, "3", "two"])
def test_a_run_does_not_go_without_a_host(asked: object) -> None:
    with pytest.raises(FinetuneError, match="train_nodes of a"):
        _ranks.refuse_incomplete({"a": asked, "b": asked})


def test_the_global_batch_is_split_over_all_ranks() -> None:
    plan = make({"a": node(2), "b": node(2)}, train_global_batch_size=24)
    written = lines(plan)
    micro, accumulation = written["per_device_train_batch_size"], written["gradient_accumulation_steps"]
    assert micro * accumulation * 4 == plan.resolved["global_batch_size"] == 24
    assert origins(plan)["gradient_accumulation_steps"] in ("train_global_batch_size", "model demo")
    with pytest.raises(FinetuneError, match="24 or 28"):
        make({"a": node(2), "b": node(2)}, train_global_batch_size=26)


@pytest.mark.parametrize(
    ("capabilities", "arguments", "expected"),
    [
        ((), {}, {}),  # float32
        ((9.0,), {}, {"bf16": True}),
        ((8.0, 9.0), {}, {"bf16": True}),
        ((7.5,), {}, {"fp16": True}),
        ((9.0, 7.5), {}, {"fp16": True}),
        ((9.0,), {"fp16": True}, {"fp16": True}),
        ((9.0,), {"bf16": False}, {"bf16": False}),
        ((9.0,), {"pure_bf16": True}, {"pure_bf16": True}),
    ],
)
def test_precision_is_what_the_weakest_gpu_can_unless_the_author_chose(
    capabilities: tuple[float, ...], arguments: Variables, expected: Variables
) -> None:
    facts = {"abc"[i]: node(1, capability) for i, capability in enumerate(capabilities)} or {"a": node()}
    written = lines(make(facts, train_args=arguments))
    assert {key: value for key, value in written.items() if key in ("bf16", "fp16", "pure_bf16")} == expected


def test_no_host_is_refused() -> None:
    with pytest.raises(FinetuneError, match="no host to train on"):
        make({})


def test_hosts_addresses_and_users_are_not_in_the_id() -> None:
    one = make({"a": node()})
    other = make(
        {"z": node(4, interfaces=eth0("192.0.2.1"), root="/x", user="u"), "y": node(1)},
        addresses={"z": "198.51.100.7"},
        train_port=1,
        train_user="u",
        train_root="/x",
        train_gpus="all",
        train_max_restarts=9,
        train_lease_dir="/y",
    )
    assert other.id == one.id == _request.run_id(one.request)
    assert make({"a": node()}, train_args={"num_train_epochs": 3.0}).id == (
        make({"a": node()}, train_set="num_train_epochs=3").id
    )


@pytest.mark.parametrize(
    "inputs",
    [
        {"train_set": "seed=1"},
        {"train_recipe": "full_sft", "train_name": "lora-sft"},
        {"train_model": "org/x"},
        {"train_engine": "ddp"},
        {"train_global_batch_size": 8},
        {"train_processes_per_node": 1},
    ],
    ids=str,
)
def test_each_input_of_the_author_is_in_the_id(inputs: Variables) -> None:
    assert make({"a": node()}, **inputs).id != make({"a": node()}).id


def test_the_text_of_the_demo_model_is_in_the_id() -> None:
    wish = _wish.read({**DEFAULTS, "train_datasets": ["demo"]}, SCHEMAS, RECIPES)
    requests = [_identity.request(wish, [DATA], digest) for digest in ("c", "d")]
    assert _request.run_id(requests[0]) != _request.run_id(requests[1])


def test_a_recorded_plan_is_reused_line_by_line() -> None:
    first = make({"a": node()}, train_args={"seed": 1, "lora_alpha": 2})
    again = make({"a": recorded(first)}, train_args={"seed": 1, "lora_alpha": 2})
    assert (first.recorded, again.recorded) == (False, True)
    assert again.nodes["a"]["arguments"] == first.nodes["a"]["arguments"]
    assert again.nodes["a"]["state"] == "finished"
    assert (again.notices, again.difference) == ([], [])


def test_a_newer_lock_is_told_and_taken_only_when_asked() -> None:
    first = make({"a": node()})
    newer = {"lock": "node-main", "digest": "f" * 16}
    kept = make({"a": recorded(first)}, lock=newer)
    assert kept.nodes["a"]["launch"]["python"] == first.nodes["a"]["launch"]["python"]
    assert kept.environment == {**LOCK, "current": False}
    assert len(kept.notices) == 1
    assert kept.notices[0].startswith("Drift: the run keeps environment")
    assert "train_resolve=refresh" in kept.notices[0]
    taken = make({"a": recorded(first)}, lock=newer, train_resolve="refresh")
    assert taken.id == first.id
    assert taken.environment == {**newer, "current": True}
    assert taken.notices == []


def test_another_number_of_ranks_is_resolved_again() -> None:
    first = make({"a": node(1)})
    again = make({"a": recorded(first, gpus=2)})
    assert again.resolved["world_size"] == 2
    assert ["1 ranks" in notice and "2" in notice for notice in again.notices] == [True]


@pytest.mark.parametrize("resolved", [None, {}])
def test_a_record_without_resolution_is_resolved_again(resolved: t.Any) -> None:
    plan = make({"a": node()})
    facts = recorded(plan)
    facts["runs"][plan.id]["resolved"] = resolved
    assert not make({"a": facts}).recorded


@pytest.mark.parametrize(("wanted", "holds"), [("finished", True), ("staged", False)])
def test_only_what_is_about_to_start_holds_its_place(wanted: str, holds: bool) -> None:
    facts = {"a": node(), "b": node(interfaces=eth0("10.0.0.2"))}
    plan = make(facts, train_state=wanted)
    assert [one["listens"] for one in plan.nodes.values()] == [holds, holds]
    assert [one["listens"] for one in make({"a": node()}, train_state=wanted).nodes.values()] == [False]


def test_a_new_request_is_compared_with_the_newest_run() -> None:
    old, newer = make({"a": node()}, train_set="seed=1"), make({"a": node()}, train_set="seed=2")
    facts = known((newer, "finished", 20.0), (old, "finished", 10.0))
    plan = make({"a": facts}, train_set="seed=3")
    assert plan.difference == [f"since   {newer.id} (finished)", "        seed: 2 → 3 (train_set)"]
    assert make({"a": facts}, train_set="seed=1").difference == [], "a known run is no new request"


def test_a_failed_run_is_compared_with_only_where_there_is_no_other() -> None:
    good, bad = make({"a": node()}, train_set="seed=1"), make({"a": node()}, train_set="seed=2")
    facts = known((good, "finished", 10.0), (bad, "failed", 20.0))
    assert make({"a": facts}, train_set="seed=3").difference[0] == f"since   {good.id} (finished)"
    facts = known((bad, "failed", 20.0))
    assert make({"a": facts}, train_set="seed=3").difference[0] == f"since   {bad.id} (failed)"


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({"train_set": "learning_rate=2e-4"}, ["learning_rate: 0.001 → 0.0002 (train_set)"]),
        ({"train_args": {"learning_rate": 1e-3}}, ["learning_rate: not set → 0.001, which comes to the same"]),
        ({"train_model": "/srv/x", "train_args": DEMO_ARGUMENTS}, ["model.name: demo → /srv/x", "model.recipe: "]),
        (
            {"train_recipe": "full_sft", "train_name": "lora-sft"},
            ["recipe: lora_sft → full_sft", "finetuning_type: lora"],
        ),
    ],
    ids=str,
)
def test_a_difference_is_told_in_the_values_that_ranks_get(wish: Variables, expected: list[str]) -> None:
    first = make({"a": node()})
    told = [line.strip() for line in make({"a": known((first, "finished", 1.0))}, **wish).difference[1:]]
    for line in expected:
        assert any(one.startswith(line) for one in told), told


@pytest.mark.parametrize(
    ("leases", "wish", "held"),
    [
        ({}, {}, ""),
        ({"cpu": {"run": "theirs", "user": "ada", "pid": 42}}, {}, "held by run theirs (user ada, process 42)"),
        ({"cpu": {"run": "theirs", "user": "ada", "pid": 42}}, {}, "-e train_run_id=theirs -e train_user=ada"),
        ({"cpu": {"run": "theirs", "user": "me", "pid": 42}}, {}, "-e train_run_id=theirs)"),
        ({"cpu": {"run": "theirs"}}, {"train_state": "staged"}, ""),
        ({"GPU-z": {"run": "theirs"}}, {}, ""),
    ],
    ids=str,
)
def test_who_holds_what_the_run_needs_is_known_before_anything_is_staged(
    leases: Variables, wish: Variables, held: str
) -> None:
    plan = make({"a": node(leases=leases)}, **wish)
    assert (held in plan.held) if held else plan.held == ""
    assert "train_gpus" not in plan.held, "no advice about GPUs where there is none"
    told = [line for line in _describe.lines(plan, [DATA], {"a": node()}) if line.startswith("  held")]
    assert len(told) == bool(held)


@pytest.mark.parametrize(("state", "held"), [("running", False), ("finished", False), ("interrupted", True)])
def test_a_run_that_does_not_start_now_is_not_held_up(state: str, held: bool) -> None:
    plan = make({"a": node()})
    facts = {**known((plan, state, 1.0)), "leases": {"cpu": {"run": "x", "user": "me", "pid": 1}}}
    assert bool(make({"a": facts}).held) is held


def test_a_held_gpu_is_told_with_the_way_round_it() -> None:
    facts = node(2, leases={"GPU-b": {"run": "theirs", "user": "me", "pid": 1}})
    assert "choose other GPUs with train_gpus" in make({"a": facts}).held
    assert make({"a": facts}, train_gpus="0,").held == ""


def test_a_person_reads_what_will_run_where() -> None:
    facts = {"a": node(2), "b": node(1, interfaces=eth0("10.0.0.2"))}
    plan = make(facts, train_global_batch_size=12)
    text = "\n".join(_describe.lines(plan, [DATA], facts))
    assert f"Run {plan.id}: absent" in text
    assert "recipe  lora_sft, environment node-main 0123456789abcdef" in text
    assert "12 = " in text
    assert "a at 10.0.0.1: 2 × H200, 2 process(es)" in text
    assert "b at 10.0.0.2: 1 × H200, 1 process(es)" in text
    alone = "\n".join(_describe.lines(make({"a": node()}), [DATA], {"a": node()}))
    assert "a: 8 CPUs, no GPU, 1 process(es)" in alone


# Batch


@pytest.mark.parametrize("wanted", [1, 7, 30, 32, 64, 96, 210])
@pytest.mark.parametrize("recipe", ["lora_sft", "dpo"])
def test_a_global_batch_is_that_of_any_number_of_ranks_or_refused_with_the_nearest(recipe: str, wanted: int) -> None:
    for ranks in range(1, 65):
        asked: Variables = {
            "train_recipe": recipe,
            "train_global_batch_size": wanted,
            "train_processes_per_node": ranks,
        }
        if wanted % ranks == 0:
            assert samples(make({"a": node()}, **asked), ranks) == wanted
            continue
        with pytest.raises(FinetuneError, match=f"A global batch of {wanted} on {ranks} ranks") as refusal:
            make({"a": node()}, **asked)
        near = [int(word) for word in re.findall(r"\d+", refusal.value.change)]
        below, above = wanted // ranks * ranks, (wanted // ranks + 1) * ranks
        assert near == [value for value in (below, above) if value]
        for value in near:
            assert samples(make({"a": node()}, **{**asked, "train_global_batch_size": value}), ranks) == value


@pytest.mark.parametrize(
    ("sizes", "copies"),
    [
        ({}, 32),
        ({"tensor_model_parallel_size": 4}, 8),
        ({"tensor_model_parallel_size": 4, "pipeline_model_parallel_size": 4}, 2),
    ],
)
def test_a_global_batch_counts_copies_of_the_model_and_not_ranks(sizes: dict[str, int], copies: int) -> None:
    facts = {host: node(gpus=8, interfaces=eth0(f"10.0.0.{i}")) for i, host in enumerate("abcd")}
    asked: Variables = {"train_recipe": "megatron", "train_model": "org/model", "train_args": sizes}
    plan = make(facts, **asked, train_global_batch_size=64)
    assert samples(plan, copies) == plan.resolved["global_batch_size"] == 64


def samples(plan: _plan.Plan, copies: int) -> int:
    """Of an optimizer step, as train.yaml says."""
    told = lines(plan)
    return int(told["per_device_train_batch_size"] * told["gradient_accumulation_steps"] * copies)
