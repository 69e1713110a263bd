# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tools in records: the calls that messages hold, the tools that are listed, and uses that chat templates die of.

The rules are those of LLaMA-Factory 0.9.5: data/tool_utils.py writes tools and calls in the format of a template.
"""

from __future__ import annotations

import json
import re
import typing as t

if t.TYPE_CHECKING:
    from ._formats import Layout, Record

_MARKED = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_BY_NAME = frozenset(["qwen3_5", "qwen3_8", "glm4_moe", "minicpm5", "minimax2", "lfm2", "seed_oss"])
"""Formats that write arguments one by one."""


class Use(t.NamedTuple):
    """Something in records that only some templates take."""

    what: str
    change: str
    deadly: t.FrozenSet[str]
    """Formats of tools that die of it."""
    learned: str = ""
    """What others make of it; empty where they make what is meant."""

    @property
    def told(self) -> str:
        """As a doubt, where no template is known."""
        if self.learned:
            return f"{self.what}, {self.learned}, and which some templates die of; {self.change}"
        return f"{self.what}, which some templates die of"

    @property
    def harmless(self) -> str:
        """As a doubt, where the template does not die of it; empty where there is none."""
        return f"{self.what}, {self.learned}; {self.change}" if self.learned else ""


QUOTED = Use(
    "a call of a tool with `arguments` as text", "write them as an object", _BY_NAME, "which is learned in quotes"
)
NO_OBJECT = Use("a call of a tool whose `arguments` are no object", "write them as an object", _BY_NAME)
SEVERAL = Use("several calls of tools in one message", "write one call in a message", frozenset(["glm4"]))
NAMELESS = Use("a tool without a name", "write `name` into each tool", frozenset(["default", "glm4", "gemma4"]))
UNWRAPPED = Use(
    "a tool of type function without `function`",
    "write its name and parameters into `function`, or remove `type`",
    frozenset(["default", "glm4"]),
)
BARE = Use(
    "a tool without `properties` in `parameters`",
    'write "parameters": {"properties": {}} into it',
    frozenset(["default"]),
)
USES = (QUOTED, NO_OBJECT, SEVERAL, NAMELESS, UNWRAPPED, BARE)


def called(messages: list[Record], layout: Layout) -> t.Iterator[tuple[int, list[t.Any] | None]]:
    """Numbers of the messages that call functions, and what they call; None where that is no JSON."""
    role_key, content_key = layout.tags.get("role_tag", ""), layout.tags.get("content_tag", "")
    function = layout.tags.get("function_tag")
    for i, message in enumerate(messages, 1):
        if layout.formatting == "openai":
            calls = message.get("tool_calls") or ()
            yield i, [call.get("function") if isinstance(call, dict) else None for call in calls]
        elif function and message.get(role_key) == function:
            marked = _MARKED.search(message[content_key])  # what is around it is thought
            try:
                calls = json.loads(marked[1] if marked else _THOUGHT.sub("", message[content_key]))
            except ValueError:
                yield i, None
            else:
                yield i, calls if isinstance(calls, list) else [calls]


def is_call(call: t.Any) -> bool:
    return isinstance(call, dict) and {"name", "arguments"} <= call.keys()


def listed(record: Record, layout: Layout) -> t.Any:
    """The tools as templates get them: written as JSON text, in openai also as they are."""
    tools = layout.of(record, "tools")
    as_they_are = not tools or (layout.formatting == "openai" and isinstance(tools, (list, dict)))
    return (tools or []) if as_they_are else json.loads(tools)


def uses(record: Record, layout: Layout) -> t.Iterator[Use]:
    """Those of a record that has no fault. Pretraining looks at its text alone."""
    if layout.stage == "pt":
        return
    if layout.formatting != "alpaca":
        found = [calls or [] for _i, calls in called(layout.of(record, "messages"), layout)]
        arguments = [call["arguments"] for calls in found for call in calls]
        if any(isinstance(given, str) for given in arguments):
            yield QUOTED
        if not all(isinstance(given, (str, dict)) for given in arguments):
            yield NO_OBJECT
        if any(len(calls) > 1 for calls in found):
            yield SEVERAL
    wrapped = listed(record, layout)
    tools = [tool.get("function", tool) if tool.get("type") == "function" else tool for tool in wrapped]
    if not all(isinstance(tool, dict) and "name" in tool for tool in tools):
        yield NAMELESS
        return
    if any(tool.get("type") == "function" and "function" not in tool for tool in wrapped):
        yield UNWRAPPED
    if not all(_has_properties(tool.get("parameters")) for tool in tools):
        yield BARE


def _has_properties(parameters: t.Any) -> bool:
    return isinstance(parameters, dict) and isinstance(parameters.get("properties"), dict)


def found(doubts: t.Sequence[str]) -> dict[Use, str]:
    """The uses that doubts tell of, and how many records have each."""
    return {
        use: f"{begin}it{end}"
        for doubt in doubts
        for use in USES
        for begin, there, end in [doubt.partition(use.told)]
        if there
    }


def with_template(doubts: t.Sequence[str]) -> list[str]:
    """The doubts that are left for a template that dies of none of them."""
    left = []
    for doubt in doubts:
        for use in USES:
            if use.told in doubt:
                doubt = doubt.replace(use.told, use.harmless) if use.harmless else ""
        left += [doubt] if doubt else []
    return left
