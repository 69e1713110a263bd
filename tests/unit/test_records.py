# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records that LLaMA-Factory would drop or die on: named with their number, what is wrong and what to change."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _dataset, _records
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

ALPACA = {"instruction": "Why?", "input": "", "output": "Because."}
ASK, ANSWER = {"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}
TALK = {"conversations": [ASK, ANSWER]}


def check(folder: Path, records: t.Sequence[t.Any], ending: str = "jsonl", **entry: t.Any) -> _records.Report:
    path = folder / f"data.{ending}"
    text = json.dumps(records) if ending == "json" else "".join(json.dumps(record) + "\n" for record in records)
    path.write_text(text, encoding="utf-8")
    return _records.check(path, _dataset.parse({"file": path.name, **entry}, "train_datasets")[0])


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
    report = _records.check(tmp_path / name, _dataset.parse({"file": name}, "v")[0])
    assert [fault.record for fault in report.faults] == [record]
    assert says in report.faults[0].what


@pytest.mark.parametrize("content", [GOOD, GOOD + b"\n\n" + GOOD + b"\n\n", b"\xef\xbb\xbf" + GOOD])
def test_what_llamafactory_reads_is_not_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    report = _records.check(tmp_path / "a.jsonl", _dataset.parse({"file": "a.jsonl"}, "v")[0])
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
    assert (len(report.faults), report.more, report.records) == (20, 30, 50)


@pytest.mark.parametrize("ending", ["csv", "parquet", "arrow", "txt"])
def test_other_endings_are_not_read(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"missing.{ending}"
    assert _records.check(path, _dataset.parse({"file": path.name}, "v")[0]) == _records.Report()


def test_a_refusal_lists_every_fault() -> None:
    dataset = _dataset.parse("demo", "train_datasets")[0]
    _records.refuse(dataset, "train_datasets", "/data.json", _records.Report(records=2))
    faults = [_records.Fault(2, "bad", "do this"), _records.Fault(7, "worse", "do that")]
    with pytest.raises(FinetuneError) as refusal:
        _records.refuse(dataset, "train_datasets", "/data.json", _records.Report(9, faults))
    assert "'demo'" in refusal.value.what
    assert "train_datasets, /data.json" in refusal.value.where
    assert "record 2: bad" in refusal.value.where
    assert "record 7: worse" in refusal.value.where
    assert refusal.value.change == "do this; do that"


def test_a_refusal_repeats_nothing_and_counts_the_rest() -> None:
    dataset = _dataset.parse("demo", "train_datasets")[0]
    faults = [
        _records.Fault(2, "bad", "do this"),
        _records.Fault(2, "bad", "do this"),
        _records.Fault(0, "all", "do this"),
    ]
    with pytest.raises(FinetuneError) as refusal:
        _records.refuse(dataset, "v", "/data.json", _records.Report(9, faults, more=3))
    assert [line.strip() for line in refusal.value.where.splitlines()] == [
        "v, /data.json",
        "record 2: bad",
        "all",
        "and 3 more",
    ]
    assert refusal.value.change == "do this"


@pytest.mark.parametrize(
    ("record", "entry", "change"),
    [
        ({"messages": [{"role": "user", "content": "Why?"}]}, {}, "formatting: sharegpt"),
        ({"messages": [{"role": "user", "content": "Why?"}]}, {}, "role_tag: role"),
        (
            {"messages": [{"role": "user", "content": "Why?"}]},
            {"formatting": "sharegpt"},
            "columns: {messages: messages}",
        ),
        (TALK, {}, "formatting: sharegpt"),
        (ALPACA, {"formatting": "sharegpt"}, "leave `formatting` out"),
    ],
    ids=str,
)
def test_a_file_in_another_form_is_one_fault_with_the_words_that_describe_it(
    tmp_path: Path, record: t.Any, entry: t.Any, change: str
) -> None:
    (fault,) = check(tmp_path, [record] * 5, **entry).faults
    assert fault.record == 0
    assert change in fault.change
