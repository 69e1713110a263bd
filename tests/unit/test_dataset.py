# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Datasets: entries that are refused, records that LLaMA-Factory would drop, and what dataset_info.json says."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _dataset
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

# --- entries ---


@pytest.mark.parametrize(
    ("entry", "name", "source", "where"),
    [
        ("demo", "demo", "registered", "demo"),
        ({"file": "data/my set.jsonl"}, "my_set", "file", "data/my set.jsonl"),
        ({"file": "a.json", "name": "b"}, "b", "file", "a.json"),
        ({"path": "/srv/x.parquet"}, "x", "path", "/srv/x.parquet"),
        ({"path": "~/x.csv"}, "x", "path", "~/x.csv"),
        ({"hub": "org/data"}, "data", "hub", "org/data"),
        ({"registered": "demo"}, "demo", "registered", "demo"),
    ],
)
def test_an_entry_says_where_its_records_are(entry: t.Any, name: str, source: str, where: str) -> None:
    (dataset,) = _dataset.parse([entry], "train_datasets")
    assert (dataset.name, dataset.source, dataset.where) == (name, source, where)
    assert _dataset.parse(entry, "train_datasets") == [dataset], "a single entry needs no list"


def test_further_keys_are_kept() -> None:
    (dataset,) = _dataset.parse(
        {"hub": "o/d", "formatting": "sharegpt", "tags": {"role_tag": "role"}, "split": "test", "num_samples": "50"},
        "train_datasets",
    )
    assert dataset.formatting == "sharegpt"
    assert dataset.tags == {"role_tag": "role"}
    assert dataset.options == {"split": "test", "num_samples": 50}


@pytest.mark.parametrize(
    ("entries", "where", "change"),
    [
        (3, "train_datasets", "- name: mydata"),
        ([3], "train_datasets[0]", "`file`"),
        (["demo", None], "train_datasets[1]", "`file`"),
        ([{"name": "a"}], "train_datasets[0]", "add one of them"),
        ([{"file": "a.json", "hub": "o/a"}], "train_datasets[0]", "keep one of file, hub"),
        ([{"file": "a.json", "colour": 1}], "train_datasets[0]", "columns"),
        ([{"file": "a.json", 1: 1, "colour": 1}], "train_datasets[0]", "columns"),
        ([{"file": "a.json", "name": "a b"}], "train_datasets[0].name", "letters"),
        ([{"file": "a.json", "name": "a,b"}], "train_datasets[0].name", "letters"),
        (["a,b"], "train_datasets[0].name", "letters"),
        ([{"file": "a.json", "formatting": "openai"}], "train_datasets[0].formatting", "alpaca or sharegpt"),
        ([{"file": "a.json", "columns": {"question": "q"}}], "train_datasets[0].columns", "prompt"),
        ([{"file": "a.json", "columns": ["prompt"]}], "train_datasets[0].columns", "prompt"),
        ([{"file": "a.json", "columns": {"prompt": 3}}], "train_datasets[0].columns.prompt", "text"),
        ([{"file": "a.json", "tags": {"role": "r"}}], "train_datasets[0].tags", "role_tag"),
        ([{"file": "a.json", "tags": "role"}], "train_datasets[0].tags", "role_tag"),
        (
            [{"file": "a.json", "formatting": "sharegpt", "columns": {"system": "s"}}],
            "train_datasets[0].columns",
            "add `messages",
        ),
        ([{"file": "a.xlsx"}], "train_datasets[0].file", ".jsonl"),
        ([{"file": "a"}], "train_datasets[0].file", ".jsonl"),
        ([{"path": "a.json"}], "train_datasets[0].path", "full path"),
        ([{"hub": "o/d", "num_samples": "ten"}], "train_datasets[0].num_samples", "whole number"),
        ([{"hub": "o/d", "num_samples": 0}], "train_datasets[0].num_samples", "whole number"),
        ([{"file": "x/a.json"}, {"file": "y/a.json"}], "train_datasets", "its own `name`"),
    ],
)
def test_a_wrong_entry_is_refused_with_its_place_and_the_remedy(entries: t.Any, where: str, change: str) -> None:
    with pytest.raises(FinetuneError) as refusal:
        _dataset.parse(entries, "train_datasets")
    assert refusal.value.where == where
    assert change in refusal.value.change


# --- records ---

ALPACA = {"instruction": "Why?", "input": "", "output": "Because."}
ASK, ANSWER = {"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}
TALK = {"conversations": [ASK, ANSWER]}


def check(folder: Path, records: t.Sequence[t.Any], ending: str = "jsonl", **entry: t.Any) -> _dataset.Report:
    path = folder / f"data.{ending}"
    text = json.dumps(records) if ending == "json" else "".join(json.dumps(record) + "\n" for record in records)
    path.write_text(text, encoding="utf-8")
    return _dataset.check(path, _dataset.parse({"file": path.name, **entry}, "train_datasets")[0])


def alpaca(**fields: t.Any) -> dict[str, t.Any]:
    return {**ALPACA, **fields}


def talk(*messages: t.Any, **fields: t.Any) -> dict[str, t.Any]:
    return {"conversations": list(messages), **fields}


BROKEN_ALPACA: list[tuple[t.Any, t.Any, str]] = [
    # broken, the same repaired, what is said
    ("text", ALPACA, "no JSON object"),
    (["Why?", "Because."], ALPACA, "no JSON object"),
    (None, ALPACA, "no JSON object"),
    ({"instruction": "Why?"}, {"instruction": "Why?", "output": "So."}, "'output' is missing"),
    (alpaca(output=None), alpaca(output="So."), "'output' is null"),
    (alpaca(output=3), alpaca(output="3"), "'output' is int"),
    (alpaca(output=["So."]), alpaca(output="So."), "'output' is list"),
    (alpaca(output={"text": "So."}), alpaca(output="So."), "'output' is dict"),
    (alpaca(output=""), alpaca(output="."), "'output' is empty"),
    (alpaca(output=" \n"), alpaca(output=" a\n"), "'output' is empty"),
    (alpaca(instruction=""), alpaca(instruction="", input="Why?"), "'instruction' is empty"),
    (alpaca(instruction=None), alpaca(instruction=None, input="Why?"), "'instruction' is empty"),
    ({"output": "So."}, {"input": "Why?", "output": "So."}, "'instruction' is empty"),
    (alpaca(instruction=3), alpaca(instruction="3"), "'instruction' is int"),
    (alpaca(input=["x"]), alpaca(input="x"), "'input' is list"),
    (alpaca(system={}), alpaca(system="Be brief."), "'system' is dict"),
    (alpaca(history="x"), alpaca(history=[]), "'history' is no list"),
    (alpaca(history=["x"]), alpaca(history=[["x", "y"]]), "'history' is no list"),
    (alpaca(history=[["x"]]), alpaca(history=[["x", "y"]]), "'history' is no list"),
    (alpaca(history=[["x", 3]]), alpaca(history=[["x", "3"]]), "'history' is no list"),
    (alpaca(score="high"), alpaca(score=0.5), "'score' is str, in record 1 it is int"),
    (alpaca(score=True), alpaca(score=None), "'score' is bool, in record 1 it is int"),
]

BROKEN_SHAREGPT: list[tuple[t.Any, t.Any, str]] = [
    ([ASK, ANSWER], TALK, "no JSON object"),
    ({}, TALK, "'conversations' is missing"),
    ({"conversations": None}, TALK, "'conversations' is null"),
    ({"messages": [ASK, ANSWER]}, TALK, "'conversations' is missing"),
    (talk(), TALK, "'conversations' is list"),
    ({"conversations": "Why?"}, TALK, "'conversations' is str"),
    (talk("Why?", ANSWER), talk(ASK, ANSWER), "message 1 lacks text"),
    (talk(ASK, {"from": "gpt"}), TALK, "message 2 lacks text"),
    (talk(ASK, {"value": "So."}), TALK, "message 2 lacks text"),
    (talk(ASK, {"from": "gpt", "value": None}), TALK, "message 2 lacks text"),
    (talk(ASK, {"from": 1, "value": "So."}), TALK, "message 2 lacks text"),
    (talk({"role": "user", "content": "Why?"}, ANSWER), TALK, "message 1 lacks text in 'from' or 'value'"),
    (talk(ASK), TALK, "does not end with an answer"),
    (talk(ASK, ANSWER, ASK), talk(ASK, ANSWER, ASK, ANSWER), "does not end with an answer"),
    (talk({"from": "system", "value": "Be brief."}), TALK, "does not end with an answer"),
    (talk(ANSWER, ASK), TALK, "turn 1 is from 'gpt', but human or observation is due"),
    (talk(ASK, ASK), TALK, "turn 2 is from 'human', but function_call or gpt is due"),
    (talk({"from": "user", "value": "Why?"}, ANSWER), TALK, "turn 1 is from 'user'"),
    (
        talk(ASK, {"from": "system", "value": "x"}),
        talk({"from": "system", "value": "x"}, ASK, ANSWER),
        "turn 2 is from 'system'",
    ),
    (
        talk(ASK, {"from": "observation", "value": "1"}, ANSWER, ANSWER),
        talk(ASK, {"from": "function_call", "value": "1"}, {"from": "observation", "value": "1"}, ANSWER),
        "turn 2 is from 'observation'",
    ),
    (talk(ASK, ANSWER, tools="[{]"), talk(ASK, ANSWER, tools="[{}]"), "'tools' is no JSON text"),
    (talk(ASK, ANSWER, tools=[{"name": "f"}]), talk(ASK, ANSWER, tools=""), "'tools' is no JSON text"),
]


@pytest.mark.parametrize("ending", ["json", "jsonl"])
@pytest.mark.parametrize(("broken", "repaired", "says"), BROKEN_ALPACA)
def test_a_broken_alpaca_record_is_named(
    tmp_path: Path, ending: str, broken: t.Any, repaired: t.Any, says: str
) -> None:
    first = alpaca(score=1)
    report = check(tmp_path, [first, ALPACA, broken, ALPACA], ending)
    assert [fault.record for fault in report.faults][:1] == [3]
    assert any(says in fault.what for fault in report.faults)
    assert all(fault.change and fault.record == 3 for fault in report.faults)
    whole = check(tmp_path, [first, ALPACA, repaired, ALPACA], ending)
    assert (whole.faults, whole.records) == ([], 4)


@pytest.mark.parametrize(("broken", "repaired", "says"), BROKEN_SHAREGPT)
def test_a_broken_sharegpt_record_is_named(tmp_path: Path, broken: t.Any, repaired: t.Any, says: str) -> None:
    report = check(tmp_path, [TALK, broken, TALK], formatting="sharegpt")
    assert {fault.record for fault in report.faults} == {2}
    assert any(says in fault.what for fault in report.faults)
    whole = check(tmp_path, [TALK, repaired, TALK], formatting="sharegpt")
    assert (whole.faults, whole.records) == ([], 3)


GOOD = json.dumps(ALPACA).encode()


@pytest.mark.parametrize(
    ("name", "content", "record", "says"),
    [
        ("a.jsonl", GOOD + b"\n" + GOOD[:-5], 2, "not JSON"),  # cut short
        ("a.jsonl", GOOD + b"\n" + GOOD + GOOD, 2, "not JSON"),
        ("a.jsonl", GOOD + b"\n\n" + b"x\n", 3, "not JSON"),  # the number is the line's
        ("a.jsonl", b'{"instruction": "\xe4", "output": "x"}', 1, "not UTF-8"),
        ("a.jsonl", json.dumps(ALPACA).encode("utf-16"), 1, "not UTF-8"),
        ("a.jsonl", b'{"instruction": "a", "output": "b", "output": "c"}', 1, "'output' occurs twice"),
        ("a.json", b"[" + GOOD + b"," + GOOD[:-5], 1, "not JSON"),
        ("a.json", b"\xef\xbb\xbf[" + GOOD + b"]", 1, "not JSON"),
        ("a.json", json.dumps([ALPACA]).encode("utf-16"), 1, "not UTF-8"),
        ("a.json", GOOD, 1, "no JSON list"),
        ("a.json", b"[]", 0, "no record"),
        ("a.json", b"", 1, "not JSON"),
        ("a.jsonl", b"", 0, "no record"),
        ("a.jsonl", b"\n \n", 0, "no record"),
    ],
)
def test_a_torn_file_is_named(tmp_path: Path, name: str, content: bytes, record: int, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    report = _dataset.check(tmp_path / name, _dataset.parse({"file": name}, "v")[0])
    assert [fault.record for fault in report.faults] == [record]
    assert says in report.faults[0].what


@pytest.mark.parametrize("content", [GOOD, GOOD + b"\n\n" + GOOD + b"\n\n", b"\xef\xbb\xbf" + GOOD])
def test_what_llamafactory_reads_is_not_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    report = _dataset.check(tmp_path / "a.jsonl", _dataset.parse({"file": "a.jsonl"}, "v")[0])
    assert report.faults == []
    assert report.records == content.count(GOOD)
    assert report.columns == {"instruction", "input", "output"}


def test_columns_and_tags_of_the_author_are_what_is_checked(tmp_path: Path) -> None:
    columns = {"prompt": "q", "response": "a"}
    assert check(tmp_path, [{"q": "Why?", "a": "So."}], columns=columns).faults == []
    assert "'a' is missing" in check(tmp_path, [{"q": "Why?", "output": "So."}], columns=columns).faults[0].what
    assert "names no response" in check(tmp_path, [ALPACA], columns={"prompt": "instruction"}).faults[0].what
    chat: dict[str, t.Any] = {
        "formatting": "sharegpt",
        "columns": {"messages": "chat"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    }
    record = {"chat": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}
    assert check(tmp_path, [record], **chat).faults == []
    assert check(tmp_path, [TALK], **chat).faults[0].record == 1


def test_not_more_faults_are_kept_than_a_person_reads(tmp_path: Path) -> None:
    report = check(tmp_path, [{"output": 1}] * 50)
    assert (len(report.faults), report.records) == (20, 50)


@pytest.mark.parametrize("ending", ["csv", "parquet", "arrow", "txt"])
def test_other_endings_are_not_read(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"missing.{ending}"
    assert _dataset.check(path, _dataset.parse({"file": path.name}, "v")[0]) == _dataset.Report()


def test_a_refusal_lists_every_fault() -> None:
    dataset = _dataset.parse("demo", "train_datasets")[0]
    _dataset.refuse(dataset, "train_datasets", "/data.json", _dataset.Report(records=2))
    faults = [_dataset.Fault(2, "bad", "do this"), _dataset.Fault(7, "worse", "do that")]
    with pytest.raises(FinetuneError) as refusal:
        _dataset.refuse(dataset, "train_datasets", "/data.json", _dataset.Report(9, faults))
    assert "'demo'" in refusal.value.what
    assert "train_datasets, /data.json" in refusal.value.where
    assert "record 2: bad" in refusal.value.where
    assert "record 7: worse" in refusal.value.where
    assert refusal.value.change == "do this"


# --- dataset_info.json and identity ---


@pytest.mark.parametrize(
    ("entry", "present", "expected"),
    [
        (
            {"file": "a.json"},
            ("output", "instruction", "other"),
            {
                "formatting": "alpaca",
                "file_name": "/d/a",
                "columns": {"prompt": "instruction", "response": "output"},
            },
        ),
        ({"file": "a.csv"}, (), {"formatting": "alpaca", "file_name": "/d/a"}),
        (
            {"file": "a.json", "columns": {"prompt": "q", "response": "a"}},
            ("q", "a", "instruction"),
            {"formatting": "alpaca", "file_name": "/d/a", "columns": {"prompt": "q", "response": "a"}},
        ),
        (
            {"file": "a.json", "formatting": "sharegpt", "tags": {"role_tag": "role"}},
            ("conversations",),
            {
                "formatting": "sharegpt",
                "file_name": "/d/a",
                "columns": {"messages": "conversations"},
                "tags": {**_dataset.TAGS, "role_tag": "role"},
            },
        ),
        (
            {"hub": "o/d", "split": "test", "subset": "en", "num_samples": 5},
            (),
            {"formatting": "alpaca", "hf_hub_url": "o/d", "split": "test", "subset": "en", "num_samples": 5},
        ),
    ],
)
def test_dataset_info_writes_everything_out(entry: t.Any, present: tuple[str, ...], expected: t.Any) -> None:
    assert _dataset.info(_dataset.parse(entry, "v")[0], "/d/a", present) == expected


def test_identity_is_content_where_there_is_a_file() -> None:
    here, moved = (_dataset.parse({"file": f"{folder}/a.json"}, "v")[0] for folder in ("x", "y"))
    assert _dataset.identity(here, "00") == _dataset.identity(moved, "00") != _dataset.identity(here, "11")
    assert _dataset.identity(here, "00") == {"name": "a", "formatting": "alpaca", "digest": "00"}


def test_identity_is_the_reference_where_only_the_hub_knows() -> None:
    dataset = _dataset.parse({"hub": "o/d", "split": "test", "columns": {"prompt": "q"}}, "v")[0]
    assert _dataset.identity(dataset, "") == {
        "name": "d",
        "formatting": "alpaca",
        "reference": "o/d",
        "columns": {"prompt": "q"},
        "options": {"split": "test"},
    }
