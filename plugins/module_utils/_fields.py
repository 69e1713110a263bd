# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fields of a file as a whole: those that its form and stage need, and those that nothing reads."""

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


def unread(dataset: Dataset, layout: Layout) -> frozenset[str]:
    """Names that LLaMA-Factory would know by default, and forgets because `columns` names others."""
    if not dataset.columns:
        return frozenset()
    known = COLUMNS[dataset.formatting].items()
    forgotten = {name for role, name in known if role not in dataset.columns and _read(role, layout)}
    return frozenset(forgotten - set(dataset.columns.values()))
