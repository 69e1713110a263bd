# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The wish: variables of the role read and checked, with the variable and the remedy in each refusal."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible_collections.llmops.finetune.plugins.module_utils import _sources, _wish
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.module_utils._wish import names
from ansible_collections.llmops.finetune.plugins.module_utils._wish.wish import Wish
from ansible_collections.llmops.finetune.plugins.plugin_utils import _recipes

DEFAULTS: dict[str, t.Any] = {
    **yaml.safe_load((Path(__file__).parents[2] / "roles/train/defaults/main.yml").read_text(encoding="utf-8")),
    "train_eval_datasets": [],  # a template in the role
    "train_name": "",
}

SCHEMAS = _sources.schemas()
RECIPES = _recipes.read()


def read(**variables: t.Any) -> Wish:
    return _wish.read({**DEFAULTS, **variables}, SCHEMAS, RECIPES)


def test_the_defaults_of_the_role_are_a_wish() -> None:
    wish = read()
    assert (wish.name, wish.recipe, wish.model, wish.args) == ("lora-sft", "lora_sft", "demo", {})
    assert (wish.global_batch_size, wish.processes_per_node, wish.refresh, wish.retry) == (None, None, False, False)


def test_train_set_goes_over_train_args_and_each_key_knows_where_it_came_from() -> None:
    wish = read(train_args={"learning_rate": "1e-4", "lora_rank": 16}, train_set="learning_rate=1e-5 seed=1")
    assert wish.args == {"learning_rate": 1e-5, "lora_rank": 16, "seed": 1}
    assert wish.origins == {"learning_rate": "train_set", "lora_rank": "train_args", "seed": "train_set"}


@pytest.mark.parametrize(
    ("variable", "value", "field", "expected"),
    [
        ("train_global_batch_size", "16", "global_batch_size", 16),
        ("train_global_batch_size", "auto", "global_batch_size", None),
        ("train_processes_per_node", 2, "processes_per_node", 2),
        ("train_retry", "yes", "retry", True),
        ("train_retry", "off", "retry", False),
        ("train_resolve", "refresh", "refresh", True),
        ("train_port", "1234", "port", 1234),
        ("train_max_restarts", 0, "max_restarts", 0),
        ("train_root", "/srv/x/", "root", "/srv/x"),
        ("train_root", "~/", "root", "~"),
        ("train_gpus", 2, "gpus", "2"),
        ("train_gpus", 0, "gpus", "0"),
        ("train_gpus", [1], "gpus", "1,"),
        ("train_gpus", [0, "GPU-a"], "gpus", "0,GPU-a,"),
        ("train_name", "my-run.v2", "name", "my-run.v2"),
        ("train_recipe", "full_sft", "name", "full-sft"),
    ],
)
def test_values_come_as_text_or_as_they_are(variable: str, value: t.Any, field: str, expected: t.Any) -> None:
    assert getattr(read(**{variable: value}), field) == expected


@pytest.mark.parametrize(
    ("variable", "value", "change"),
    [
        ("train_recipe", "sft", "oft_sft"),
        ("train_recipe", "", "lora_sft"),
        ("train_args", "lora_rank=8", "train_set="),
        ("train_args", {"output_dir": "/x"}, "remove output_dir"),
        ("train_args", {"hf_hub_token": "x"}, "train_secrets"),
        ("train_set", "dataset=x", "set train_datasets"),
        ("train_set", "lora_rank", "learning_rate=1e-5"),
        ("train_name", "My Run", "small letters"),
        ("train_name", "../x", "small letters"),
        ("train_name", "a" * 64, "at most 63"),
        ("train_name", "-x", "a letter or digit first"),
        ("train_from", ["a"], "the name of one run"),
        ("train_from", {"a": 1}, "the name of one run"),
        ("train_datasets", [], "at least one"),
        ("train_datasets", [{}], "add one"),
        ("train_eval_datasets", [{"file": "a"}], ".jsonl"),
        ("train_model", "", "hub id"),
        ("train_model", "~/models/x", "begin the path with /"),
        ("train_model", "./x", "begin the path with /"),
        ("train_model", ["org/m"], "one name"),
        ("train_model", "org/my model", "owner/name"),
        ("train_model", " /srv/m", "begin the path with /"),
        ("train_model", "models/org/m", "begin the path with /"),
        ("train_set", "lora_rank=8 lora_rank=16", "keep one"),
        ("train_engine", "magic", "auto, ddp, zero0"),
        ("train_gpus", "", "use all"),
        ("train_gpus", [], "use all"),
        ("train_gpus", None, "use all"),
        ("train_global_batch_size", 0, "from 1"),
        ("train_global_batch_size", "many", "whole number"),
        ("train_global_batch_size", 2.5, "whole number"),
        ("train_global_batch_size", 2**63, "18 digits"),
        ("train_global_batch_size", "9" * 5000, "whole number"),
        ("train_processes_per_node", -1, "0 or more"),
        ("train_port", 70000, "65535"),
        ("train_port", 0, "65535"),
        ("train_port", "http", "whole number"),
        ("train_root", "llmops", "/ or ~/"),
        ("train_root", "", "/ or ~/"),
        ("train_root", "/", "such as /srv/llmops"),
        ("train_state", "done", "finished, staged, stopped, absent"),
        ("train_state", None, "finished, staged, stopped, absent"),
        ("train_retry", "maybe", "true or false"),
        ("train_resolve", "always", "record, refresh"),
        ("train_max_restarts", True, "whole number"),
        ("train_wait", "maybe", "true or false"),
        ("train_watch_interval", 0, "number of seconds"),
        ("train_watch_interval", "often", "number of seconds"),
    ],
    ids=lambda value: json.dumps(value) if not isinstance(value, str) else None,
)
def test_a_wrong_value_is_refused_with_its_variable_and_the_remedy(variable: str, value: t.Any, change: str) -> None:
    with pytest.raises(FinetuneError) as refusal:
        read(**{variable: value})
    assert refusal.value.where.startswith(variable)
    assert change in refusal.value.change


@pytest.mark.parametrize(
    ("variables", "places"),
    [
        ({"train_port": 0, "train_state": "done"}, ["train_port", "train_state"]),
        (
            {"train_recipe": "sft", "train_set": "lora_rank", "train_root": "x", "train_engine": "magic"},
            ["train_recipe", "train_set", "train_engine", "train_root"],
        ),
        (
            {
                "train_args": {"lora_rnak": 8, "lora_rank": "x"},
                "train_set": "sed=1",
                "train_model": "./x",
                "train_name": "My",
                "train_insist": "all",
                "train_wait": "maybe",
                "train_datasets": [],
            },
            [
                "train_wait",
                "train_args, key lora_rnak",
                "train_args, key lora_rank",
                "train_set, key sed",
                "train_datasets",
                "train_model",
                "train_insist",
                "train_name",
            ],
        ),
        ({"train_from": "docs", "train_model": "./x"}, ["train_model"]),
        (
            {"train_fit_quantize": True, "train_reward_from": "r"},
            ["train_reward_from", "train_fit_quantize, train_fit"],
        ),
    ],
    ids=lambda value: None,
)
def test_all_that_is_wrong_is_told_at_once(variables: dict[str, t.Any], places: list[str]) -> None:
    with pytest.raises(FinetuneError) as refusal:
        read(**variables)
    assert [part.where for part in refusal.value.parts] == places
    assert all(part.change in refusal.value.message() for part in refusal.value.parts)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("train_modle", "train_model"),
        ("train_dataset", "train_datasets"),
        ("train_global_batchsize", "global_batch_size"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_one_that_is_meant(name: str, near: str) -> None:
    with pytest.raises(FinetuneError) as refusal:
        names.refuse_misspelt(["ansible_user", name, *names.INPUTS])
    assert (refusal.value.where, near in refusal.value.change) == (name, True)
    with pytest.raises(FinetuneError, match="2 things are wrong"):
        names.refuse_misspelt([name, "train_egine"])


def test_a_variable_that_is_called_like_a_key_of_llamafactory_is_told() -> None:
    keys = SCHEMAS["main"].keys
    given = ["train_learning_rate", "train_lora_rank", "train_name", "train_bucket", "learning_rate", "train_template"]
    told = names.unheard(given, keys, {"lora_rank"})
    assert [line.partition(" ")[0] for line in told] == ["train_learning_rate", "train_template"]
    assert "LLaMA-Factory's learning_rate is written in train_args" in told[0]


def test_the_inventorys_own_variables_are_left_alone() -> None:
    names.refuse_misspelt([*names.INPUTS, *names.OTHERS, "train_bucket", "train_model_dir", "training_model", "train"])


@pytest.mark.parametrize(
    "asked", [{"train_recipe": "ppo"}, {"train_set": "stage=ppo"}, {"train_args": {"stage": "ppo"}}]
)
def test_ppo_has_an_environment_of_its_own_and_its_keys(asked: dict[str, t.Any]) -> None:
    assert (read().environment, read(train_recipe="reward").environment) == ("main", "main")
    wish = read(**asked)
    assert (wish.environment, wish.stage, wish.folders) == ("ppo", "ppo", [])
    with pytest.raises(FinetuneError, match=r"LLaMA-Factory 0\.9\.3 has no key use_dft_loss"):
        read(**{**asked, "train_args": {"stage": "ppo", "use_dft_loss": True}})


def test_engines_that_do_not_run_are_not_offered() -> None:
    with pytest.raises(FinetuneError) as refusal:
        read(train_engine="magic")
    assert (
        refusal.value.change
        == "use one of auto, ddp, zero0, zero2, zero2_offload, zero3, zero3_offload, fsdp2, megatron, ktransformers"
    )
    assert read(train_engine="ray").engine == "ray", "it is told why it does not run"


def test_a_recipe_that_an_argument_makes_another_one_is_told() -> None:
    assert read(train_recipe="dpo", train_set="stage=dpo finetuning_type=lora").notices == []
    assert read(train_recipe="dpo", train_args={"stage": "sft"}, train_set="finetuning_type=full").notices == [
        "Recipe dpo is overruled: stage sft of train_args.",
        "Recipe dpo is overruled: finetuning_type full of train_set.",
    ]


def test_ppo_takes_no_held_out_data_unless_it_is_asked_for_in_vain() -> None:
    assert read(train_eval_datasets=["demo_heldout"]).eval_datasets
    assert not read(train_recipe="ppo", train_eval_datasets=["demo_heldout"]).eval_datasets
    assert read(train_recipe="ppo", train_eval_datasets=["alpaca_en"]).eval_datasets, "the rules refuse it"


def test_what_a_run_begins_with_is_a_full_path_or_on_a_hub() -> None:
    for found, folders in (("/srv/reward", ["/srv/reward"]), ("org/reward", []), ("https://rewards/of/mine", [])):
        assert read(train_recipe="ppo", train_set=f"reward_model={found}").folders == folders
    assert read(train_args={"adapter_name_or_path": "/srv/a, org/b,/srv/c"}).folders == ["/srv/a", "/srv/c"]
    assert read(train_args={"new_special_tokens_config": "/srv/t.yaml"}).folders == ["/srv/t.yaml"]
    for key, asked in (("reward_model", {"train_recipe": "ppo"}), ("adapter_name_or_path", {})):
        for found in ("~/reward", "./reward", "saves/llama3-8b/lora/sft"):
            with pytest.raises(FinetuneError, match="neither a full path") as refusal:
                read(**asked, train_set=f"{key}={found}")
            assert refusal.value.where == f"train_set, key {key}"


def test_every_input_of_the_role_is_known() -> None:
    specs = (Path(__file__).parents[2] / "roles/train/meta/argument_specs.yml").read_text(encoding="utf-8")
    options = yaml.safe_load(specs)["argument_specs"]["main"]["options"]
    assert {*names.INPUTS, *names.OTHERS} == options.keys() == DEFAULTS.keys()


def test_one_name_does_not_stand_for_two_datasets() -> None:
    read(train_datasets=["demo"], train_eval_datasets=["demo"])
    with pytest.raises(FinetuneError, match="'a' names one dataset to train on and another one to evaluate on"):
        read(train_datasets=[{"name": "a", "file": "x.json"}], train_eval_datasets=[{"name": "a", "file": "y.json"}])
