# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records that LLaMA-Factory would drop or die on: named with their number, what is wrong and what to change."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _dataset, _json, _readers, _records, _torn
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

from .broken_records import (
    ALPACA,
    ANSWER,
    ASK,
    ASSISTANT,
    BROKEN,
    FILES,
    FINE,
    FORMS,
    TOLD,
    USER,
    Form,
    alpaca,
    calling,
    chat,
    talk,
    write,
)


def check(folder: Path, records: t.Sequence[t.Any], ending: str = "jsonl", **entry: t.Any) -> _records.Report:
    path = folder / f"data.{ending}"
    write(path, records)
    return _records.check(path, _dataset.parse({"file": path.name, **entry}, "train_datasets")[0])


def written(folder: Path, form: Form, records: t.Sequence[t.Any], ending: str = "jsonl") -> _records.Report:
    """The report on a file of these records, in this form and for its stage."""
    path = folder / f"data.{ending}"
    write(path, records)
    return _records.check(path, _dataset.parse({"file": path.name, **form.entry}, "v")[0], form.stage)


@pytest.mark.parametrize("ending", ["json", "jsonl"])
@pytest.mark.parametrize(("form", "broken", "says"), BROKEN)
def test_a_broken_record_is_named(tmp_path: Path, form: str, broken: t.Any, says: str, ending: str) -> None:
    good = FORMS[form].good
    report = written(tmp_path, FORMS[form], [good, good, broken, good], ending)
    assert {fault.record for fault in report.faults} == {3}
    assert any(says in fault.what for fault in report.faults), report.faults
    assert all(fault.change for fault in report.faults)


@pytest.mark.parametrize(("form", "odd"), [*((name, form.good) for name, form in FORMS.items()), *FINE])
def test_what_is_trained_on_is_not_refused(tmp_path: Path, form: str, odd: t.Any) -> None:
    good = FORMS[form].good
    report = written(tmp_path, FORMS[form], [good, odd, good])
    assert (report.faults, report.records) == ([], 3)


@pytest.mark.parametrize("record", ["text", ["Why?"], 3, None])
def test_a_record_is_an_object(tmp_path: Path, record: t.Any) -> None:
    for form in FORMS.values():
        (fault,) = written(tmp_path, form, [form.good, record]).faults
        assert (fault.record, "no JSON object" in fault.what) == (2, True)


@pytest.mark.parametrize(
    ("form", "odd", "told"),
    [
        ("alpaca", alpaca(output=" \n"), "2 records have an empty answer, which teaches to say nothing"),
        ("alpaca", alpaca(instruction=""), "2 records have no question"),
        ("alpaca kto", {**alpaca(good=False), "output": None}, "2 records have an empty answer"),
        ("sharegpt dpo", talk(ASK, chosen=ASK, rejected=ANSWER), "2 records have a chosen or rejected message"),
        ("openai", chat(USER, calling('{"x": 1}'), TOLD, ASSISTANT), "2 records have a call of a tool with `arg"),
        (
            "sharegpt",
            talk(ASK, {"from": "function_call", "value": '{"name": "f", "arguments": "{}"}'}),
            "2 records have a call of a tool with `arguments` as text, which is learned in quotes",
        ),
    ],
)
def test_what_is_trained_on_in_doubt_is_told(tmp_path: Path, form: str, odd: t.Any, told: str) -> None:
    good = FORMS[form].good
    (doubt,) = _records.doubts(written(tmp_path, FORMS[form], [good, odd, good, odd]).doubts)
    assert told in doubt and "(the first is record 2)" in doubt


def test_a_field_has_one_type(tmp_path: Path) -> None:
    for score in ("high", True):
        (fault,) = check(tmp_path, [alpaca(score=1), alpaca(score=None), alpaca(score=0.5), alpaca(score=score)]).faults
        assert fault.record == 4 and "in record 1 it is a number" in fault.what


def test_what_is_wrong_with_a_field_is_told_once(tmp_path: Path) -> None:
    (fault,) = check(tmp_path, [ALPACA, alpaca(output=3)]).faults
    assert (fault.record, fault.what) == (2, "'output' is a number, not text: the record would be dropped")


@pytest.mark.parametrize(
    ("name", "day"),
    [
        ("sharegpt dpo", talk(ASK, chosen={**ANSWER, "value": "2024-01-02"}, rejected={**ANSWER, "value": "never"})),
        ("alpaca pt", {"text": "2024-01-02"}),
        ("sharegpt", talk({**ASK, "value": "2024-01-02"}, {**ANSWER, "value": "2024-01-02 10:11"})),
    ],
)
def test_texts_that_are_all_dates_are_told_of_the_file(tmp_path: Path, name: str, day: t.Any) -> None:
    form = FORMS[name]
    (fault,) = written(tmp_path, form, [day, day]).faults
    assert (fault.record, "nothing but dates" in fault.what) == (0, True) and "list" in fault.change
    assert not written(tmp_path, form, [day, form.good]).faults + written(tmp_path, form, [day], "json").faults
    unread = written(tmp_path, FORMS["alpaca pt"], [{"text": "x", "output": "2024-01-02"}])
    assert unread.faults == []


def test_a_column_that_no_record_has_is_named(tmp_path: Path) -> None:
    (fault,) = check(
        tmp_path, [ALPACA], columns={"prompt": "instruction", "response": "output", "system": "who"}
    ).faults
    assert fault.record == 0
    assert fault.what == "no record has 'who', which `columns` names; the fields are 'input', 'instruction', 'output'"


def test_a_column_that_each_record_lacks_is_one_fault_of_the_file(tmp_path: Path) -> None:
    misnamed = {"prompt": "instruction", "response": "answr"}
    report = check(tmp_path, [ALPACA] * 30, columns=misnamed)
    assert ([fault.record for fault in report.faults], report.more) == ([0], 0)
    assert "no record has 'answr'" in report.faults[0].what and report.faults[0].change == "correct `columns`"
    torn = check(tmp_path, [ALPACA, {**ALPACA, "instruction": 1}], columns=misnamed)
    assert [fault.record for fault in torn.faults] == [1, 2], "what is wrong besides is told first"


TALK = talk(ASK, ANSWER)
CHAT = {"messages": [{"role": "user", "content": "Why?"}]}


@pytest.mark.parametrize(("ending", "text", "record", "says"), FILES)
def test_a_file_is_what_llamafactory_reads(
    tmp_path: Path, ending: str, text: str, record: int | None, says: str
) -> None:
    path = tmp_path / f"a{ending}"
    path.write_text(text, encoding="utf-8")
    report = _records.check(path, _dataset.parse({"file": path.name}, "v")[0])
    assert [fault.record for fault in report.faults][:1] == ([] if record is None else [record])
    assert all(says in fault.what for fault in report.faults)


def test_text_is_for_pretraining_by_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n", encoding="utf-8")
    dataset = _dataset.parse({"file": "a.txt", "columns": {"prompt": "text"}}, "v")[0]
    report = _records.check(tmp_path / "a.txt", dataset, "pt")
    assert (report.records, report.faults, report.columns) == (2, [], {"text"})


def test_a_row_with_more_fields_than_the_first_line_names_is_refused(tmp_path: Path) -> None:
    """pandas would take the first field of every row for its name, and shift the others."""
    (tmp_path / "a.csv").write_text("instruction,input,output\nWhy?,,a,b\n", encoding="utf-8")
    (fault,) = _records.check(tmp_path / "a.csv", _dataset.parse({"file": "a.csv"}, "v")[0]).faults
    assert (fault.record, "4 fields" in fault.what) == (1, True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"instruction": "\xe4", "output": "x"}'),
        ("a.json", b'[{"instruction": "\xe4", "output": "x"}]'),
    ],
)
def test_a_file_is_utf_8(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    (fault,) = _records.check(tmp_path / name, _dataset.parse({"file": name}, "v")[0]).faults
    assert (fault.record, "UTF-8" in fault.what) == (1, True)


def test_a_list_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a piece ends: in a word, a number, an escape, a letter of several bytes."""
    odd = alpaca(output='Größe "1" \\ 2', score=12345)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([odd, odd, odd], ensure_ascii=False, indent=1), encoding="utf-8")
    for chunk in range(1, 40):
        monkeypatch.setattr(_json, "CHUNK", chunk)
        assert [found[1] for found in _readers.records(path)] == [odd, odd, odd]


@pytest.mark.parametrize("start", ["[", ""])
@pytest.mark.parametrize("odd", ['{"output": x}', '{"output": "a" "b"}', '{"a": 1, "a": 2} x'])
def test_a_fault_in_the_middle_is_found_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str, odd: str
) -> None:
    """The rest of a file of gigabytes is not taken into memory for it."""
    wide = json.dumps(ALPACA, indent=1)
    comma = "," if start else ""
    path = tmp_path / "a.json"
    path.write_text(start + f"{wide}{comma}\n" * 50 + odd + f"{comma}\n{wide}" * 5000, encoding="utf-8")
    monkeypatch.setattr(_json, "CHUNK", 1000)
    read = 0

    class Counted(_json._Text):
        def _more(self, amount: int = 1000) -> bool:
            nonlocal read
            read += amount
            return super()._more(amount)

    monkeypatch.setattr(_json, "_Text", Counted)
    *_good, (number, _value, wrong) = _readers.records(path)
    assert wrong and number in (51, 52) and read < 20_000


def test_columns_and_tags_of_the_author_are_what_is_checked(tmp_path: Path) -> None:
    columns = {"prompt": "q", "response": "a"}
    assert check(tmp_path, [{"q": "Why?", "a": "So."}], columns=columns).faults == []
    (fault,) = check(tmp_path, [{"q": "Why?", "a": "So."}, {"q": "Why?", "output": "So."}], columns=columns).faults
    assert "'a' is missing" in fault.what and fault.record == 2
    assert "names no response" in check(tmp_path, [ALPACA], columns={"prompt": "instruction"}).faults[0].what
    chat: dict[str, t.Any] = {
        "formatting": "sharegpt",
        "columns": {"messages": "chat"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    }
    record = {"chat": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}
    assert check(tmp_path, [record], **chat).faults == []
    assert check(tmp_path, [record, TALK], **chat).faults[0].record == 2


def test_not_more_faults_are_kept_than_a_person_reads(tmp_path: Path) -> None:
    report = check(tmp_path, [{"output": 1}] * 50)
    assert (len(report.faults), report.more, report.records) == (20, 30, 50)


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
        (talk(USER, ASSISTANT), {"formatting": "sharegpt"}, "tags: {role_tag: role, content_tag: content, "),
        (
            chat(USER, ASSISTANT),
            {"formatting": "sharegpt", "columns": {"messages": "messages"}},
            "user_tag: user, assistant_tag: assistant}",
        ),
        (chat(ASK, ANSWER), {"formatting": "openai"}, "use `formatting: sharegpt`"),
        ({"train": [ALPACA]}, {}, "write the list alone"),
        ({"data": [TALK]}, {"formatting": "sharegpt"}, "write the list alone"),
    ],
    ids=str,
)
def test_a_file_in_another_form_is_one_fault_with_the_words_that_describe_it(
    tmp_path: Path, record: t.Any, entry: t.Any, change: str
) -> None:
    (fault,) = check(tmp_path, [record] * 5, **entry).faults
    assert fault.record == 0
    assert change in fault.change


def test_records_may_hold_lists_of_records(tmp_path: Path) -> None:
    assert check(tmp_path, [alpaca(shots=[ALPACA])]).faults == []


def test_a_kto_file_of_one_kind_of_answers_is_told(tmp_path: Path) -> None:
    form = FORMS["alpaca kto"]
    (doubt,) = _records.doubts(written(tmp_path, form, [alpaca(good=False), alpaca(good=False)]).doubts)
    assert doubt.startswith("2 records have the same kto_tag")
    assert not written(tmp_path, form, [alpaca(good=False), alpaca(good=True)]).doubts
    assert not written(tmp_path, form, [alpaca(good=False)]).doubts
    assert not written(tmp_path, form, [alpaca(good="yes"), alpaca(good="no")]).doubts


def test_a_limit_hides_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, [{"instruction": "Why?"}])
    dataset = _dataset.parse({"file": path.name}, "v")[0]
    with pytest.raises(FinetuneError, match="limit is 0"):
        _records.check(path, dataset, limit=0)
    with pytest.raises(FinetuneError):
        _records.refuse(dataset, "v", "/a.jsonl", _records.Report(1, more=3))
    named = _dataset.parse({"file": path.name, "columns": {"prompt": "q"}}, "v")[0]
    assert _records._absent(named, _records.Report(1)) and not _records._absent(named, _records.Report(1, more=1))


def judged(folder: Path, records: t.Sequence[t.Any], stage: str = "sft", **entry: t.Any) -> _records.Report:
    write(folder / "a.jsonl", records)
    return _records.check(folder / "a.jsonl", _dataset.parse({"file": "a.jsonl", **entry}, "v")[0], stage)


@pytest.mark.parametrize(
    ("stage", "formatting", "record", "change"),
    [
        ("sft", "alpaca", {"question": "Why?", "answer": "So."}, "columns: {prompt: question, response: answer}"),
        ("sft", "alpaca", {"Instruction": "Why?", "Output": "So."}, "columns: {prompt: Instruction, response: Output}"),
        ("sft", "alpaca", {"x": "Why?", "y": "So."}, "columns: {prompt: <field>, response: <field>}"),
        (
            "sft",
            "alpaca",
            {"instruction": "Why?", "system": "x", "answer": "So."},
            "columns: {prompt: instruction, response: answer, system: system}",
        ),
        ("pt", "alpaca", {"text": "All of it."}, "columns: {prompt: text}"),
        ("ppo", "alpaca", {"prompt": "Why?"}, "columns: {prompt: prompt}"),
        (
            "dpo",
            "alpaca",
            {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
            "columns: {prompt: prompt, chosen: chosen, rejected: rejected}",
        ),
        (
            "kto",
            "alpaca",
            {"prompt": "Why?", "completion": "So.", "label": True},
            "columns: {prompt: prompt, response: completion, kto_tag: label}",
        ),
        ("sft", "sharegpt", {"dialog": [ASK, ANSWER]}, "columns: {messages: dialog}"),
        ("kto", "sharegpt", {**TALK, "label": True}, "columns: {messages: conversations, kto_tag: label}"),
    ],
)
def test_fields_that_no_record_has_are_one_fault(
    tmp_path: Path, stage: str, formatting: str, record: t.Any, change: str
) -> None:
    """With the fields that are there in the remedy, and what it says is then trained on."""
    (fault,) = judged(tmp_path, [record] * 30, stage, formatting=formatting).faults
    assert fault.record == 0 and all(repr(name) in fault.what for name in record)
    assert f"`{change}`" in fault.change
    if "<" not in change:
        columns = dict(pair.split(": ") for pair in change[len("columns: {") : -1].split(", "))
        assert judged(tmp_path, [record], stage, formatting=formatting, columns=columns).faults == []


def test_a_question_that_no_record_has_is_told_with_its_remedy(tmp_path: Path) -> None:
    report = judged(tmp_path, [{"prompt": "Why?", "output": "So."}])
    doubt = ", ".join(report.doubts)
    assert (
        len(report.doubts) == 1
        and report.faults == []
        and "no question" in doubt
        and "columns: {prompt: prompt, response: output}" in doubt
    )


def test_pretraining_on_nothing_is_refused(tmp_path: Path) -> None:
    columns = {"prompt": "text"}
    (fault,) = judged(tmp_path, [{"text": ""}, {"text": None}], "pt", columns=columns).faults
    assert (fault.record, "no record has a text" in fault.what) == (0, True)
    report = judged(tmp_path, [{"text": ""}, {"text": "x"}], "pt", columns=columns)
    assert (report.faults, report.doubts) == ([], {"no text": [1, 1]})


def test_a_txt_file_is_pretrained_on_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n", encoding="utf-8")
    dataset = _dataset.parse({"file": "a.txt"}, "v")[0]
    report = _records.check(tmp_path / "a.txt", dataset, "pt")
    assert (report.faults, report.doubts) == ([], {})
    assert _dataset.info(dataset, "x", report.columns, "pt")["columns"] == {"prompt": "text"}
    (fault,) = _records.check(tmp_path / "a.txt", dataset, "sft").faults
    assert "stage pt" in fault.change


@pytest.mark.parametrize("name", ["system", "tools", "history", "input", "images"])
def test_a_field_that_columns_leaves_out_is_told(tmp_path: Path, name: str) -> None:
    columns = {"prompt": "instruction", "response": "output"}
    record = {"instruction": "Why?", "output": "Because."}
    report = judged(tmp_path, [record, {**record, name: "x"}, {**record, name: None}], columns=columns)
    assert report.faults == []
    assert report.doubts == {f"{name!r}, which `columns` does not name: it is not read": [1, 2]}
    assert not judged(tmp_path, [{**record, "score": "x"}], columns=columns).doubts


def test_nested_fields_have_one_type(tmp_path: Path) -> None:
    good, bad = (chat_of_calls(x) for x in (1, "one"))
    (fault,) = judged(tmp_path, [good, good, bad, good], formatting="openai").faults
    assert fault.record == 3 and "arguments.x' is text, in record 1 it is a number" in fault.what


def test_objects_that_get_the_keys_of_others_are_told(tmp_path: Path) -> None:
    other = chat_of_calls(1)
    other["messages"][1]["tool_calls"][0]["function"]["arguments"] = {"y": 2}
    report = judged(tmp_path, [chat_of_calls(1), chat_of_calls(2), other], formatting="openai")
    assert (report.faults, list(report.doubts.values())) == ([], [[1, 3]])
    assert "null" in next(iter(report.doubts))
    assert not judged(tmp_path, [chat_of_calls(1), chat_of_calls(2)], formatting="openai").doubts


def chat_of_calls(x: t.Any) -> t.Any:
    return {"messages": [USER, calling({"x": x}), TOLD, ASSISTANT]}


def test_a_kto_tag_that_nobody_asked_for_is_not_read(tmp_path: Path) -> None:
    report = judged(tmp_path, [alpaca(kto_tag=True), alpaca(kto_tag=False)])
    dataset = _dataset.parse({"file": "a.jsonl"}, "v")[0]
    assert report.faults == []
    assert "kto_tag" not in _dataset.info(dataset, "x", report.columns, "sft")["columns"]
    assert "kto_tag" in _dataset.info(dataset, "x", report.columns, "kto")["columns"]


@pytest.mark.parametrize("depth", [5000, 100_000])
@pytest.mark.parametrize("form", ["{good}\n{deep}\n{good}\n", "[{good},{deep}]", "{wide}\n{deep}"])
def test_a_record_nested_too_deep_is_named(tmp_path: Path, form: str, depth: int) -> None:
    deep = json.dumps(ALPACA)[:-1] + ', "more": ' + '{"a":' * depth + "1" + "}" * depth + "}"
    path = tmp_path / "a.json"
    good = {"good": json.dumps(ALPACA), "wide": json.dumps(ALPACA, indent=1)}
    path.write_text(form.format(deep=deep, **good), encoding="utf-8")
    faults = _records.check(path, _dataset.parse({"file": "a.json"}, "v")[0]).faults
    assert [(fault.record, "nested too deep" in fault.what) for fault in faults] == [(2, True)]


def test_what_a_reader_takes_may_be_too_deep_to_look_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers of JSON in other Pythons, and of tables, go deeper."""
    deep: dict[str, t.Any] = {}
    for _level in range(5000):
        deep = {"a": deep}
    monkeypatch.setattr(_records, "records", lambda path: iter([(1, ALPACA, None), (2, alpaca(more=deep), None)]))
    (fault,) = _records.check(tmp_path, _dataset.parse({"file": "a.json"}, "v")[0]).faults
    assert (fault.record, fault.what) == (2, _torn.DEEP[0])


def test_records_with_the_same_fault_share_a_line() -> None:
    dataset = _dataset.parse("demo", "train_datasets")[0]
    faults = [_records.Fault(number, "bad", "do this") for number in (1, 2, 3, 7, 9, 10)]
    faults.insert(1, _records.Fault(2, "worse", "do that"))
    with pytest.raises(FinetuneError) as refusal:
        _records.refuse(dataset, "v", "/data.json", _records.Report(10, faults))
    assert [line.strip() for line in refusal.value.where.splitlines()] == [
        "v, /data.json",
        "records 1–3, 7, 9–10: bad",
        "record 2: worse",
    ]
