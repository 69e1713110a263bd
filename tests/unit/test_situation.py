# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of the nodes, the data and the model itself, held against the arguments."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _describe
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.plugin_utils import _import

from .plans import COMMIT, DATA, HELD_OUT, HUB, SCHEMAS, TABLE, Variables, eth0, known, lines, make, node

HUB_MODEL: Variables = {"train_model": "org/m"}


def test_records_that_only_the_environment_reads_are_noted() -> None:
    plan = make({"a": node()}, sources=(DATA, TABLE))
    assert plan.unread == {"t": "a: no pyarrow"}
    assert [notice.partition(":")[0] for notice in plan.notices] == ["Dataset t"]
    assert make({"a": node()}).unread == {}


@pytest.mark.parametrize(
    ("facts", "wish"),
    [
        ({}, {"train_recipe": "llama_pro"}),
        ({}, {"train_recipe": "freeze_sft", "train_set": "freeze_trainable_layers=3"}),
        ({"hub": {"revision": COMMIT, "config": {"num_hidden_layers": 12}}}, {"train_recipe": "llama_pro"} | HUB_MODEL),
    ],
)
def test_layers_that_a_model_does_not_have_are_told_before_it_is_there(facts: Variables, wish: Variables) -> None:
    with pytest.raises(FinetuneError) as refusal:
        make({"a": node(**facts)}, **wish)
    assert "freeze_trainable_layers" in refusal.value.where and "layers" in refusal.value.what


def test_the_remedy_of_a_val_size_that_leaves_nothing_is_one() -> None:
    told = {}
    for records in (1, 9):
        with pytest.raises(FinetuneError) as refusal:
            make({"a": node()}, sources=(replace(DATA, records=records),), train_set="val_size=9")
        told[records] = refusal.value.change
    assert told[1].startswith("remove val_size") and "0.1" in told[9]


def test_that_records_on_a_hub_are_not_read_is_told() -> None:
    plan = make({"a": node()}, sources=(DATA, HUB))
    assert [notice for notice in plan.notices if "records" in notice] == [
        "Dataset data is on a hub: none of its records was read before."
    ]


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        ({"train_model": "demo"}, True),
        ({"train_model": "/srv/x"}, True),
        ({"train_model": "org/m"}, False),
        ({"train_model": "/srv/x", "train_model_revision": "main"}, False),
    ],
)
def test_a_revision_of_what_has_none_is_told(wish: Variables, told: bool) -> None:
    plan = make({"a": node()}, **{"train_model_revision": "v2", **wish})
    assert any("train_model_revision v2 is passed over" in notice for notice in plan.notices) is told


def test_media_need_a_template_for_them() -> None:
    for told in ("", "template=llama3"):
        with pytest.raises(FinetuneError, match="the template is for text"):
            make({"a": node()}, sources=(replace(DATA, media=True),), train_model="org/m", train_set=told)
    assert make({"a": node()}, sources=(replace(DATA, media=True),), train_model="org/m", train_set="template=qwen2_vl")


@pytest.mark.parametrize(("engine", "told"), [("zero2", False), ("zero2_offload", True), ("zero3_offload", True)])
def test_that_offload_does_not_resume_exactly_is_told(engine: str, told: bool) -> None:
    facts = {"a": node(2, compilers=["c++", "nvcc"])}
    assert any("goes on from a checkpoint" in notice for notice in make(facts, train_engine=engine).notices) is told


def test_a_model_that_is_not_on_a_node_is_refused_before_anything_is_staged() -> None:
    facts = {"a": node(), "b": node(model_missing=True)}
    with pytest.raises(FinetuneError, match="no model in /srv/x on b") as refusal:
        make(facts, train_model="/srv/x")
    assert refusal.value.where == "train_model"
    text = "\n".join(_describe.lines(make({"a": node()}, train_model="/srv/x"), [DATA], {"a": node()}))
    assert "model   /srv/x\n" in text, "a path has no revision"


@pytest.mark.parametrize(
    ("second", "what"),
    [
        (node(model_missing=True), "There is no model in /srv/x on b"),
        (node(model={"type": "qwen3"}), "not the same on a and b"),
        (node(model={"absent": ["model.safetensors"]}), "Weights of the model are not in its folder"),
    ],
)
def test_a_model_that_a_file_names_is_refused_with_that_file(second: Variables, what: str) -> None:
    text = "stage: sft\ndo_train: true\ntemplate: qwen3\nmodel_name_or_path: /srv/x\ndataset: a\n"
    first = node(model={"absent": ["model.safetensors"]}) if "Weights" in what else node()
    with pytest.raises(FinetuneError, match=what) as refusal:
        make({"a": first, "b": second}, imported=_import.read(text, "my.yaml", SCHEMAS))
    assert refusal.value.where == "train_config, my.yaml, key model_name_or_path"


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        (
            {"train_recipe": "liger"},
            "remove enable_liger_kernel; enable_liger_kernel is of recipe liger: take another "
            "train_recipe, or set enable_liger_kernel: false in train_args",
        ),
        ({"train_set": "enable_liger_kernel=true"}, "remove enable_liger_kernel"),
        (
            {"train_recipe": "qlora_sft", "train_set": "finetuning_type=full"},
            "set finetuning_type: lora, or remove "
            "quantization_bit; quantization_bit is of recipe qlora_sft: take another train_recipe, or set "
            "quantization_bit: null in train_args",
        ),
        (
            {"train_recipe": "qlora_sft", "train_set": "use_dora=true"},
            "remove use_dora or quantization_bit; "
            "quantization_bit is of recipe qlora_sft: take another train_recipe, or set quantization_bit: null in "
            "train_args",
        ),
    ],
)
def test_of_a_key_that_the_recipe_has_there_is_nothing_to_remove(wish: Variables, told: str) -> None:
    with pytest.raises(FinetuneError) as refusal:
        make({"a": node()}, **wish)
    assert refusal.value.change == told


@pytest.mark.parametrize("wrong", [{"absent": ["model.safetensors"]}, {"damaged": ["a.safetensors"]}])
def test_for_assumed_gpus_there_need_be_no_weights(wrong: Variables) -> None:
    asked: Variables = {"train_model": "/srv/x"}
    there = {"a": node(gpus=1, model={"type": "llama", **wrong})}
    with pytest.raises(FinetuneError, match=r"eights of the model|file of weights") as refusal:
        make(there, **asked)
    assert refusal.value.where == "train_model" and "safetensors" in refusal.value.change
    assert make(there, train_assume_gpus="H100", **asked).held


PLAIN = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 99,
}


@pytest.mark.parametrize(
    ("facts", "wish", "target", "taken"),
    [
        (node(), {}, "q_proj,down_proj", True),
        (node(), {}, "foo", False),
        (node(), {}, "q_proj,foo", False),
        (node(model={"config": {**PLAIN, "model_type": "llama"}}), {"train_model": "/srv/x"}, "c_attn", False),
        (node(model={"config": {**PLAIN, "model_type": "phi3"}}), {"train_model": "/srv/x"}, "qkv_proj", True),
        (node(model={"config": {**PLAIN, "model_type": "phi3"}}), {"train_model": "/srv/x"}, "q_proj", False),
        (node(model={"config": {**PLAIN, "model_type": "other"}}), {"train_model": "/srv/x"}, "foo", True),
        (node(model={"config": {"model_type": "llama"}}), {"train_model": "/srv/x"}, "foo", True),
        (
            node(model={"config": {**PLAIN, "model_type": "llama", "num_local_experts": 4}}),
            {"train_model": "/srv/x"},
            "gate",
            True,
        ),
        (
            node(model={"modules": ["c_attn"], "config": {**PLAIN, "model_type": "llama"}}),
            {"train_model": "/srv/x"},
            "c_attn",
            True,
        ),
        (
            node(hub={"revision": "0" * 40, "bytes": 1, "config": {**PLAIN, "model_type": "qwen2"}}),
            {"train_model": "org/m"},
            "foo",
            False,
        ),
    ],
)
def test_adapters_are_for_modules_that_the_model_has(
    facts: Variables, wish: Variables, target: str, taken: bool
) -> None:
    """By the names of its weights, else by its config.json where the family is a plain one."""
    if taken:
        make({"a": facts}, train_args={"lora_target": target}, **wish)
    else:
        with pytest.raises(FinetuneError, match="no such module") as refusal:
            make({"a": facts}, train_args={"lora_target": target}, **wish)
        assert "down_proj" in refusal.value.change


def test_of_several_adapters_the_one_that_is_not_there_is_named() -> None:
    facts = {"a": node(folders={"/srv/a": ["adapter_config.json"], "/srv/b": []})}
    with pytest.raises(FinetuneError, match="Not every node has an adapter") as refusal:
        make(facts, train_set="adapter_name_or_path=/srv/a,/srv/b")
    assert "in place of /srv/b, or" in refusal.value.change


def test_a_reward_model_must_be_on_every_node_unless_the_run_is_finished() -> None:
    asked: Variables = {"train_recipe": "ppo", "train_set": "reward_model=/srv/reward"}
    whole = ["value_head.safetensors", "adapter_config.json"]
    plan = make({"a": node(folders={"/srv/reward": whole}), "b": node(folders={"/srv/reward": whole})}, **asked)
    assert lines(plan)["reward_model"] == "/srv/reward"
    assert plan.nodes["a"]["launch"]["resumes"] is False
    with pytest.raises(FinetuneError, match="no reward model") as refusal:
        make({"a": node(folders={"/srv/reward": whole}), "b": node(folders={})}, **asked)
    assert refusal.value.where == "train_set, key reward_model" and "recipe reward" in refusal.value.change
    alone = make({"a": node(folders={"/srv/reward": whole})}, **asked)
    assert make({"a": {**known((alone, "finished", 1.0)), "folders": {}}}, **asked).recorded


def test_what_the_model_on_the_node_says_is_held_against_the_arguments() -> None:
    facts = {"a": node(model={"type": "qwen3", "length": 1024, "first_length": 1024})}
    with pytest.raises(FinetuneError, match="not made for texts") as refusal:
        make(facts, train_model="/srv/x", train_args={"cutoff_len": 2048})
    assert (refusal.value.where, refusal.value.change) == (
        "train_args, key cutoff_len",
        "set cutoff_len: 1024, or rope_scaling: yarn",
    )
    make(facts, train_model="/srv/x", train_args={"cutoff_len": 1024})


@pytest.mark.parametrize(
    ("recipe", "arguments", "told"),
    [
        ("dpo", {"finetuning_type": "full"}, True),
        ("dpo", {"finetuning_type": "full", "pref_loss": "simpo"}, False),
        ("dpo", {"finetuning_type": "full", "ref_model": "/srv/ref"}, False),
        ("dpo", {}, False),
        ("full_sft", {}, False),
    ],
)
def test_the_second_copy_that_dpo_keeps_is_told(recipe: str, arguments: Variables, told: bool) -> None:
    plan = make({"a": node()}, train_recipe=recipe, train_args=arguments)
    assert any("second copy" in notice for notice in plan.notices) is told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [({}, False), ({"eval_steps": 5}, True), ({"eval_steps": 5, "eval_strategy": "steps"}, False)],
)
def test_steps_of_an_evaluation_that_there_is_not_are_told(arguments: Variables, told: bool) -> None:
    plan = make({"a": node()}, (DATA, HELD_OUT), train_args=arguments)
    assert ("eval_steps is passed over: eval_strategy is no." in plan.notices) is told


def test_what_tokens_of_ones_own_and_streams_pass_over_is_told() -> None:
    plan = make({"a": node()}, train_args={"tokenized_path": "/srv/tokens"})
    assert any(notice.startswith("Where tokenized_path holds tokens already") for notice in plan.notices)
    drawn = replace(DATA, dataset=replace(DATA.dataset, options={"num_samples": 9}))
    stream = {"streaming": True, "max_steps": 9, "dataloader_num_workers": 1}
    told = f"Dataset {DATA.dataset.name}: a stream passes over num_samples."
    assert told in make({"a": node()}, (drawn,), train_args=stream).notices
    assert told not in make({"a": node()}, (drawn,)).notices


def test_an_evaluation_without_data_is_refused_at_the_key_that_was_written() -> None:
    with pytest.raises(FinetuneError, match="nothing to evaluate on") as refusal:
        make({"a": node()}, train_set="eval_strategy=steps")
    assert refusal.value.where == "train_set, key eval_strategy"


def test_num_samples_tells_how_many_records_there_are_and_max_samples_cuts_it() -> None:
    drawn = replace(DATA, dataset=replace(DATA.dataset, options={"num_samples": 9}), records=20)
    plan = make({"a": node()}, (drawn,), train_args={"max_samples": 5})
    assert f"Dataset {DATA.dataset.name}: of its num_samples 9, max_samples keeps 5." in plan.notices
    make({"a": node()}, (drawn,), train_args={"val_size": 8})
    with pytest.raises(FinetuneError, match="leaves no record to train on"):
        make({"a": node()}, (drawn,), train_args={"val_size": 9})


def test_held_out_data_that_is_trained_on_is_told() -> None:
    held_out = replace(DATA, dataset=replace(DATA.dataset, name="h"), evaluates=True)
    told = "Dataset h: it is trained on, so that it does not show what was learned."
    assert told in make({"a": node()}, (DATA, held_out)).notices
    assert told not in make({"a": node()}, (DATA, replace(held_out, digest="e" * 64))).notices


def test_parts_to_mix_are_to_be_as_many_as_all_sets_or_the_held_out_ones_go() -> None:
    two = (DATA, replace(DATA, dataset=replace(DATA.dataset, name="b")))
    asked: Variables = {"train_args": {"mix_strategy": "interleave_under", "interleave_probs": "0.5,0.5"}}
    make({"a": node()}, two, **asked)
    for sources, change in (
        ((*two, replace(DATA, evaluates=True)), "name as many train_eval_datasets"),
        ((DATA,), "a number for each of train_datasets"),
    ):
        with pytest.raises(FinetuneError, match="one number per dataset") as refusal:
            make({"a": node()}, sources, **asked)
        assert change in refusal.value.change


def test_a_stream_of_a_part_of_a_hubs_dataset_is_refused() -> None:
    stream: Variables = {"train_args": {"streaming": True, "max_steps": 9, "dataloader_num_workers": 1}}
    make({"a": node()}, (HUB,), **stream)
    part = replace(HUB, dataset=replace(HUB.dataset, options={"split": "train[:10%]"}))
    make({"a": node()}, (part,))
    with pytest.raises(FinetuneError, match="has whole splits alone"):
        make({"a": node()}, (part,), **stream)
    make({"a": node()}, (replace(DATA, dataset=replace(DATA.dataset, options={"split": "train[:10%]"})),), **stream)


@pytest.mark.parametrize(
    ("written", "where"), [({}, "train_model"), ({"template": "qwen3"}, "train_args, key template")]
)
def test_a_model_that_takes_texts_alone_is_told_where_its_author_named_it(written: Variables, where: str) -> None:
    seen = replace(DATA, media=True)
    with pytest.raises(FinetuneError, match="the template is for text") as refusal:
        make({"a": node()}, (seen,), train_model="Qwen/Qwen3-4B", train_args=written)
    assert refusal.value.where == where and "name a model that sees or hears" in refusal.value.change


def test_the_model_is_the_same_on_every_node() -> None:
    facts = {host: node(interfaces=eth0(f"10.0.0.{i}"), model={"type": "qwen3"}) for i, host in enumerate("ab", 1)}
    make(facts, train_model="/srv/x")
    facts["b"]["model"] = {"type": "qwen3", "absent": ["model-00002-of-00002.safetensors"]}
    with pytest.raises(FinetuneError, match="not the same on a and b") as refusal:
        make(facts, train_model="/srv/x")
    assert refusal.value.where == "train_model"
