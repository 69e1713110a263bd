# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys of LLaMA-Factory: misspelt ones, values of another type, and the words that mean a value."""

from __future__ import annotations

import runpy
import typing as t

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _recipe, _schema, _sources
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

from ..conftest import REPOSITORY

SCHEMAS = _sources.schemas()
MAIN = SCHEMAS["main"]
OF_KIND = {"boolean": True, "integer": 3, "number": 0.5, "text": "x", "list": ["x"], "dict": {"x": 1}, "null": None}

NUMBERS = ({"integer"}, {"number"}, {"integer", "number"})


def kinds(environment: str, key: str) -> set[str]:
    return {*SCHEMAS[environment].keys[key].types} - {"null"}


def read(key: str, value: t.Any, schema: _schema.Schema = MAIN) -> t.Any:
    found, problem = _schema.read(key, value, schema)
    assert problem is None, problem
    return found


def problem(key: str, value: t.Any, schema: _schema.Schema = MAIN) -> _schema.Problem:
    found = _schema.read(key, value, schema)[1]
    assert found is not None
    return found


@pytest.mark.parametrize("environment", SCHEMAS)
def test_the_schema_is_that_of_the_version_the_lock_pins(environment: str) -> None:
    schema = SCHEMAS[environment]
    assert schema.packages["llamafactory"] == schema.version
    assert len(schema.keys) > 300
    assert all(key.types and key.help for key in schema.keys.values())
    assert {key.group for key in schema.keys.values()} == {"model", "data", "training", "finetuning", "generating"}
    assert schema.templates[schema.models["Qwen/Qwen3-0.6B"]]["reasoning"]


def test_the_page_of_keys_is_written_from_the_schema() -> None:
    pages = runpy.run_path(str(REPOSITORY / "scripts" / "keys.py"))["pages"]()
    assert len(pages) == len({*_recipe.LLAMAFACTORY.values(), "megatron"})
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, "python scripts/keys.py writes it"


@pytest.mark.parametrize("environment", SCHEMAS)
def test_a_misspelt_key_is_refused_with_the_one_that_is_meant(environment: str) -> None:
    """One letter left out, one doubled, two swapped. Of other environments than main, the keys that it has not."""
    schema = SCHEMAS[environment]
    for key in schema.keys if schema is MAIN else schema.keys - MAIN.keys.keys():
        middle = len(key) // 2
        for wrong in (key[:-1], key[:middle] + key[middle:][:1] + key[middle:], key[1] + key[0] + key[2:]):
            if wrong not in schema.keys:
                told = problem(wrong, 1, schema)
                assert f"{schema.version} has no key {wrong}" in told.what
                assert key in told.change, told


@pytest.mark.parametrize("environment", SCHEMAS)
def test_a_word_for_a_number_is_refused(environment: str) -> None:
    keys = [key for key in SCHEMAS[environment].keys if kinds(environment, key) in NUMBERS]
    assert len(keys) > 100
    for key in keys:
        told = problem(key, "many", SCHEMAS[environment])
        assert told.what == f"{key} is 'many'" and "number" in told.change


@pytest.mark.parametrize("environment", SCHEMAS)
def test_a_word_for_a_switch_is_refused(environment: str) -> None:
    keys = [key for key in SCHEMAS[environment].keys if kinds(environment, key) == {"boolean"}]
    assert len(keys) > 100
    for key in keys:
        for wrong in ("maybe", 1):
            assert problem(key, wrong, SCHEMAS[environment]).change == "write true or false", key


@pytest.mark.parametrize("environment", SCHEMAS)
def test_the_default_and_the_types_of_every_key_are_taken(environment: str) -> None:
    schema = SCHEMAS[environment]
    for key, known in schema.keys.items():
        assert read(key, known.default, schema) == known.default, key
        for choice in known.choices:
            assert read(key, choice, schema) == choice, key
        for kind in () if known.choices else known.types:
            assert read(key, OF_KIND[kind], schema) == OF_KIND[kind], key


@pytest.mark.parametrize(
    ("key", "given", "value"),
    [
        ("learning_rate", "1e-5", 1e-5),
        ("learning_rate", 1, 1),
        ("num_train_epochs", "3", 3),
        ("lora_rank", "16", 16),
        ("lora_rank", 16.0, 16),
        ("bf16", "true", True),
        ("bf16", "off", False),
        ("max_samples", "null", None),
        ("max_samples", 2**63 - 1, 2**63 - 1),
        ("num_train_epochs", 1e30, 1e30),
        ("run_name", "9" * 5000, "9" * 5000),
        ("run_name", "007", "007"),
        ("run_name", 7, "7"),
        ("lora_target", ["q_proj", "v_proj"], ["q_proj", "v_proj"]),
        ("lora_target", "q_proj,v_proj", "q_proj,v_proj"),
        ("eval_strategy", False, "no"),
        ("lr_scheduler_kwargs", {"num_cycles": "2"}, {"num_cycles": 2}),
    ],
)
def test_a_value_is_what_its_key_makes_of_it(key: str, given: t.Any, value: t.Any) -> None:
    assert read(key, given) == value
    assert type(read(key, given)) is type(value)


@pytest.mark.parametrize(
    ("key", "given", "change"),
    [
        ("lora_rank", 2.5, "a whole number"),
        ("lora_rank", True, "a whole number"),
        ("lora_rank", None, "a whole number"),
        ("lora_rank", [8], "a whole number"),
        ("lora_rank", "9" * 20, "a whole number of at most 18 digits"),
        ("lora_rank", 2**63, "a whole number of at most 18 digits"),
        ("lora_rank", -(2**63), "a whole number of at most 18 digits"),
        ("lora_rank", "9" * 5000, "a whole number of at most 18 digits"),
        ("lora_rank", 1e300, "a whole number of at most 18 digits"),
        ("num_train_epochs", 10**400, "a number of at most 18 digits"),
        ("num_train_epochs", "1e400", "a number"),
        ("adapter_name_or_path", ["a/b", "c/d"], "write them as one text with commas"),
        ("stage", "ppp", "pt or sft or rm or ppo or dpo or kto"),
        ("optim", "adam_torch", "adamw_torch"),
        ("optim", "adamx", "use adamw_torch or"),
        ("optim", "lion", "use lion_8bit or lion_32bit"),
        ("optim", "xdamw_torch", "adamw_torch"),
        ("max_len", 9, "use cutoff_len"),
        ("compute_dtype", "bf16", "use bf16 or fp16"),
        ("run_name", True, "text"),
        ("evaluation_strategy", "steps", "use eval_strategy"),
        ("lr", 1, "use learning_rate"),
        ("zzzz", 1, "remove zzzz"),
    ],
)
def test_a_wrong_value_is_refused_with_the_remedy(key: str, given: t.Any, change: str) -> None:
    assert change in problem(key, given).change


@pytest.mark.parametrize(
    ("what", "told"),
    [("weights are gone", "Weights are gone."), ("seed is 'x'", "seed is 'x'."), ("a_key is", "a_key is.")],
)
def test_a_refusal_is_a_sentence_unless_it_begins_with_a_key(what: str, told: str) -> None:
    with pytest.raises(FinetuneError) as refusal:
        _schema.refuse([_schema.Problem("seed", what, "change it")], {})
    assert refusal.value.what == told


def test_everything_that_is_wrong_is_told_at_once_with_its_place() -> None:
    assert _schema.typed({"lora_rank": "8"}, MAIN, "train_args") == {"lora_rank": 8}
    with pytest.raises(FinetuneError) as one:
        _schema.typed({"lora_rank": "8", "lora_rnak": 8}, MAIN, "train_set")
    assert (one.value.where, one.value.change) == ("train_set, key lora_rnak", "use lora_rank or local_rank")
    with pytest.raises(FinetuneError) as both:
        _schema.typed({"lora_rnak": 8, "bf16": "maybe"}, MAIN, "train_args")
    assert "2 things" in both.value.what
    assert "train_args, key lora_rnak: " in both.value.where and "write true or false" in both.value.where
