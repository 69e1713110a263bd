# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every refusal that can be generated: it names a variable and the remedy, and no value ends in a traceback."""

from __future__ import annotations

import json
import math
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _dataset, _records, _schema
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.module_utils._wish import names

from . import plans
from .broken_records import BROKEN, FORMS
from .rule_cases import cases, situations

MAIN = situations.MAIN
GROUPS = sorted({key.group for key in MAIN.keys.values()})
VARIABLES = (*names.INPUTS, *names.OTHERS)
ODD: tuple[t.Any, ...] = (
    None,
    "",
    "x",
    "1,2",
    [],
    ["x"],
    [None],
    {},
    {"x": [1]},
    True,
    False,
    0,
    -1,
    1.5,
    2**70,
    math.inf,
    math.nan,
)


def held_to_the_form(refusal: FinetuneError) -> None:
    """Where and what to change, each about a variable of ours; nothing that only a programmer reads."""
    text = str(refusal)
    assert refusal.what and refusal.where and refusal.change
    assert text.count("\n  where:  ") == text.count("\n  change: ") == 1
    assert any(name in refusal.where for name in VARIABLES), text
    assert not any(word in text for word in ("Traceback", "Error(", "NoneType", "<class", " object at 0x")), text


def planned(**wish: t.Any) -> FinetuneError | None:
    """The refusal of a plan on a node with two GPUs."""
    try:
        plans.make({"a": plans.node(gpus=2)}, (plans.DATA, plans.HELD_OUT), **wish)
    except FinetuneError as refusal:
        return refusal
    except Exception as error:
        error.add_note(f"with {wish}")
        raise
    return None


def of_group(group: str) -> list[str]:
    return [name for name, key in MAIN.keys.items() if key.group == group]


@pytest.mark.parametrize("group", GROUPS)
def test_a_key_with_one_edit_is_refused(group: str) -> None:
    for key in of_group(group):
        wrong = key[:-1] if key[:-1] not in MAIN.keys else f"{key}x"
        for given in ({"train_args": {wrong: 1}}, {"train_set": f"{wrong}=1"}):
            refusal = planned(**given)
            assert refusal and wrong in refusal.where
            held_to_the_form(refusal)


@pytest.mark.parametrize("group", GROUPS)
def test_no_value_of_a_key_ends_in_a_traceback(group: str) -> None:
    for key in of_group(group):
        for value in ODD:
            refusal = planned(train_args={key: value})
            if refusal:
                held_to_the_form(refusal)


@pytest.mark.parametrize("name", VARIABLES)
def test_no_value_of_a_variable_ends_in_a_traceback(name: str) -> None:
    for value in ODD:
        refusal = planned(**{name: value})
        if refusal:
            held_to_the_form(refusal)


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: str(case[0]))
def test_a_row_that_is_broken_is_refused(case: situations.Case) -> None:
    problems = situations.problems(case[1], case[2])
    with pytest.raises(FinetuneError) as refusal:
        _schema.refuse(problems, dict.fromkeys(case[1], "train_args"))
    held_to_the_form(refusal.value)
    for problem in problems:
        assert problem.key in refusal.value.where


@pytest.mark.parametrize(("form", "broken", "says"), BROKEN)
def test_a_broken_record_is_refused(tmp_path: Path, form: str, broken: t.Any, says: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, [FORMS[form].good, broken])), encoding="utf-8")
    entry = {"file": str(path), **FORMS[form].entry}
    (dataset,) = _dataset.parse([entry], "train_datasets")
    report = _records.check(path, dataset, FORMS[form].stage)
    with pytest.raises(FinetuneError) as refusal:
        _records.refuse(dataset, "train_datasets", str(path), report)
    held_to_the_form(refusal.value)
    assert str(path) in refusal.value.where and "record 2: " in refusal.value.where
