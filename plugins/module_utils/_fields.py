# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fields of a file as a whole: those of its form, those that its stage needs, and those that nothing reads."""

from __future__ import annotations

import typing as t

from ._dataset import COLUMNS, Dataset
from ._formats import PAIRS, Layout, Wrong

_LEARNED = {"sft": ("response",), "kto": ("response", "kto_tag"), **dict.fromkeys(PAIRS, ("chosen", "rejected"))}
"""What a stage learns from, besides the question."""
_SHARED = ("system", "tools", "images", "videos", "audios")
_READ = {"alpaca": ("prompt", "query", "history", *_SHARED), "sharegpt": _SHARED, "openai": _SHARED}
_WORDS = {
    "prompt": ("instruction", "prompt", "question", "text", "content", "query"),
    "response": ("output", "response", "answer", "completion"),
    "chosen": ("chosen", "preferred"),
    "rejected": ("rejected", "dispreferred"),
    "kto_tag": ("kto_tag", "label"),
    "messages": ("conversations", "conversation", "messages", "dialog", "dialogue", "chat"),
}
"""What fields are often called that play a role."""
_LISTED = {"instruction", "conversations", "messages"}
_OPENAI = "tags: {role_tag: role, content_tag: content, user_tag: user, assistant_tag: assistant}"


def lacking(layout: Layout, present: t.Collection[str]) -> Wrong:
    """Fields that the stage cannot do without and no record has, and which of those that are there may be meant."""
    talk = layout.formatting != "alpaca"
    learned = () if talk and layout.stage == "sft" else _LEARNED.get(layout.stage, ())
    learned = tuple(role for role in learned if not (talk and role == "response"))
    lost = [role for role in (("messages",) if talk else ()) + learned if layout.columns.get(role) not in present]
    if not talk and unasked(layout, present) and (lost or layout.stage not in ("sft", "kto")):
        lost.insert(0, "prompt")
    if not lost or not present:
        return None
    names = ", ".join(repr(layout.columns.get(role, role)) for role in lost)
    there = ", ".join(map(repr, sorted(present)))
    write = f"write {names} into the records"
    free = set(present) - set(layout.columns.values())
    change = f"add `{columns(layout, present)}`, or {write}" if free else write
    return f"no record has {names}; the fields are {there}", change


def unasked(layout: Layout, present: t.Collection[str]) -> bool:
    """No record can have a question."""
    return not any(layout.columns.get(role) in present for role in ("prompt", "query"))


def columns(layout: Layout, present: t.Collection[str]) -> str:
    """`columns` for these fields. One that is named makes LLaMA-Factory forget all defaults, so all are named."""
    talk = layout.formatting != "alpaca"
    needed = ("messages" if talk else "prompt", *_LEARNED.get(layout.stage, ()))
    named = {
        role: name
        for role, name in layout.columns.items()
        if name in present and (role in needed or _read(role, layout))
    }
    by_word = {name.casefold(): name for name in sorted(present) if name not in named.values()}
    for role in needed:
        if role not in named and not (talk and role == "response"):
            named[role] = next((by_word.pop(word) for word in _WORDS[role] if word in by_word), "<field>")
    order = sorted(named, key=[*needed, *named].index)
    return "columns: {" + ", ".join(f"{role}: {named[role]}" for role in order) + "}"


def _read(role: str, layout: Layout) -> bool:
    """Whether the stage reads it, besides what it learns from. Pretraining looks at texts alone."""
    return role in (("prompt", "query") if layout.stage == "pt" else _READ[layout.formatting])


def texts_read(layout: Layout) -> t.Iterator[str]:
    """Roles of texts that the stage reads, of those that have a name."""
    for role in ("prompt", "query", "messages", "system", *_LEARNED.get(layout.stage, ())):
        if layout.columns.get(role) and (layout.stage != "pt" or _read(role, layout)):
            yield role


def unread(dataset: Dataset, layout: Layout) -> frozenset[str]:
    """Names that LLaMA-Factory would know by default, and forgets because `columns` names others."""
    if not dataset.columns:
        return frozenset()
    known = COLUMNS[dataset.formatting].items()
    forgotten = {name for role, name in known if role not in dataset.columns and _read(role, layout)}
    return frozenset(forgotten - set(dataset.columns.values()))


def other_form(record: t.Any, written: Layout, dataset: Dataset) -> Wrong:
    """A file that is written in a form other than the one it is said to have, by its first record."""
    if not isinstance(record, dict):
        return None
    if dataset.columns:
        return _other_words(record, written)
    for name, value in record.items():
        inner = value[0] if isinstance(value, list) and value else None
        if isinstance(inner, dict) and _LISTED & inner.keys() and not _LISTED & record.keys():
            return f"its records are in a list that an object holds, as {name!r}", "write the list alone into the file"
    conversations, messages = record.get("conversations"), record.get("messages")
    if dataset.formatting == "alpaca" and isinstance(conversations, list):
        return "its records hold `conversations`, the sharegpt form", "add `formatting: sharegpt`"
    if dataset.formatting != "openai" and "conversations" not in record and isinstance(messages, list):
        return (
            "its records hold `messages`, the form of the OpenAI API",
            f"add `formatting: sharegpt`, `columns: {{messages: messages}}` and `{_OPENAI}`",
        )
    if dataset.formatting == "alpaca" and written.stage in ("sft", "kto") and _holds_a_pair(record):
        return (
            "its records hold pairs of answers, `chosen` and `rejected`",
            "add `ranking: true`, and take a recipe that learns from pairs, such as dpo or reward",
        )
    if dataset.formatting != "alpaca" and "instruction" in record:
        return "its records hold `instruction`, the alpaca form", "leave `formatting` out"
    return _other_words(record, written)


def _holds_a_pair(record: t.Mapping[str, t.Any]) -> bool:
    return {"chosen", "rejected"} <= record.keys() and "output" not in record


def _other_words(record: dict[str, t.Any], written: Layout) -> Wrong:
    """Messages that have the keys of the OpenAI API and are said to have those of sharegpt, or the other way round."""
    messages = written.of(record, "messages")
    first = messages[0] if isinstance(messages, list) and messages else None
    key = written.tags.get("role_tag", "")
    if written.formatting == "alpaca" or not isinstance(first, dict) or key in first:
        return None
    if {"role", "content"} <= first.keys():
        return f"its messages have `role` and `content`, not {key!r}", f"add `{_OPENAI}`"
    if {"from", "value"} <= first.keys():
        return f"its messages have `from` and `value`, not {key!r}", "use `formatting: sharegpt` without these `tags`"
    return None
