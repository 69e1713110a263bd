# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parquet and arrow: the same records are refused as in other files, and what is no table that `datasets` takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import typing as t
from pathlib import Path

import pyarrow
import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _checker, _dataset, _media, _records, _tables
from pyarrow import ipc, parquet

from .broken_records import (
    ALPACA,
    BROKEN,
    COLUMNS,
    FINE,
    FORMS,
    NO_TABLES,
    alpaca,
    as_table,
    column,
    table,
    write_table,
)

ENDINGS = ("parquet", "arrow")
EXPRESSIBLE = [case for case in BROKEN if as_table(case[0], case[1])]


def check(path: Path, form: str = "alpaca") -> _records.Report:
    entry, stage, _good = FORMS[form]
    return _records.check(path, _dataset.parse({"file": path.name, **entry}, "v")[0], stage)


def test_most_broken_records_can_be_in_a_table() -> None:
    assert len(EXPRESSIBLE) >= 45


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(("form", "broken", "_says"), EXPRESSIBLE)
def test_a_broken_record_is_named(tmp_path: Path, form: str, broken: t.Any, _says: str, ending: str) -> None:
    records = as_table(form, broken) or []
    write_table(tmp_path / f"a.{ending}", table(records))
    report = check(tmp_path / f"a.{ending}", form)
    assert {fault.record for fault in report.faults} == {records.index(broken) + 1}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(("form", "odd"), [*((name, form.good) for name, form in FORMS.items()), *FINE])
def test_what_is_trained_on_is_not_refused(tmp_path: Path, form: str, odd: t.Any, ending: str) -> None:
    records = as_table(form, odd) or []
    write_table(tmp_path / f"a.{ending}", table(records))
    report = check(tmp_path / f"a.{ending}", form)
    assert (report.faults, report.records) == ([], len(records))


def test_an_arrow_file_has_an_index_or_is_a_stream(tmp_path: Path) -> None:
    rows = table([ALPACA] * 5)
    with ipc.new_file(tmp_path / "a.arrow", rows.schema) as sink:
        sink.write_table(rows, max_chunksize=2)
    assert check(tmp_path / "a.arrow").records == 5


@pytest.mark.parametrize("ending", ENDINGS)
def test_numbers_go_on_over_pieces(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tables, "ROWS", 2)
    rows = table([*[ALPACA] * 6, alpaca(output=None), ALPACA])
    path = tmp_path / f"a.{ending}"
    if ending == "parquet":
        parquet.write_table(rows, path, row_group_size=3)
    else:
        with ipc.new_stream(path, rows.schema) as sink:
            sink.write_table(rows, max_chunksize=3)
    report = check(path)
    assert ([fault.record for fault in report.faults], report.records) == ([7], 8)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("values", COLUMNS, ids=lambda values: str(values.type))
def test_a_column_of_any_type_that_datasets_knows_is_passed_over(tmp_path: Path, values: t.Any, ending: str) -> None:
    write_table(tmp_path / f"a.{ending}", column("more", values))
    assert check(tmp_path / f"a.{ending}").faults == []


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(("rows", "says"), [*NO_TABLES, (table([ALPACA]).slice(0, 0), "no record")])
def test_what_datasets_makes_no_table_of_is_refused_as_a_whole(
    tmp_path: Path, rows: t.Any, says: str, ending: str
) -> None:
    write_table(tmp_path / f"a.{ending}", rows)
    (fault,) = check(tmp_path / f"a.{ending}").faults
    assert fault.record == 0 and says in fault.what


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_cut_short_is_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    write_table(path, table([ALPACA] * 3000))
    content = path.read_bytes()
    for left in (0, 10, len(content) // 2):
        path.write_bytes(content[:left])
        assert [fault.record for fault in check(path).faults] == [0]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_row_that_is_no_utf_8_is_the_only_one_refused(tmp_path: Path, ending: str) -> None:
    texts = pyarrow.array([b"Why?", b"\xe4", b"Why?"]).view(pyarrow.string())
    rows = pyarrow.table({"instruction": texts, "output": ["So."] * 3})
    write_table(tmp_path / f"a.{ending}", rows)
    (fault,) = check(tmp_path / f"a.{ending}").faults
    assert (fault.record, fault.what) == (2, "it is not UTF-8")


# --- without pyarrow ---


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """This Python as one that lacks pyarrow."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)


@pytest.mark.usefixtures("bare")
def test_only_a_table_needs_pyarrow() -> None:
    assert _tables.unreadable(Path("a.jsonl")) is None
    what, change = _tables.unreadable(Path("a.parquet")) or ("", "")
    assert sys.executable in what and "pyarrow" in change and ".jsonl" in change


def test_pyarrow_that_is_found_and_does_not_come_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when root's Python lies where the account of runs may not read all of it."""
    (tmp_path / "pyarrow.py").write_text("import a_part_that_may_not_be_read\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "pyarrow", raising=False)
    assert _tables.unreadable(Path("a.arrow")) and not _tables.unreadable(Path("a.csv"))


def environment(root: Path, name: str, python: str) -> None:
    """An environment as far as it is looked at: its mark, and a Python."""
    folder = root / "envs" / name
    (folder / "bin").mkdir(parents=True)
    (folder / "environment.json").write_text("{}", encoding="utf-8")
    (folder / "bin/python").write_text(f'#!/bin/sh\nexec "{python}" "$@"\n', encoding="utf-8")
    (folder / "bin/python").chmod(0o755)


def ask(path: Path, root: Path) -> dict[str, t.Any]:
    dataset = _dataset.parse({"path": str(path)}, "v")[0]
    return _checker.check(path, dataset, "sft", _media.UNKNOWN, root, _checker.sources())


@pytest.mark.usefixtures("bare")
def test_the_python_of_an_environment_reads_what_ours_cannot(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_table(path, table([ALPACA, alpaca(output=None)]))
    assert ask(path, tmp_path) == {"unread": "no environment with pyarrow is there yet"}
    environment(tmp_path, "0", "false")
    assert "envs/0/bin/python: it was killed" in ask(path, tmp_path)["unread"]
    environment(tmp_path, "1", f"{sys.executable}")
    answer = ask(path, tmp_path)
    assert answer["faults"] == [
        [2, "'output' is null, not text: the record would be dropped", "write the answer into 'output'"]
    ]
    assert (answer["records"], answer["fields"]) == (2, ["input", "instruction", "output"])


def test_the_parts_are_all_that_the_check_imports() -> None:
    """A part that is missing would only be seen where pyarrow is: here all are loaded without this collection."""
    program = (
        "import json, sys, types, pathlib, tempfile\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    package = pathlib.Path(folder, 'checker'); package.mkdir(); (package / '__init__.py').touch()\n"
        "    for name, text in json.load(sys.stdin).items(): (package / name).write_text(text)\n"
        "    sys.path[:0] = [folder]\n"
        "    import checker._checker\n"
        "print(sorted(name.removeprefix('checker.') + '.py' for name in sys.modules if name.startswith('checker.')))\n"
    )
    given = _checker.sources()
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, input=json.dumps(given), capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]}
    )
    assert done.stdout.strip() == str(sorted(given))
