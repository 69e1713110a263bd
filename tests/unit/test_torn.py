# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is told of a file that is no JSON, or another kind of file: where it is wrong, and what to do about that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _dataset, _records

from .broken_records import ALPACA, GOOD


def fault(path: Path) -> _records.Fault:
    (found,) = _records.check(path, _dataset.parse({"file": path.name}, "v")[0]).faults
    return found


@pytest.mark.parametrize(
    ("ending", "text", "record", "change"),
    [
        ("json", f"\ufeff[{GOOD}]", 0, "without one (without signature)"),
        ("json", f"[{GOOD},{GOOD}", 0, "add it; a file cut short must be copied again"),
        ("json", f"[{GOOD},{GOOD[:-9]}", 2, "a file cut short must be copied again"),
        ("jsonl", GOOD[:-9], 1, "a file cut short must be copied again"),
        ("json", f"[{GOOD},]", 2, "remove the comma after the last item"),
        ("jsonl", GOOD[:-1] + ",}", 1, "remove the comma after the last item"),
        ("jsonl", GOOD.replace('"', "'"), 1, "double quotes in place of single ones"),
        ("json", "[" + GOOD.replace('"', "'") + "]", 1, "double quotes in place of single ones"),
        ("jsonl", GOOD.replace('""', "None"), 1, "write null"),
        ("jsonl", GOOD.replace('""', "True"), 1, "write true"),
        ("jsonl", GOOD.replace("Why", "W\ty"), 1, "\\n for a new line in a text, and \\t for a tab"),
        ("jsonl", GOOD.replace("Why", 'W"h"y'), 1, '\\" for a quote in a text'),
        ("jsonl", GOOD.replace("Why", "C:\\Why"), 1, "\\\\ for a backslash"),
        ("jsonl", GOOD.replace("Why", "\\ud83d"), 1, "both halves"),
        ("jsonl", GOOD.replace("output", "input"), 1, "keep one of the two"),
        ("json", f"[{GOOD} {GOOD}]", 2, "a comma between records"),
        ("json", f"[{GOOD}] x", 1, "remove it"),
        ("jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", 0, "run `git lfs pull`"),
        ("csv", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", 0, "run `git lfs pull`"),
        ("parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", 0, "run `git lfs pull`"),
        ("json", "\n<!DOCTYPE html>\n<html>\n", 0, "download the file itself"),
    ],
)
def test_the_remedy_is_that_of_the_fault(tmp_path: Path, ending: str, text: str, record: int, change: str) -> None:
    (tmp_path / f"a.{ending}").write_text(text, encoding="utf-8")
    found = fault(tmp_path / f"a.{ending}")
    assert found.record == record and change in found.change, found


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "txt"])
def test_another_encoding_is_one_fault_of_the_file(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"a.{ending}").write_text(f"{GOOD}\n" * 5, encoding="utf-16")
    found = fault(tmp_path / f"a.{ending}")
    assert (found.record, found.what) == (0, "it is UTF-16, not UTF-8")


@pytest.mark.parametrize("start", ["[", ""])
def test_the_line_is_that_of_the_file(tmp_path: Path, start: str) -> None:
    """However much of it was read before."""
    wide = json.dumps({**ALPACA, "output": "So ä. " * 500}, indent=1)
    comma = "," if start else ""
    text = start + f"{wide}{comma}\n" * 1000
    for odd in ('{"instruction":x}', '{"a": "b" "c"}'):
        (tmp_path / "a.json").write_text(f"{text}{odd}{comma}\n{wide}", encoding="utf-8")
        found = fault(tmp_path / "a.json")
        assert (found.record, found.what.partition(":")[0]) == (1001, "it is not JSON on line 5001")


def test_the_column_is_that_of_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f'{GOOD}\n  {{"a":x}}\n', encoding="utf-8")
    assert fault(tmp_path / "a.jsonl")[:2] == (2, "it is not JSON at column 8: Expecting value")
