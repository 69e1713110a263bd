# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs that begin with earlier ones: which one is meant, what of it is taken up, and when that is refused."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _chain, _describe, _identity, _plan, _wish
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

from .plans import COMMIT, CORPUS, DATA, DEFAULTS, LOCK, RECIPES, SCHEMAS, make, node

ROOT = "/home/me/llmops"


def run(run_id: str, state: str = "finished", created: float = 1.0, **resolved: t.Any) -> dict[str, t.Any]:
    """A run as a node has it on record: an adapter on the demo's model, unless told otherwise."""
    arguments = {"stage": "sft", "finetuning_type": "lora", **resolved}
    model = arguments.pop("model", {"name": "demo", "revision": "r"})
    return {"id": run_id, "state": state, "created": created, "resolved": {"arguments": arguments, "model": model}}


def having(*runs: dict[str, t.Any]) -> dict[str, dict[str, t.Any]]:
    return {"a": node(before={one["id"]: one for one in runs})}


def plan(facts: dict[str, dict[str, t.Any]], made: dict[str, t.Any] | None = None, **wish: t.Any) -> _plan.Plan:
    read = _wish.read({**DEFAULTS, "train_datasets": [{"file": "a.json"}], **wish}, SCHEMAS, RECIPES)
    who = _identity.find(read, (DATA,), facts, corpus_digest=CORPUS, made=made)
    return _plan.make(who, (DATA,), facts, environment=LOCK, schema=SCHEMAS[read.environment])


def lines(found: _plan.Plan) -> dict[str, str]:
    return {line["key"]: line["value"].strip(chr(34)) for line in found.nodes["a"]["arguments"]}


def test_an_adapter_goes_onto_the_model_that_it_was_made_for_and_is_trained_on() -> None:
    found = plan(having(run("sft-00000001")), train_from="sft", train_name="more")
    here = lines(found)
    assert here["adapter_name_or_path"] == f"{ROOT}/runs/sft-00000001/output"
    assert "/models/demo@" in here["model_name_or_path"] and "create_new_adapter" not in here
    assert found.nodes["a"]["before"] == ["sft-00000001"] and found.held == ""
    assert here["template"] == "qwen3_nothink", "of the model at the beginning"


def test_all_weights_are_the_model() -> None:
    found = plan(having(run("pt-00000001", finetuning_type="full")), train_from="pt", train_name="sft")
    here = lines(found)
    assert here["model_name_or_path"] == f"{ROOT}/runs/pt-00000001/output" and "adapter_name_or_path" not in here
    assert here["template"] == "qwen3_nothink" and found.resolved["model"]["family"] == "demo"
    again = plan(
        having(run("sft-00000002", **found.resolved["arguments"], model=found.resolved["model"])), train_from="sft"
    )
    assert lines(again)["model_name_or_path"] == f"{ROOT}/runs/pt-00000001/output"
    assert lines(again)["adapter_name_or_path"] == f"{ROOT}/runs/sft-00000002/output"
    assert again.nodes["a"]["before"] == ["pt-00000001", "sft-00000002"]


@pytest.mark.parametrize("recipe", ["dpo", "kto"])
def test_what_compares_with_the_model_as_it_was_keeps_that(recipe: str) -> None:
    first = plan(having(run("sft-00000001")), train_from="sft", train_recipe=recipe)
    assert lines(first)["create_new_adapter"] == "true"
    own = plan(having(run("sft-00000001")), train_from="sft", train_recipe=recipe, train_set="create_new_adapter=false")
    assert lines(own)["create_new_adapter"] == "false"
    after = run("dpo-00000002", **first.resolved["arguments"], model=first.resolved["model"])
    assert lines(plan(having(after), train_from="dpo"))["adapter_name_or_path"] == (
        f"{ROOT}/runs/sft-00000001/output,{ROOT}/runs/dpo-00000002/output"
    )


def test_a_model_of_a_hub_stays_at_the_commit_of_the_earlier_run() -> None:
    earlier = run("sft-00000001", model={"name": "Qwen/Qwen3-4B", "revision": COMMIT}, template="qwen3_nothink")
    facts = having(earlier)
    facts["a"]["hub"] = {}
    found = plan(facts, train_from="sft", train_name="more")
    assert found.resolved["model"]["name"] == "Qwen/Qwen3-4B" and found.resolved["model"]["revision"] == COMMIT
    assert lines(found)["template"] == "qwen3_nothink"


def test_a_model_that_was_sent_is_where_it_was_sent_to() -> None:
    earlier = run("sft-00000001", model={"name": "file", "revision": "ab" * 32})
    facts = having(earlier)
    facts["a"]["hub"] = {}
    found = plan(facts, train_from="sft", train_name="more")
    assert lines(found)["model_name_or_path"] == f"{ROOT}/models/file@{'ab' * 8}" and "modelscope" not in str(found)


def test_the_reward_model_of_ppo_is_a_run() -> None:
    on_top: dict[str, t.Any] = {"adapter_name_or_path": "run:sft-00000001", "create_new_adapter": True}
    facts = having(run("sft-00000001"), run("judge-00000001", stage="rm", **on_top))
    found = plan(facts, train_from="sft", train_reward_from="judge", train_recipe="ppo")
    assert lines(found)["reward_model"] == f"{ROOT}/runs/judge-00000001/output"
    assert lines(found)["reward_model_type"] == "lora" and lines(found)["create_new_adapter"] == "true"
    assert found.nodes["a"]["before"] == ["sft-00000001", "judge-00000001"]
    assert "  from    sft-00000001, judge-00000001" in _describe.lines(found, [DATA], facts)
    alone = make({"a": node()})
    assert not any(line.startswith("  from") for line in _describe.lines(alone, [DATA], {"a": node()}))
    with pytest.raises(FinetuneError, match="no reward model"):
        plan(facts, train_from="sft", train_reward_from="sft", train_recipe="ppo")
    with pytest.raises(FinetuneError, match="takes no reward model"):
        plan(facts, train_reward_from="judge")


def test_a_reward_model_scores_for_the_model_that_it_was_trained_on() -> None:
    """PPO merges the earlier adapter into the model. One that had gone on with it would count it twice."""
    sft, judge = run("sft-00000001"), "judge-00000001"
    reward = plan(having(sft), train_from="sft", train_recipe="reward")
    assert lines(reward)["create_new_adapter"] == "true"
    ppo: dict[str, t.Any] = {"train_reward_from": "judge", "train_recipe": "ppo"}
    plan(having(sft, run(judge, **reward.resolved["arguments"])), **ppo, train_from="sft")
    again = {**reward.resolved["arguments"], "create_new_adapter": False}
    plan(having(sft, run(judge, **again)), **ppo)
    plan(having(sft, run(judge, **again)), **ppo, train_from="sft", train_set="create_new_adapter=false")
    plan(having(sft, run(judge, stage="rm", finetuning_type="full")), **ppo, train_from="sft")
    for other in (run(judge, **again), run(judge, stage="rm")):
        with pytest.raises(FinetuneError, match="is an adapter on another model"):
            plan(having(sft, other), **ppo, train_from="sft")
    both = {"adapter_name_or_path": "/a, /b", "create_new_adapter": True}
    there = having(run(judge, **{**reward.resolved["arguments"], **both}))
    there["a"]["folders"] = {name: ["adapter_config.json"] for name in ("/a", "/b")}
    plan(there, **ppo, train_args=both)
    with pytest.raises(FinetuneError, match="an adapter on another model"):
        plan(having(sft, run(judge, **reward.resolved["arguments"])), **ppo)


def test_a_reward_model_that_is_an_adapter_is_one_on_the_same_model() -> None:
    whole, judge = run("base-00000001", finetuning_type="full"), run("judge-00000001", stage="rm")
    ppo: dict[str, t.Any] = {"train_name": "x", "train_reward_from": "judge", "train_recipe": "ppo"}
    with pytest.raises(FinetuneError, match="scores answers on demo, and PPO would put it onto run:base-00000001"):
        plan(having(whole, judge), **ppo, train_from="base")
    with pytest.raises(FinetuneError, match="would put it onto org/m"):
        plan(having(judge), **ppo, train_model="org/m")
    for there, model in (("modelscope:org/m", "org/m"), ("org/m", "/srv/m"), ("/srv/m", "org/m"), ("demo", "demo")):
        plan(having(run("judge-1", stage="rm", model={"name": there, "revision": "r"})), **ppo, train_model=model)
    plan(having(whole, run("judge-1", stage="rm", finetuning_type="full")), **ppo, train_from="base")


def test_a_reward_model_is_one_on_a_model_of_the_same_shape() -> None:
    """Where names tell nothing, as those of folders, config.json does."""
    shape = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2}
    judge = run("judge-1", stage="rm", model={"name": "/srv/judged", "revision": "r"})
    ppo: dict[str, t.Any] = {"train_reward_from": "judge", "train_recipe": "ppo", "train_model": "/srv/policy"}
    for own, told in ((shape, ""), ({}, ""), ({**shape, "hidden_size": 32}, "hidden_size 64 and not 32")):
        facts = having({**judge, "left": {"config": shape}})
        facts["a"]["model"] = {"config": own}
        if not told:
            plan(facts, **ppo)
            continue
        with pytest.raises(FinetuneError, match=told) as refusal:
            plan(facts, **ppo)
        assert refusal.value.where == "train_reward_from"
    whole = {**judge, "left": {"config": {**shape, "hidden_size": 128}}}
    whole["resolved"] = {**whole["resolved"], "arguments": {"stage": "rm", "finetuning_type": "full"}}
    facts = having(whole)
    facts["a"]["model"] = {"config": shape}
    plan(facts, **ppo)


def notices(found: _plan.Plan) -> list[str]:
    return [notice for notice in found.notices if notice.startswith("train_from ")]


def test_what_an_adapter_that_is_taken_up_passes_over_is_told() -> None:
    facts = having(run("sft-1", lora_rank=8, lora_target="all"))
    assert notices(plan(facts, train_from="sft", train_name="more")) == []
    (told,) = notices(plan(facts, train_from="sft", train_name="more", train_recipe="dora", train_set="lora_rank=64"))
    assert "lora_rank, use_dora passed over" in told and "create_new_adapter: true" in told
    anew = "lora_rank=64 create_new_adapter=true"
    assert notices(plan(facts, train_from="sft", train_name="more", train_recipe="dora", train_set=anew)) == []
    assert notices(plan(facts, train_from="sft", train_name="more", train_recipe="dpo", train_set="lora_rank=64")) == []
    doras = having(run("sft-1", lora_rank=8, lora_target="all", use_dora=True))
    assert notices(plan(doras, train_from="sft", train_name="more", train_recipe="dora")) == []


def test_that_what_scores_is_left_behind_is_told() -> None:
    facts = having(run("judge-1", stage="rm", lora_rank=8, lora_target="all"))
    (told,) = notices(plan(facts, train_from="judge", train_name="x"))
    assert "judge-1: that run is a reward model" in told
    assert notices(plan(facts, train_from="judge", train_name="x", train_recipe="reward")) == []


def test_another_earlier_run_is_another_run() -> None:
    ids = {plan(having(run(earlier)), train_from="sft", train_name="x").id for earlier in ("sft-1", "sft-2", "sft-1")}
    assert len(ids) == 2
    assert make({"a": node()}, train_name="x").id not in ids


def test_of_a_name_the_newest_finished_run_is_meant_and_of_an_id_that_one() -> None:
    facts = having(run("sft-1", created=1), run("sft-2", created=3), run("sft-3", created=2), run("sft-4", "failed", 9))
    assert plan(facts, train_from="sft", train_name="x").nodes["a"]["before"] == ["sft-2"]
    assert plan(facts, train_from="sft-3", train_name="x").nodes["a"]["before"] == ["sft-3"]
    of_this_play = {"sft": {key: run("sft-1")[key] for key in ("id", "resolved")}}
    assert plan(facts, of_this_play, train_from="sft", train_name="x").nodes["a"]["before"] == ["sft-1"]


def test_one_that_is_still_to_be_made_is_planned_with_and_holds_the_start() -> None:
    planned = {"sft": {key: run("sft-1")[key] for key in ("id", "resolved")}}
    held = plan({"a": node()}, planned, train_from="sft", train_name="x").held
    assert "Run sft-1, which this one begins with, is not finished." in held and "a: absent" in held
    running = plan(having(run("sft-1", "running")), planned, train_from="sft", train_name="x").held
    assert "a: running" in running


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        ({"train_from": "sft"}, "There is no finished run 'sft': sft-1 is failed"),
        ({"train_from": "other"}, "There is no finished run 'other'"),
        ({"train_from": "lora-sft"}, "cannot begin with itself"),
        ({"train_from": "sft", "train_model": "org/model"}, "train_model names org/model"),
        ({"train_from": "good", "train_set": "adapter_name_or_path=/a"}, "train_from decides adapter_name_or_path"),
        (
            {"train_from": "good", "train_recipe": "full_sft"},
            "adapter_name_or_path comes with train_from: leave that out",
        ),
    ],
)
def test_what_cannot_be_is_refused(wish: dict[str, t.Any], told: str) -> None:
    with pytest.raises(FinetuneError, match=told):
        plan(having(run("sft-1", "failed"), run("good-1")), **wish)


def test_a_member_goes_over_what_all_have_in_common() -> None:
    common = {"train_args": {"cutoff_len": 64, "lora_rank": 4}, "train_model": "org/m", "train_eval_datasets": ["e"]}
    got = _chain.over(common, {"train_name": "sft", "train_args": {"lora_rank": 8}, "train_recipe": "dora"})
    assert got["train_args"] == {"cutoff_len": 64, "lora_rank": 8}
    assert (got["train_recipe"], got["train_model"], got["train_eval_datasets"]) == ("dora", "org/m", ["e"])
    assert _chain.over(common, {"train_name": "x", "train_from": "sft"})["train_model"] == "demo", "the role's default"
    assert _chain.over(common, {"train_name": "x", "train_datasets": ["d"]})["train_eval_datasets"] == []


def test_the_revision_of_the_common_model_is_not_for_others() -> None:
    common = {"train_model": "org/m", "train_model_revision": "v2"}
    got = {
        name: _chain.over(common, {"train_name": "x", **given})["train_model_revision"]
        for name, given in (
            ("as all", {}),
            ("the same", {"train_model": "org/m"}),
            ("another", {"train_model": "org/n"}),
            ("its own", {"train_model": "org/n", "train_model_revision": "v3"}),
            ("an earlier run", {"train_from": "a"}),
        )
    }
    expected = {"as all": "v2", "the same": "v2", "another": "main", "its own": "v3", "an earlier run": "main"}
    assert got == expected


@pytest.mark.parametrize(
    ("member", "told"),
    [
        ("sft", "has no name"),
        ({"train_recipe": "dpo"}, "has no name"),
        ({"train_name": "a", "train_root": "/x"}, "cannot say train_root"),
        ({"train_name": "a", "train_args": "lora_rank=8"}, "no dict"),
    ],
)
def test_a_member_that_is_none_is_refused(member: t.Any, told: str) -> None:
    with pytest.raises(FinetuneError, match=told):
        _chain.over({}, member)


@pytest.mark.parametrize(
    ("chain", "told"),
    [
        ([{"train_name": "a"}, {"train_name": "a"}], "Two members of the chain are called a"),
        ([{"train_name": "a", "train_from": "b"}, {"train_name": "b"}], "a begins with b, which comes later"),
        ([{"train_name": "a", "train_reward_from": "b"}, {"train_name": "b"}], "list b before a"),
        ([{"train_name": 5}, {"train_name": "5"}], "Two members of the chain are called 5"),
        ([{"train_name": "a", "train_from": 5}, {"train_name": "5"}], "list 5 before a"),
        (
            [{"train_name": "a", "train_from": "b"}, {"train_name": "b", "train_from": "a"}],
            "a begins with b, and that with a again",
        ),
        (
            [
                {"train_name": "a", "train_from": "c"},
                {"train_name": "b", "train_from": "a"},
                {"train_name": "c", "train_reward_from": "b"},
            ],
            "a begins with c, and that with a again",
        ),
    ],
)
def test_members_that_do_not_go_together_are_refused(chain: list[dict[str, str]], told: str) -> None:
    with pytest.raises(FinetuneError, match=told):
        _chain.members(chain)


def test_members_in_their_order_are_taken() -> None:
    chain = [{"train_name": "a", "train_from": "earlier"}, {"train_name": "b", "train_from": "a"}, "odd"]
    assert _chain.members(chain) == chain


def test_a_mistake_is_told_with_its_member() -> None:
    def read(given: dict[str, t.Any]) -> None:
        if given["train_recipe"] == "lora_stf":
            raise FinetuneError("There is no such recipe.", where="train_recipe", change="use another one")

    chain = [{"train_name": "a", "train_recipe": "dpo"}, {"train_name": "b", "train_recipe": "lora_stf"}]
    with pytest.raises(FinetuneError, match="member b: train_recipe"):
        _chain.check({}, chain, read)


def test_that_a_chain_is_passed_over_is_told() -> None:
    (told,) = _chain.passed_over([{"train_name": "a"}], None)
    assert "llmops.finetune.chain" in told
    assert _chain.passed_over([{"train_name": "a"}], {"train_name": "a"}) == _chain.passed_over([], None) == []


def test_what_a_plan_refuses_is_told_with_its_member_once() -> None:
    wrong = FinetuneError("There is no finished run 'c'.", where="train_from", change="train it first")
    (named,) = _chain.of_member({"train_name": "b"}, wrong).parts
    assert (named.where, named.what, named.change) == ("train_chain, member b: train_from", wrong.what, wrong.change)
    assert _chain.of_member({"train_name": "b"}, named) is named
    assert _chain.of_member(None, wrong) is wrong, "there is no chain"
