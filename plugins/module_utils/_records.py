# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records of a dataset: whether each is one that LLaMA-Factory would train on.

The rules are those of LLaMA-Factory 0.9.5's converters (data/converter.py) and supervised processor, which drop a bad
record with a warning in the middle of the log.
"""

from __future__ import annotations

import codecs
import json
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

from ._dataset import CHECKED, COLUMNS, TAGS, Dataset
from ._errors import FinetuneError


class Fault(t.NamedTuple):
    record: int
    """Number of the record, from 1; in a .jsonl file that is the line. 0 is the file as a whole."""
    what: str
    change: str


_Wrong = t.Optional[tuple[str, str]]
"""What is wrong and what to change."""


@dataclass
class Report:
    records: int = 0
    faults: list[Fault] = field(default_factory=list)
    more: int = 0
    """Faults that were found and not kept."""
    columns: set[str] = field(default_factory=set)
    """Names of the fields that occur in the file."""


def check(path: Path, dataset: Dataset, limit: int = 20) -> Report:
    """Read every record of a .json or .jsonl file; at most `limit` faults are kept. Other endings are not read."""
    report = Report()
    if path.suffix not in CHECKED:
        return report
    columns = dataset.columns or COLUMNS[dataset.formatting]
    tags = {**TAGS, **dataset.tags}
    kinds: dict[str, tuple[type, int]] = {}
    for number, record, torn in _records(path):
        report.records += 1
        if other := _other_form(record, dataset) if report.records == 1 else None:
            report.faults.append(Fault(0, *other))
            break
        faults = [torn] if torn else _record_faults(record, dataset.formatting, columns, tags, kinds, number)
        if isinstance(record, dict):
            report.columns |= record.keys()
        for what, change in (fault for fault in faults if fault):
            if len(report.faults) < limit:
                report.faults.append(Fault(number, what, change))
            else:
                report.more += 1
    if not report.records:
        report.faults.append(Fault(0, "there is no record in it", "add records"))
    return report


def _other_form(record: t.Any, dataset: Dataset) -> _Wrong:
    """A file that is written in a form other than the one it is said to have, by its first record."""
    if not isinstance(record, dict) or dataset.columns:
        return None
    conversations, messages = record.get("conversations"), record.get("messages")
    if dataset.formatting == "alpaca" and isinstance(conversations, list):
        return "its records hold `conversations`, the sharegpt form", "add `formatting: sharegpt`"
    if "conversations" not in record and isinstance(messages, list):
        return (
            "its records hold `messages`, the form of the OpenAI API",
            "add `formatting: sharegpt`, `columns: {messages: messages}` and `tags: {role_tag: role, content_tag: "
            "content, user_tag: user, assistant_tag: assistant}`",
        )
    if dataset.formatting == "sharegpt" and "instruction" in record:
        return "its records hold `instruction`, the alpaca form", "leave `formatting` out"
    return None


def _records(path: Path) -> t.Iterator[tuple[int, t.Any, _Wrong]]:
    if path.suffix == ".jsonl":
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():  # empty lines are no records, to LLaMA-Factory too
                    yield number, *_decode(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
        return
    value, torn = _decode(path.read_bytes())
    if torn:
        yield 1, None, torn
    elif not isinstance(value, list):
        yield (
            1,
            None,
            ("the file holds no JSON list", "write a list of records, or one record per line in a .jsonl file"),
        )
    else:
        for number, record in enumerate(value, 1):
            yield number, record, None


def _decode(text: bytes) -> tuple[t.Any, _Wrong]:
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_object), None
    except UnicodeDecodeError:
        return None, ("it is not UTF-8", "save the file as UTF-8")
    except ValueError as error:
        return None, (f"it is not JSON: {error}", "correct it; a file cut short must be copied again")


def _object(pairs: list[tuple[str, t.Any]]) -> dict[str, t.Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [pair[0] for pair in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} occurs twice in one object")
    return value


def _record_faults(
    record: t.Any,
    formatting: str,
    columns: dict[str, str],
    tags: dict[str, str],
    kinds: dict[str, tuple[type, int]],
    number: int,
) -> t.Iterator[_Wrong]:
    if not isinstance(record, dict):
        yield "it is no JSON object", 'write {"instruction": …, "input": …, "output": …}'
        return
    for key, value in record.items():
        if value is not None:
            kind, first = kinds.setdefault(key, (type(value), number))
            if kind is not type(value) and {kind, type(value)} != {int, float}:
                yield (
                    f"{key!r} is {type(value).__name__}, in record {first} it is {kind.__name__}",
                    "give the field one type in all records",
                )
    rule = _alpaca if formatting == "alpaca" else _sharegpt
    yield rule(record, columns, tags)


def _alpaca(record: dict[str, t.Any], columns: dict[str, str], tags: dict[str, str]) -> _Wrong:
    response = columns.get("response", "")
    if not response:
        return "`columns` names no response: the record would be dropped", "add `response` to `columns`"
    if not isinstance(record.get(response), str):
        return (
            f"{response!r} is {_kind(record, response)}, not text: the record would be dropped",
            f"write the answer into {response!r}",
        )
    for role in ("prompt", "query", "system"):
        name = columns.get(role, "")
        if record.get(name) is not None and not isinstance(record[name], str):
            return f"{name!r} is {_kind(record, name)}, not text", f"write text into {name!r}"
    if not any(record.get(columns.get(role, "")) for role in ("prompt", "query")):
        return f"{columns.get('prompt', 'instruction')!r} is empty", "write the question"
    if not record[response].strip():
        return f"{response!r} is empty: the model would learn to say nothing", "write the answer or remove the record"
    history = record.get(columns.get("history", ""))
    if history is not None and not (
        isinstance(history, list)
        and all(isinstance(turn, list) and len(turn) == 2 and all(isinstance(x, str) for x in turn) for turn in history)
    ):
        return f"{columns['history']!r} is no list of [question, answer] pairs", "write pairs of texts"
    return None


def _sharegpt(record: dict[str, t.Any], columns: dict[str, str], tags: dict[str, str]) -> _Wrong:
    name = columns.get("messages", "conversations")
    messages = record.get(name)
    if not isinstance(messages, list) or not messages:
        return f"{name!r} is {_kind(record, name)}, not a list of messages", f"write the messages into {name!r}"
    role_key, content_key = tags.get("role_tag", ""), tags.get("content_tag", "")
    for i, message in enumerate(messages, 1):
        if (
            not isinstance(message, dict)
            or not isinstance(message.get(content_key), str)
            or not isinstance(message.get(role_key), str)
        ):
            return (
                f"message {i} lacks text in {role_key!r} or {content_key!r}",
                "write both, or name the keys in `tags`",
            )
    if tags.get("system_tag") and messages[0][role_key] == tags["system_tag"]:
        messages = messages[1:]
    asks = {tags.get("user_tag"), tags.get("observation_tag")} - {None}
    answers = {tags.get("assistant_tag"), tags.get("function_tag")} - {None}
    for i, message in enumerate(messages):
        expected = answers if i % 2 else asks
        if message[role_key] not in expected:
            return (
                f"turn {i + 1} is from {message[role_key]!r}, but {' or '.join(sorted(map(str, expected)))} is due: "
                "the record would be dropped",
                "let question and answer alternate, the question first",
            )
    if not messages or len(messages) % 2:
        return (
            "it does not end with an answer: the record would be dropped",
            "add the answer or remove the last message",
        )
    tools = record.get(columns.get("tools", ""))
    if tools:
        try:
            json.loads(tools)
        except (TypeError, ValueError):
            return f"{columns['tools']!r} is no JSON text", "write the list of tools as a JSON string"
    return None


def _kind(record: dict[str, t.Any], name: str) -> str:
    if name not in record:
        return "missing"
    return "null" if record[name] is None else type(record[name]).__name__


def refuse(dataset: Dataset, variable: str, shown: str, report: Report) -> None:
    """Raise when the file has faults: each kept one on a line, each remedy once."""
    if not report.faults:
        return
    lines = [f"record {fault.record}: {fault.what}" if fault.record else fault.what for fault in report.faults]
    if report.more:
        lines.append(f"and {report.more} more")
    raise FinetuneError(
        f"Dataset {dataset.name!r} has records that LLaMA-Factory would not train on.",
        where="\n          ".join([f"{variable}, {shown}", *dict.fromkeys(lines)]),
        change="; ".join(dict.fromkeys(fault.change for fault in report.faults)),
    )
