# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Datasets: what `train_datasets` may hold, and whether each record is one that LLaMA-Factory would train on.

The rules are those of LLaMA-Factory 0.9.5's converters (data/converter.py) and supervised processor, which drop a bad
record with a warning in the middle of the log.
"""

from __future__ import annotations

import codecs
import json
import re
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

from . import _config
from ._errors import FinetuneError

ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "history": "history", "system": "system"}
SHAREGPT = {"messages": "conversations", "system": "system", "tools": "tools"}
TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
COLUMNS = {"alpaca": ALPACA, "sharegpt": SHAREGPT}
CHECKED = (".json", ".jsonl")
SUFFIXES = (*CHECKED, ".csv", ".parquet", ".arrow", ".txt")

Source = t.Literal["file", "path", "hub", "registered"]
_SOURCES: tuple[Source, ...] = ("file", "path", "hub", "registered")
_KEYS = {*_SOURCES, "name", "formatting", "columns", "tags", "split", "subset", "num_samples"}
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
DEMO = {"demo": "demo.jsonl", "demo_heldout": "demo_heldout.jsonl"}
"""Names of the sets that come with this collection, and their files in roles/train/files."""


@dataclass(frozen=True)
class Dataset:
    """One entry of train_datasets or train_eval_datasets."""

    name: str
    source: Source
    where: str
    formatting: str = "alpaca"
    columns: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    options: dict[str, t.Any] = field(default_factory=dict)
    """split, subset, num_samples as written."""
    registration: dict[str, t.Any] = field(default_factory=dict)
    """LLaMA-Factory's own entry of a set that it registers, kept word for word."""


class Fault(t.NamedTuple):
    record: int
    """Number of the record, from 1; in a .jsonl file that is the line."""
    what: str
    change: str


@dataclass
class Report:
    records: int = 0
    faults: list[Fault] = field(default_factory=list)
    columns: set[str] = field(default_factory=set)
    """Names of the fields that occur in the file."""


def parse(entries: t.Any, variable: str) -> list[Dataset]:
    """The entries of `variable`; a FinetuneError names the entry that is wrong."""
    if isinstance(entries, str):
        entries = [name.strip() for name in entries.split(",")]
    if isinstance(entries, t.Mapping):
        entries = [entries]
    if not isinstance(entries, (list, tuple)):
        raise FinetuneError(
            f"{variable} is no list.", where=variable, change="write `- name: mydata` and `file: data.jsonl` below it"
        )
    parsed = [_entry(entry, f"{variable}[{i}]") for i, entry in enumerate(entries)]
    names = [dataset.name for dataset in parsed]
    for name in names:
        if names.count(name) > 1:
            raise FinetuneError(f"Two datasets are named {name!r}.", where=variable, change="give each its own `name`")
    return parsed


def _entry(entry: t.Any, where: str) -> Dataset:
    if isinstance(entry, str):
        entry = {"name": entry, "registered": entry}
    if not isinstance(entry, t.Mapping):
        raise FinetuneError(
            f"{entry!r} is no dataset.", where=where, change="write a name, or a dict with `file`, `path` or `hub`"
        )
    unknown = sorted(set(entry) - _KEYS, key=str)
    if unknown:
        raise FinetuneError(f"Unknown key {unknown[0]!r}.", where=where, change="use " + ", ".join(sorted(_KEYS)))
    sources = [source for source in _SOURCES if entry.get(source)]
    if len(sources) != 1:
        raise FinetuneError(
            "A dataset comes from exactly one of file (on this controller), path (on the node), hub, registered.",
            where=where,
            change=f"keep one of {', '.join(sources)}" if sources else "add one of them",
        )
    source = sources[0]
    place = str(entry[source])
    name = str(entry.get("name") or re.sub(r"\W+", "_", Path(place).stem))
    if not _NAME.fullmatch(name):
        raise FinetuneError(
            f"{name!r} is no dataset name.", where=f"{where}.name", change="use letters, digits, _ . and -"
        )
    formatting = str(entry.get("formatting", "alpaca"))
    if formatting not in COLUMNS:
        raise FinetuneError(
            f"Unknown formatting {formatting!r}.", where=f"{where}.formatting", change="use alpaca or sharegpt"
        )
    columns = _names(entry.get("columns"), COLUMNS[formatting], f"{where}.columns")
    tags = _names(entry.get("tags"), TAGS, f"{where}.tags")
    if formatting == "sharegpt" and columns and "messages" not in columns:
        raise FinetuneError(
            "columns does not say which field holds the messages: LLaMA-Factory forgets its defaults.",
            where=f"{where}.columns",
            change="add `messages: conversations`, or the field's name in your file",
        )
    if source in ("file", "path") and Path(place).suffix not in SUFFIXES:
        raise FinetuneError(
            f"{place} has no known ending.", where=f"{where}.{source}", change="use one of " + " ".join(SUFFIXES)
        )
    if source == "path" and not place.startswith(("/", "~/")):
        raise FinetuneError(
            f"{place} is relative.",
            where=f"{where}.path",
            change="give the full path on the node, or `file` for one on this controller",
        )
    options = {key: entry[key] for key in ("split", "subset", "num_samples") if key in entry}
    if "num_samples" in options:
        number = options["num_samples"] = _config.scalar(options["num_samples"])
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise FinetuneError(
                f"num_samples is {number!r}.", where=f"{where}.num_samples", change="use a whole number from 1"
            )
    return Dataset(name, source, place, formatting, columns, tags, options)


def _names(given: t.Any, known: t.Iterable[str], where: str) -> dict[str, str]:
    """`columns` or `tags`: LLaMA-Factory's word for a field, and the name it has in the file."""
    if not isinstance(given or {}, t.Mapping):
        raise FinetuneError(f"{given!r} is no dict.", where=where, change="write `key: name` with " + ", ".join(known))
    for key, name in (given or {}).items():
        if key not in known:
            raise FinetuneError(f"Unknown key {key!r}.", where=where, change="use " + ", ".join(known))
        if not isinstance(name, str) or not name:
            raise FinetuneError(f"{name!r} is no name.", where=f"{where}.{key}", change="write the name as text")
    return dict(given or {})


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
        faults = [torn] if torn else _record_faults(record, dataset.formatting, columns, tags, kinds, number)
        if isinstance(record, dict):
            report.columns |= record.keys()
        for what, change in (fault for fault in faults if fault):
            if len(report.faults) < limit:
                report.faults.append(Fault(number, what, change))
    if not report.records:
        report.faults.append(Fault(0, "there is no record in it", "add records"))
    return report


_Wrong = t.Optional[tuple[str, str]]


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
    """Raise when the file has faults; all kept ones are listed."""
    if not report.faults:
        return
    lines = [f"record {fault.record}: {fault.what}" for fault in report.faults]
    raise FinetuneError(
        f"Dataset {dataset.name!r} has records that LLaMA-Factory would not train on.",
        where="\n          ".join([f"{variable}, {shown}", *lines]),
        change=report.faults[0].change,
    )


def info(dataset: Dataset, file_name: str, present: t.Container[str] = ()) -> dict[str, t.Any]:
    """The entry in dataset_info.json.

    Columns are always written out: LLaMA-Factory dies on a default column that the file does not have, and forgets
    every default once one column or tag is given. `present` are the fields of the file, where they are known.
    """
    if dataset.registration:
        return {**dataset.registration, **dataset.options}
    entry: dict[str, t.Any] = {"formatting": dataset.formatting}
    if dataset.source == "hub":
        entry["hf_hub_url"] = dataset.where
    else:
        entry["file_name"] = file_name
    known = COLUMNS[dataset.formatting]
    if dataset.columns:
        entry["columns"] = dict(dataset.columns)
    elif present:
        entry["columns"] = {role: name for role, name in known.items() if name in present}
    if dataset.tags:
        entry["tags"] = {**TAGS, **dataset.tags}
    return {**entry, **dataset.options}


def identity(dataset: Dataset, digest: str) -> dict[str, t.Any]:
    """What of a dataset is part of the run's identity: its content where there is a file, else the reference."""
    content = {"digest": digest} if digest else {"reference": dataset.where}
    more = {
        key: value
        for key, value in (("columns", dataset.columns), ("tags", dataset.tags), ("options", dataset.options))
        if value
    }
    return {"name": dataset.name, "formatting": dataset.formatting, **content, **more}
