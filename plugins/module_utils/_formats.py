# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Forms of records: what LLaMA-Factory's converters make of one, and whether its stage then trains on it.

The rules are those of LLaMA-Factory 0.9.5: data/converter.py makes messages of a record, data/processor drops what
does not suit the stage, data/formatter.py dies on contents that are no text and on tools that are no JSON.
"""

from __future__ import annotations

import json
import typing as t

from . import _media, _tools
from ._kinds import WORDS

Wrong = t.Optional[t.Tuple[str, str]]
"""What is wrong and what to change."""
Record = t.Dict[str, t.Any]
Records = t.Iterator[t.Tuple[int, t.Any, Wrong]]
"""Number, record, and what is wrong where there is none."""

PAIRS = ("rm", "dpo")
"""Stages that learn from a chosen and a rejected answer."""
DROPPED = "the record would be dropped"
NO_QUESTION = "no question"
NO_TEXT = "no text"


class Layout(t.NamedTuple):
    """How records are written and what they are for."""

    formatting: str
    columns: t.Mapping[str, str]
    """LLaMA-Factory's word for a field → its name in the records."""
    tags: t.Mapping[str, str]
    stage: str
    media: _media.Media = _media.Media()

    def of(self, record: Record, role: str) -> t.Any:
        """The field that plays a role; None where there is none."""
        name = self.columns.get(role)
        return record.get(name) if name else None


def fault(record: t.Any, layout: Layout) -> Wrong:
    """What LLaMA-Factory would drop this record for or die of; None when it trains on it."""
    if not isinstance(record, dict):
        return "it is no JSON object", 'write {"instruction": …, "input": …, "output": …}'
    return _alpaca(record, layout) if layout.formatting == "alpaca" else _conversation(record, layout)


def doubt(record: Record, layout: Layout) -> str:
    """What a person should know of a record that LLaMA-Factory trains on; empty when there is nothing."""
    if layout.formatting != "alpaca":
        answers = _tags(layout, "assistant_tag", "function_tag")
        pair = [layout.of(record, role) for role in ("chosen", "rejected")] if layout.stage in PAIRS else []
        asked = any(answer.get(layout.tags.get("role_tag", "")) not in answers for answer in pair)
        return "a chosen or rejected message that is no answer, and is taken for one" if asked else ""
    if layout.stage in ("sft", "kto") and not str(layout.of(record, "response") or "").strip():
        return "an empty answer, which teaches to say nothing"
    if not any(layout.of(record, role) for role in ("prompt", "query")):
        return NO_TEXT if layout.stage == "pt" else NO_QUESTION
    return ""


def _alpaca(record: Record, layout: Layout) -> Wrong:
    texts = []
    history = layout.of(record, "history")
    for turn in history if isinstance(history, list) else ():
        if not (isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn)):
            return f"{layout.columns['history']!r} holds {_short(turn)}, no pair of texts", "write [question, answer]"
        texts += turn
    for role in ("prompt", "query"):
        value = layout.of(record, role)
        if value and not isinstance(value, str):
            return _other(record, layout.columns[role], "text"), "write text into it"
        texts.append(value or "")
    answers, wrong = _alpaca_answers(record, layout)
    return wrong or _frame(record, layout, texts, answers)


def _alpaca_answers(record: Record, layout: Layout) -> tuple[list[str], Wrong]:
    """The texts that the stage learns from, or why there are too few or too many of them."""
    columns = layout.columns
    if layout.stage in ("pt", "ppo"):
        response = layout.of(record, "response")
        return [response] if isinstance(response, str) else [], None
    if layout.stage in PAIRS:
        pair = [layout.of(record, "chosen"), layout.of(record, "rejected")]
        for role, answer in zip(("chosen", "rejected"), pair):
            if role not in columns:
                return [], (f"`columns` names no {role}: {DROPPED}", f"add `{role}` to `columns`")
            if not isinstance(answer, str):
                name = columns[role]
                return [], (f"{_other(record, name, 'text')}: {DROPPED}", f"write the answer into {name!r}")
        return pair, None
    return _tagged(record, layout)


def _tagged(record: Record, layout: Layout) -> tuple[list[str], Wrong]:
    """The one answer of stages sft and kto; kto needs to be told whether it is a good one."""
    name = layout.columns.get("response", "")
    if not name:
        return [], (f"`columns` names no response: {DROPPED}", "add `response` to `columns`")
    if not isinstance(record.get(name), str) and not (layout.stage == "kto" and record.get(name) is None):
        return [], (f"{_other(record, name, 'text')}: {DROPPED}", f"write the answer into {name!r}")
    return [record.get(name) or ""], _tag(record, layout)


def _tag(record: Record, layout: Layout) -> Wrong:
    tagged = isinstance(layout.of(record, "kto_tag"), bool)
    if layout.stage == "kto" and not tagged:
        name = layout.columns.get("kto_tag", "")
        if not name:
            return f"`columns` names no kto_tag: {DROPPED}", "add `kto_tag` to `columns`"
        return f"{_other(record, name, 'true or false')}: {DROPPED}", "write true for a good answer, else false"
    if layout.stage == "sft" and tagged:
        return (
            f"`columns` names a kto_tag, which makes two answers of one: {DROPPED}",
            "remove `kto_tag` from `columns`",
        )
    return None


def _conversation(record: Record, layout: Layout) -> Wrong:
    """Records that hold a list of messages: sharegpt, and openai with its calls of tools."""
    name = layout.columns.get("messages", "")
    messages = record.get(name)
    if not isinstance(messages, list):
        return _other(record, name, "a list of messages"), f"write the messages into {name!r}"
    if not messages:
        return f"{name!r} has no message: {DROPPED}", "write question and answer into it, or remove the record"
    role_key, content_key = layout.tags.get("role_tag", ""), layout.tags.get("content_tag", "")
    for i, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            return f"message {i} is {_short(message)}, no JSON object", "write the messages as objects"
        if message.get(role_key) is None:
            keys = ", ".join(map(repr, message)) or "none"
            return (
                f"message {i} does not say in {role_key!r} who it is from, its keys are {keys}: {DROPPED}",
                f"write {role_key!r} into it; if all messages call it otherwise, add `tags: {{role_tag: <key>, "
                "content_tag: <key>}`",
            )
    turns, texts = _turns(messages, layout)
    system = bool(turns and layout.tags.get("system_tag")) and messages[0].get(role_key) == layout.tags["system_tag"]
    turns, pair = turns[system:], []
    asks, answers = _tags(layout, "user_tag", "observation_tag"), _tags(layout, "assistant_tag", "function_tag")
    for i, role in enumerate(turns):
        expected = answers if i % 2 else asks
        if role not in expected:
            due = " or ".join(sorted(expected))
            return (
                f"turn {i + 1} is from {role!r}, but {due} is due: {DROPPED}",
                "let question and answer alternate, the question first; other names of roles go into `tags`",
            )
    if layout.stage in PAIRS:
        if len(turns) % 2 == 0:
            return f"it ends with an answer, which chosen and rejected are to be: {DROPPED}", "remove the last message"
        wrong = _pair(record, layout)
        if wrong:
            return wrong
        pair = [layout.of(record, role)[content_key] for role in ("chosen", "rejected")]
    elif not turns or len(turns) % 2:
        return f"it does not end with an answer: {DROPPED}", "add the answer or remove the last message"
    for i, text in enumerate(texts, 1):
        if not isinstance(text, str):
            return f"message {i} has {_short(text)} in {content_key!r}, no text", "write text"
    wrong = _calls(messages, layout) or (None if layout.stage in PAIRS else _tag(record, layout))
    return wrong or _frame(record, layout, texts[system:], pair)


def _turns(messages: list[Record], layout: Layout) -> tuple[list[t.Any], list[t.Any]]:
    """Role and content of every turn; openai merges results of tools and makes a call of an answer with tool_calls."""
    role_key, content_key = layout.tags.get("role_tag", ""), layout.tags.get("content_tag", "")
    if layout.formatting != "openai":
        return [message.get(role_key) for message in messages], [message.get(content_key) for message in messages]
    turns: list[t.Any] = []
    texts: list[t.Any] = []
    for message in messages:
        role, content = message.get(role_key), message.get(content_key)
        if role == layout.tags.get("assistant_tag") and message.get("tool_calls"):
            role, content = layout.tags.get("function_tag"), json.dumps(message["tool_calls"])
        if role == layout.tags.get("observation_tag") and turns and turns[-1] == role:
            if isinstance(texts[-1], str):
                texts[-1] = texts[-1] + content if isinstance(content, str) else content
            continue
        turns.append(role)
        texts.append(content)
    while turns and turns[-1] == layout.tags.get("observation_tag"):  # results that no answer follows are forgotten
        turns.pop()
        texts.pop()
    return turns, texts


def _tags(layout: Layout, *names: str) -> set[str]:
    return {layout.tags[name] for name in names if layout.tags.get(name)}


def _pair(record: Record, layout: Layout) -> Wrong:
    known = _tags(layout, "user_tag", "observation_tag", "assistant_tag", "function_tag", "system_tag")
    role_key, content_key = layout.tags.get("role_tag", ""), layout.tags.get("content_tag", "")
    for role in ("chosen", "rejected"):
        name = layout.columns.get(role, "")
        if not name:
            return f"`columns` names no {role}: {DROPPED}", f"add `{role}` to `columns`"
        answer = record.get(name)
        if not isinstance(answer, dict):
            return f"{_other(record, name, 'a message')}: {DROPPED}", f"write one message into {name!r}"
        if answer.get(role_key) not in known or not isinstance(answer.get(content_key), str):
            return f"{name!r} is no answer with a text", f"give it {role_key!r} and {content_key!r}"
    return None


def _calls(messages: list[Record], layout: Layout) -> Wrong:
    """Calls of functions are JSON objects with name and arguments, or lists of them."""
    for i, calls in _tools.called(messages, layout):
        if calls is None:
            return f"message {i} calls a function and is no JSON", 'write {"name": …, "arguments": {…}} as text'
        if not all(map(_tools.is_call, calls)):
            where = "its `function`" if layout.formatting == "openai" else "the call"
            return f"message {i} has a call of a tool without name or arguments", f"write both into {where}"
    return None


def _frame(record: Record, layout: Layout, texts: t.Sequence[str], answers: t.Sequence[str]) -> Wrong:
    """System prompt, tools and media, which all forms share. Of a pair, each answer follows the same texts."""
    system = layout.of(record, "system")
    if system is not None and not isinstance(system, str):
        return _other(record, layout.columns["system"], "text"), "write text"
    try:
        tools = _tools.listed(record, layout)
    except (TypeError, ValueError):
        return f"{layout.columns['tools']!r} is no JSON text", "write the list of tools as a JSON string"
    if tools not in ([], {}, "") and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        return (
            f"{layout.columns['tools']!r} is {_short(tools)}, no list of objects",
            "write a list, one object per tool",
        )
    return _media.fault(record, layout, [[*texts, answer] for answer in answers] or [texts])


def _other(record: Record, name: str, due: str) -> str:
    """That a field is something else than is due."""
    if name not in record:
        return f"{name!r} is missing"
    kind = type(record[name])
    return f"{name!r} is {'null' if record[name] is None else WORDS.get(kind, kind.__name__)}, not {due}"


def _short(value: t.Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else f"{text[:37]}..."
