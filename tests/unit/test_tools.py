# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Uses of tools that only some templates take: told where the template is not known, else refused or passed over."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _dataset, _records, _sources, _tools

from .broken_records import FORMS, TOOL_USES, TOOLS, alpaca, write


def told(folder: Path, form: str, records: t.Sequence[t.Any], stage: str = "sft") -> tuple[str, ...]:
    write(folder / "a.jsonl", records)
    dataset = _dataset.parse({"file": "a.jsonl", **FORMS[form].entry}, "v")[0]
    report = _records.check(folder / "a.jsonl", dataset, stage)
    assert report.faults == []
    return _records.doubts(report.doubts)


@pytest.mark.parametrize(("says", "form", "record"), TOOL_USES)
def test_a_use_is_told_and_no_other(tmp_path: Path, says: str, form: str, record: t.Any) -> None:
    doubts = told(tmp_path, form, [FORMS[form].good, record])
    assert [says in doubt and "some templates die of" in doubt for doubt in doubts] == ([True] if says else [])
    assert list(_tools.found(doubts).values()) == (["1 record has it (the first is record 2)"] if says else [])
    quoted = [doubt.replace(", and which some templates die of", "") for doubt in doubts if "in quotes" in doubt]
    assert _tools.with_template(("other", *doubts)) == ["other", *quoted]


def test_several_uses_of_a_record_are_all_told(tmp_path: Path) -> None:
    _says, _form, record = next(case for case in TOOL_USES if "several" in case[0])
    assert len(_tools.found(told(tmp_path, "openai", [{**record, "tools": '[{"x": 1}]'}]))) == 2


def test_pretraining_looks_at_no_tools(tmp_path: Path) -> None:
    assert told(tmp_path, "alpaca", [alpaca(tools="[{}]")])
    assert told(tmp_path, "alpaca", [alpaca(tools="[{}]")], "pt") == ()


def test_tools_that_every_template_takes_are_not_told(tmp_path: Path) -> None:
    for tools in (TOOLS, "{}", "[]", ""):
        assert told(tmp_path, "alpaca", [alpaca(tools=tools)]) == ()


def test_formats_are_those_of_the_templates() -> None:
    """None of a name that no version has."""
    known = {found["tools"] for schema in _sources.schemas().values() for found in schema.templates.values()}
    assert set().union(*(use.deadly for use in _tools.USES)) <= known
