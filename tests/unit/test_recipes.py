# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recipes: their files, the environments of their keys, and where they are told of. Rules hold in test_rules.py."""

from __future__ import annotations

import runpy
import typing as t

import pytest
import yaml
from ansible_collections.llmops.finetune.plugins.module_utils import _recipe
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.plugin_utils import _recipes

from ..conftest import REPOSITORY
from .plans import lines, make, node

RECIPES = _recipes.read()
SCRIPT = runpy.run_path(str(REPOSITORY / "scripts/recipes.py"))
WRITES = "python scripts/recipes.py --write writes it"


def test_page_and_specs_are_written_from_the_files() -> None:
    assert SCRIPT["PAGE"].read_text(encoding="utf-8") == SCRIPT["page"](), WRITES
    assert SCRIPT["SPECS"].read_text(encoding="utf-8") == SCRIPT["specs"](), WRITES
    options = yaml.safe_load(SCRIPT["SPECS"].read_text(encoding="utf-8"))["argument_specs"]["main"]["options"]
    assert options["train_recipe"]["choices"] == list(RECIPES)


def test_the_table_says_of_each_what_it_is_and_whether_it_was_run() -> None:
    told = SCRIPT["table"]().splitlines()
    assert len(told) == len(RECIPES)
    for line, (name, recipe) in zip(told, RECIPES.items(), strict=True):
        assert line.startswith(f"{name} ") and recipe.purpose in line and recipe.hardware in line
        assert line.endswith(f"unproved: {recipe.unproved}" if recipe.unproved else "  proved")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_it_does_and_what_it_needs(name: str) -> None:
    recipe = RECIPES[name]
    assert recipe.purpose and recipe.hardware
    assert {"stage", "finetuning_type", "learning_rate"} <= recipe.arguments.keys()
    assert not recipe.unproved.endswith(".")


def test_an_unproved_recipe_says_so_in_the_plan() -> None:
    plan = make({"a": node(gpus=1)}, train_recipe="liger", train_model="org/model")
    assert any(notice.startswith("Recipe liger is unproved: ") for notice in plan.notices)
    assert not any("unproved" in notice for notice in make({"a": node()}).notices)


@pytest.mark.parametrize(
    ("name", "near"), [("lora", "lora_sft"), ("ormo", "use orpo"), ("", "use adam_mini or apollo or ")]
)
def test_an_unknown_recipe_is_refused_with_those_like_it(name: str, near: str) -> None:
    with pytest.raises(FinetuneError) as refusal:
        _recipe.find(name, RECIPES)
    assert refusal.value.where == "train_recipe" and near in refusal.value.change


@pytest.mark.parametrize(
    ("arguments", "own", "expected"),
    [
        ({}, "", "main"),
        ({"stage": "sft", "use_unsloth": False, "fp8": None}, "", "main"),
        ({"stage": "ppo", "use_unsloth": True}, "", "ppo"),
        ({"stage": "sft", "use_unsloth": True}, "", "unsloth"),
        ({"stage": "dpo", "use_unsloth": "true"}, "", "unsloth"),
        ({"fp8": True}, "", "fp8"),
        ({"fp8": True}, "megatron", "megatron"),
        ({"stage": "ppo"}, "ktransformers", "ktransformers"),
    ],
)
def test_keys_choose_the_environment_and_an_engine_goes_before(
    arguments: dict[str, t.Any], own: str, expected: str
) -> None:
    assert _recipe.environment(arguments, own) == expected


def test_an_engine_of_a_recipe_counts_until_the_author_names_another() -> None:
    gpus = {"a": node(gpus=2)}
    assert make(gpus, train_recipe="fsdp_qlora").resolved["engine"] == "fsdp2"
    assert make(gpus, train_recipe="fsdp_qlora", train_engine="ddp").resolved["engine"] == "ddp"
    assert make(gpus, train_recipe="megatron").resolved["environment"] == make(gpus).resolved["environment"]


def test_what_every_recipe_has_comes_first_and_the_files_go_over_it() -> None:
    plan = make({"a": node()}, train_recipe="rslora", train_model="org/model")
    told = lines(plan)
    assert (told["lora_rank"], told["use_rslora"], told["gradient_accumulation_steps"]) == (64, True, 8)
