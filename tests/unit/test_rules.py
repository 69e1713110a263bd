# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every row of the rules: arguments that break it, and the least change that is taken (rule_cases)."""

from __future__ import annotations

import re
import runpy
import typing as t

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _model, _parallel, _recipe, _rules, _schema
from ansible_collections.llmops.finetune.plugins.module_utils._engine import base_model
from ansible_collections.llmops.finetune.plugins.module_utils._parallel import ENGINES
from ansible_collections.llmops.finetune.plugins.plugin_utils import _recipes

from ..conftest import REPOSITORY
from .rule_cases.cases import CASES
from .rule_cases.situations import SCHEMAS, told

RECIPES = _recipes.read()


@pytest.mark.parametrize(("says", "broken", "there", "repaired", "then"), CASES)
def test_what_breaks_a_row_is_told_and_its_repair_is_taken(
    says: str, broken: dict[str, t.Any], there: dict[str, t.Any], repaired: dict[str, t.Any], then: dict[str, t.Any]
) -> None:
    assert [what for what in told(broken, there) if says in what], told(broken, there)
    assert told(repaired, then) == []


def test_every_row_has_a_case() -> None:
    unbroken = [rule.what for rule in _rules.RULES if not any(case[0] in rule.what for case in CASES)]
    assert unbroken == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"cutoff_len": -5}, ["cutoff_len"]),
        ({"cutoff_len": 0, "lora_rank": -1}, ["cutoff_len", "lora_rank"]),
        ({"per_device_train_batch_size": 0}, ["per_device_train_batch_size"]),
        ({"gradient_accumulation_steps": -1}, ["gradient_accumulation_steps"]),
        ({"finetuning_type": "full", "lora_rank": 0, "stage": "ppo", "use_galore": True}, []),
    ],
)
def test_an_estimate_is_for_numbers_that_a_run_may_have(arguments: dict[str, t.Any], told: list[str]) -> None:
    """And for nothing else of a run: it may be about another one than can be started here."""
    rules = _rules.ranges.ESTIMATED
    assert [one.key for one in _rules.problems(arguments, SCHEMAS["main"], _rules.Situation(), (), rules)] == told


def test_the_page_of_rules_is_written_from_the_tables() -> None:
    written = runpy.run_path(str(REPOSITORY / "scripts" / "rules.py"))
    assert written["PAGE"].read_text(encoding="utf-8") == written["page"](), "python scripts/rules.py writes it"


def test_what_a_remedy_removes_is_known_as_that() -> None:
    """So that a recipe's key is not asked to be removed by an author who never wrote it."""
    keys = {key for schema in SCHEMAS.values() for key in schema.keys}
    view = _rules.View({}, SCHEMAS["main"], _rules.Situation())
    remedies = [rule.remedy(view) for rule in _rules.RULES if not callable(rule.change)]
    for text, removes in remedies:
        assert {word for word in re.findall(r"\bremove (\w+)", text) if word in keys} <= set(removes), text
        assert all(key in text and key in keys for key in removes), text
    assert len([removes for _text, removes in remedies if removes]) > 40


def test_rows_are_about_keys_and_inputs_that_exist() -> None:
    for rule in _rules.RULES:
        for key in rule.keys:
            assert any(key in schema.keys for schema in SCHEMAS.values()) or key.startswith("train_"), key


@pytest.mark.parametrize("name", sorted(RECIPES.keys() - {"mixture_of_depths"}))
def test_all_recipes_but_one_are_taken_as_they_are(name: str) -> None:
    """On CPUs, or on GPUs where they need them; with the demo's keys as well, where they run on its model."""
    arguments, engine = (
        RECIPES[name].arguments,
        ENGINES[_parallel.pick(RECIPES[name].engine or "auto", RECIPES[name].arguments, 2)],
    )
    needed = {"reward_model": "/reward"} if name == "ppo" else {}
    there = {"engine": engine, "gpus": True} if RECIPES[name].unproved else {"engine": engine}
    assert told({**arguments, **needed}, there) == []
    environment = _recipe.environment(arguments, engine.environment)
    schema = SCHEMAS[environment]
    assert _schema.typed(arguments, schema, "recipe") == arguments
    own = base_model.IN_ENVIRONMENT.get(environment, {})
    demo = {**arguments, **needed, **base_model.RECIPE["fine_tuning"], **own}
    assert told(demo, there) == [] and _schema.typed(demo, schema, "model demo") == demo


def test_the_one_recipe_that_no_package_serves_is_refused() -> None:
    (what,) = told(dict(RECIPES["mixture_of_depths"].arguments), {"weights": _model.Model(type="llama")})
    assert "fails in the first step" in what and "refused" in RECIPES["mixture_of_depths"].unproved
