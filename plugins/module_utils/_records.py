# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records of a dataset file: each one read, and held against what its form and stage need."""

from __future__ import annotations

import os
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

from . import _tools
from ._dataset import TAGS_OF, Dataset
from ._errors import FinetuneError
from ._fields import columns, lacking, other_form, unasked, unread
from ._formats import NO_QUESTION, NO_TEXT, Layout, doubt, fault
from ._kinds import FILLED, Kinds
from ._media import UNKNOWN, Media, held, name, paths
from ._plain import plain
from ._readers import in_lines, records
from ._times import Times
from ._torn import DEEP

_UNSEEN = "media on the nodes, which are looked for when the run starts; data with `path` have them looked for now"


class Fault(t.NamedTuple):
    record: int
    """Number of the record, from 1; in a .jsonl file that is the line. 0 is the file as a whole."""
    what: str
    change: str


@dataclass
class Report:
    records: int = 0
    faults: list[Fault] = field(default_factory=list)
    more: int = 0
    """Faults that were found and not kept."""
    columns: set[str] = field(default_factory=set)
    """Names of the fields that occur in the file."""
    doubts: dict[str, list[int]] = field(default_factory=dict)
    """What a person should know of records that are trained on: how many there are, and which is the first."""
    media: bool = False
    """Records hold images, videos or audios."""
    media_dir: bool = False
    """Some are in the media_dir of the nodes."""
    sent: dict[str, str] = field(default_factory=dict)
    """Those that are sent along: relative path and file."""

    def as_dict(self) -> dict[str, t.Any]:
        """The report as JSON has it."""
        return {
            "records": self.records,
            "fields": sorted(self.columns),
            "faults": [list(fault) for fault in self.faults],
            "more": self.more,
            "doubts": self.doubts,
            "media": self.media,
            "media_dir": self.media_dir,
        }


def layout(dataset: Dataset, stage: str, media: Media) -> Layout:
    """How the records of a dataset are written, as far as the author told, and for which stage."""
    tags = {**TAGS_OF[dataset.formatting], **dataset.tags}
    return Layout(dataset.formatting, dataset.columns_for(stage), tags, stage, media)


def check(path: Path, dataset: Dataset, stage: str = "sft", limit: int = 20, media: Media = UNKNOWN) -> Report:
    """Read every record of a file; at most `limit` faults are kept."""
    if limit < 1:
        raise FinetuneError(f"limit is {limit}.", where="limit", change="use a whole number from 1")
    report = Report()
    written = layout(dataset, stage, media)
    is_plain = plain(written)
    kinds = Kinds(_dumped(written))
    forgotten = unread(dataset, written)
    liked: set[t.Any] = set()
    times: Times | None = None
    for number, record, torn in records(path):
        report.records += 1
        if report.records == 1:
            times = Times(record, written) if in_lines(path) else None
        elif times and times.roles:
            times.look(record)
        if stage == "kto" and isinstance(record, dict):
            liked.add(written.of(record, "kto_tag") is True)
        if not (torn or forgotten) and kinds.knows(record) and is_plain(record):
            continue
        if other := other_form(record, written, dataset) if report.records == 1 else None:
            report.faults.append(Fault(0, *other))
            break
        wrongs: list[tuple[str, str]] = []
        told: list[str] = []
        if isinstance(record, dict):
            try:
                kinds.look(record, number)
            except RecursionError:
                torn = DEEP
            told += [FILLED] if kinds.filled else []
            if not forgotten.isdisjoint(record):
                names = filter(record.get, sorted(forgotten))
                told += [f"{name!r}, which `columns` does not name: it is not read" for name in names]
            wrongs = kinds.wrongs
        if not (torn or wrongs or told) and is_plain(record):
            continue
        if wrong := torn or fault(record, written):
            wrongs = [wrong]
        for what, change in wrongs:
            if len(report.faults) < limit:
                report.faults.append(Fault(number, what, change))
            else:
                report.more += 1
        told = (
            [doubt(record, written), *(use.told for use in _tools.uses(record, written)), *told] if not wrongs else []
        )
        if isinstance(record, dict) and held(record, written):
            report.media = True
            told += [_UNSEEN] if not wrongs and _note_media(record, written, report) else []
        for what in filter(None, told):
            report.doubts.setdefault(what, [0, number])[0] += 1
    report.columns = kinds.fields
    if not dataset.columns and not any(fault.record == 0 for fault in report.faults):
        _note_lacking(written, path.suffix, report)
    if absent := _absent(dataset, report):
        report.faults, report.more = absent, 0
    if times and not report.faults and (wrong := times.wrong()):
        report.faults.append(Fault(0, *wrong))
    if stage == "pt" and not report.faults and report.doubts.get(NO_TEXT, [0])[0] == report.records > 0:
        report.faults.append(Fault(0, "no record has a text to train on", "name its field: `columns: {prompt: text}`"))
    if len(liked) == 1 and report.records > 1 and not report.faults:
        report.doubts["the same kto_tag, and the stage learns from both kinds of answers"] = [report.records, 1]
    return report


def _dumped(written: Layout) -> list[str]:
    """Places of objects that LLaMA-Factory writes out as JSON itself."""
    if written.formatting != "openai":
        return []
    tools = written.columns.get("tools")
    return [
        f"{written.columns.get('messages')}[].tool_calls[].function.",
        *([f"{tools}[]", f"{tools}."] if tools else []),
    ]


def _note_lacking(written: Layout, ending: str, report: Report) -> None:
    """Fields that no record has are one fault of the file, or one doubt; not one of each record."""
    if wrong := lacking(written, report.columns):
        if ending == ".txt":
            wrong = wrong[0], "use stage pt, which .txt files are for, or write questions and answers as .jsonl"
        report.faults, report.more = [Fault(0, *wrong)], 0
    elif NO_QUESTION in report.doubts and unasked(written, report.columns):
        told = f"{NO_QUESTION}; if a field holds it, add `{columns(written, report.columns)}`"
        report.doubts[told] = report.doubts.pop(NO_QUESTION)


def _note_media(record: dict[str, t.Any], written: Layout, report: Report) -> bool:
    """Note where the media of a record are; whether any were not looked for."""
    unseen = False
    media = written.media
    for path in paths(record, written.columns):
        relative = not os.path.isabs(path)
        unseen |= not media.here and not (relative and media.sent)
        report.media_dir |= relative and not media.sent
        if relative and media.sent and name(path) not in report.sent:
            report.sent[name(path)] = media.find(path)
    return unseen


def _absent(dataset: Dataset, report: Report) -> list[Fault]:
    """Faults of the file as a whole: LLaMA-Factory dies on a column that no record has. What each record lacks for it
    is then no fault of its own."""
    if not report.records:
        return [Fault(0, "there is no record in it", "add records")]
    names = [name for name in dataset.columns.values() if name not in report.columns]
    own = [
        fault for fault in report.faults if not fault.what.startswith(tuple(f"{name!r} is missing" for name in names))
    ]
    if not names or own or (report.more and not report.faults):
        return []
    there = ", ".join(map(repr, sorted(report.columns))) or "none"
    return [
        Fault(0, f"no record has {name!r}, which `columns` names; the fields are {there}", "correct `columns`")
        for name in names
    ]


def doubts(found: t.Mapping[str, t.Sequence[int]]) -> tuple[str, ...]:
    """Doubts as a person reads them."""
    return tuple(
        f"{count} record{'s have' if count > 1 else ' has'} {what} (the first is record {first})"
        for what, (count, first) in found.items()
    )


def refuse(dataset: Dataset, variable: str, shown: str, report: Report) -> None:
    """Raise when the file has faults: each kept one on a line, each remedy once."""
    if not report.faults and not report.more:
        return
    lines = _lines(report.faults)
    if report.more:
        lines.append(f"and {report.more} more")
    raise FinetuneError(
        f"Dataset {dataset.name!r} has records that LLaMA-Factory would not train on.",
        where="\n          ".join([f"{variable}, {shown}", *lines]),
        change="; ".join(dict.fromkeys(fault.change for fault in report.faults)),
    )


def _lines(faults: t.Sequence[Fault]) -> list[str]:
    """What is wrong, once, with the numbers of its records."""
    records: dict[str, list[int]] = {}
    for number, what, _change in faults:
        records.setdefault(what, []).append(number)
    return [f"{_numbers(sorted(set(numbers)))}{what}" for what, numbers in records.items()]


def _numbers(numbers: t.Sequence[int]) -> str:
    """Numbers as a person writes them: `records 1–3, 7: `."""
    if not any(numbers):
        return ""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    shown = ", ".join(f"{first}–{last}" if first < last else str(first) for first, last in spans)
    return f"record{'s' if len(numbers) > 1 else ''} {shown}: "
