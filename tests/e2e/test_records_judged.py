# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Our reading of records beside LLaMA-Factory's own, which runs for real: the same ones are refused."""

from __future__ import annotations

import json
import socket
import subprocess
import typing as t
from pathlib import Path

from ansible_collections.llmops.finetune.plugins.module_utils import _dataset, _records, _sources, _tools
from ansible_collections.llmops.finetune.plugins.module_utils._media import Media

from ..unit.broken_records import (
    BROKEN,
    COLUMNS,
    FILES,
    FINE,
    FORMS,
    MEDIA,
    MEDIA_BROKEN,
    MEDIA_FINE,
    NO_TABLES,
    PICTURE,
    TOOL_TEMPLATES,
    TOOL_USES,
    Record,
    as_table,
    column,
    write,
    write_table,
)
from .conftest import REPOSITORY, Demo

CASES: list[tuple[str, Record]] = [
    *((form, record) for form, record, _says in BROKEN),
    *FINE,
    *((name, form.good) for name, form in FORMS.items()),
]


MEDIA_CASES: list[tuple[str, Record]] = [
    *((form, record) for form, record, _says in MEDIA_BROKEN),
    *MEDIA_FINE,
    *((name, form.good) for name, form in MEDIA.items()),
]


def judged(demo: Demo, cases: list[dict[str, t.Any]]) -> list[list[int] | str]:
    launch = json.loads((demo.folder / "launch.json").read_text())
    model = demo.applied.plan["nodes"]["localhost"]["model"]["path"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    judge = REPOSITORY / "tests" / "e2e" / "judge_records.py"
    command = [launch["python"], judge, model, port]
    done = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers: list[list[int] | str] = json.loads(done.stdout)
    return answers


def test_the_same_records_are_refused(demo: Demo, tmp_path: Path) -> None:
    """A record of each kind between two good ones: as lines, as a list, and as rows where a table can hold it."""
    assert len(BROKEN) >= 40
    (tmp_path / "a.ppm").write_bytes(PICTURE)
    cases: list[dict[str, t.Any]] = []
    ours: list[list[int]] = []
    for number, (form, record) in enumerate([*CASES, *MEDIA_CASES]):
        entry, stage, good = {**FORMS, **MEDIA}[form]
        folder = str(tmp_path) if form in MEDIA else ""
        rows = as_table(form, record)
        for suffix in (".jsonl", ".json", *((".parquet", ".arrow") if rows else ())):
            path = tmp_path / f"{number}{suffix}"
            write(path, [good, record, good] if suffix.startswith(".json") else rows or ())
            dataset = _dataset.parse({"file": str(path), **entry}, "v")[0]
            report = _records.check(path, dataset, stage, media=Media(bool(folder), [folder], here=True))
            ours.append(sorted({fault.record for fault in report.faults}))
            info = _dataset.info(dataset, "x", sorted(report.columns), stage)
            cases.append({"path": str(path), "stage": stage, "info": info, "media_dir": folder})
    theirs = judged(demo, cases)
    wrong = []
    for case, our, their in zip(cases, ours, theirs, strict=True):
        odd = [*CASES, *MEDIA_CASES][int(Path(case["path"]).stem)]
        expected = [2] if isinstance(their, str) else their  # no table can be made of the file: of its odd record
        if our != expected:
            wrong.append(f"{case['path']} {odd}: ours {our}, theirs {their}")
    assert wrong == []
    assert sum(bool(their) for their in theirs) >= 210


def test_templates_die_of_the_same_tools(demo: Demo, tmp_path: Path) -> None:
    """Each use of tools with each format of them."""
    templates = _sources.schemas()["main"].templates
    assert {templates[name]["tools"] for name in TOOL_TEMPLATES} == {known["tools"] for known in templates.values()}
    cases: list[dict[str, t.Any]] = []
    ours: list[list[int]] = []
    for number, (_says, form, record) in enumerate(TOOL_USES):
        path = tmp_path / f"{number}.jsonl"
        write(path, [record])
        dataset = _dataset.parse({"file": str(path), **FORMS[form].entry}, "v")[0]
        report = _records.check(path, dataset)
        uses = _tools.found(_records.doubts(report.doubts))
        info = _dataset.info(dataset, "x", sorted(report.columns))
        for template in TOOL_TEMPLATES:
            ours.append([1] if any(templates[template]["tools"] in use.deadly for use in uses) else [])
            cases.append({"path": str(path), "stage": "sft", "info": info, "template": template})
    theirs = judged(demo, cases)
    wrong = [
        f"{case['template']} {Path(case['path']).read_text()}: ours {our}, theirs {their}"
        for case, our, their in zip(cases, ours, theirs, strict=True)
        if our != their
    ]
    assert wrong == []
    assert sum(bool(their) for their in theirs) >= 30


def test_the_same_files_are_refused(demo: Demo, tmp_path: Path) -> None:
    cases = []
    info = _dataset.info(_dataset.parse({"file": "a.json"}, "v")[0], "x", ("instruction", "input", "output"))
    for number, (suffix, text, _record, _says) in enumerate(FILES):
        path = tmp_path / f"{number}{suffix}"
        path.write_text(text, encoding="utf-8")
        cases.append({"path": str(path), "stage": "sft", "info": info})
    tables = [(column("more", values), False) for values in COLUMNS] + [(rows, True) for rows, _says in NO_TABLES]
    for number, (rows, _refused) in enumerate(tables):
        for suffix in (".parquet", ".arrow"):
            path = tmp_path / f"table-{number}{suffix}"
            write_table(path, rows)
            cases.append({"path": str(path), "stage": "sft", "info": info})
    expected = [(f"{suffix} {text}", record is not None) for suffix, text, record, _says in FILES]
    expected += [(str(rows.schema), refused) for rows, refused in tables for _suffix in range(2)]
    wrong = [
        f"{what}: {their}"
        for (what, refused), their in zip(expected, judged(demo, cases), strict=True)
        if bool(their) != refused
    ]
    assert wrong == []
