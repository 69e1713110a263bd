# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A quick look at records: most are good and plainly so, and a file of gigabytes is to be read in a minute.

What a look passes has no fault and leaves no doubt; of all else `_formats` tells more. The looks are written for speed.
"""

from __future__ import annotations

import typing as t

from ._formats import PAIRS, Layout
from ._media import KINDS

Look = t.Callable[[t.Any], bool]


def plain(layout: Layout) -> Look:
    """The look for records that are written like this."""
    columns, pair = layout.columns, layout.stage in PAIRS
    roles = ("chosen", "rejected") if pair else () if layout.stage == "pt" else ("response",)
    answers = [columns.get(role, "") for role in roles]
    tag = columns.get("kto_tag", "") if layout.stage == "kto" else ""
    talk = layout.formatting != "alpaca"
    asked = columns.get("messages" if talk else "prompt", "")
    needed = [asked, *(answers if pair or not talk else ()), *([tag] if layout.stage == "kto" else ())]
    if layout.media.taken or not all(needed):
        return lambda record: False
    look = _talk(layout, asked, answers if pair else []) if talk else _texts(asked, columns.get("query", ""), answers)
    rest = set(columns.values()) - {*needed, *([] if talk else [columns.get("query", "")])}

    media = {columns.get(role) for role, _placeholder in KINDS}  # an empty path is one that is not there
    rare = [(name, (None,) if name in media else (None, "")) for name in rest]

    def is_plain(record: t.Any) -> bool:
        if not isinstance(record, dict):
            return False
        if not rest.isdisjoint(record) and any(record.get(name) not in empty for name, empty in rare):
            return False
        return look(record) and (not tag or isinstance(record.get(tag), bool))

    return is_plain


def _texts(asked: str, added: str, answers: t.Sequence[str]) -> Look:
    def look(record: t.Any) -> bool:
        question, more = record.get(asked), record.get(added)
        if not (question and isinstance(question, str) and (more is None or isinstance(more, str))):
            return False
        for name in answers:
            answer = record.get(name)
            if not (answer and isinstance(answer, str)) or answer.isspace():
                return False
        return True

    return look


def _talk(layout: Layout, name: str, pair: t.Sequence[str]) -> Look:
    """Question and answer in turn, with a system prompt before them or without one."""
    tags = layout.tags
    role, content, system = (tags.get(f"{tag}_tag", "") for tag in ("role", "content", "system"))
    user, assistant = tags.get("user_tag", ""), tags.get("assistant_tag", "")
    even = not pair

    def look(record: t.Any) -> bool:
        messages = record.get(name)
        if not isinstance(messages, list) or not messages:
            return False
        due, turns = user, 0
        for message in messages:
            if not isinstance(message, dict) or not isinstance(message.get(content), str) or message.get("tool_calls"):
                return False
            if message.get(role) == due:
                due = assistant if due is user else user
                turns += 1
            elif turns or message is not messages[0] or not system or message.get(role) != system:
                return False
        for answer in map(record.get, pair):
            if (
                not isinstance(answer, dict)
                or answer.get(role) != assistant
                or not isinstance(answer.get(content), str)
            ):
                return False
        return turns > 0 and turns % 2 != even

    named = [tags[key] for key in tags if key not in ("role_tag", "content_tag") and tags[key]]
    clear = role and content and user and assistant and len(set(named)) == len(named)
    return look if clear else lambda record: False
