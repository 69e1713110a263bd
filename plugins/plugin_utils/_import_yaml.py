# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The YAML of a LLaMA-Factory file: values by key with their lines, or what is wrong on which line."""

from __future__ import annotations

import typing as t

import yaml

from ..module_utils._errors import FinetuneError

_TEXT = "tag:yaml.org,2002:str"
_DATE = "tag:yaml.org,2002:timestamp"


def mapping(text: str, name: str) -> tuple[dict[str, t.Any], dict[str, str]]:
    """Values by key, and where each key is: `my.yaml, line 3`."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(node, yaml.MappingNode):
            raise FinetuneError(
                f"{name} holds no keys.", where=f"train_config, {name}", change="write `key: value` lines"
            )
        return _read(node, name)
    except yaml.YAMLError as error:
        line, problem = _told(error, text)
        raise _refusal(f"{name} is no YAML: {problem}", name, line, "correct that line") from None
    except RecursionError:
        raise FinetuneError(
            f"{name} has brackets within brackets without end.",
            where=f"train_config, {name}",
            change="write `key: value` lines",
        ) from None


def _read(node: yaml.MappingNode, name: str) -> tuple[dict[str, t.Any], dict[str, str]]:
    values: dict[str, t.Any] = {}
    lines: dict[str, str] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        where = f"{name}, line {line}"
        if key.tag != _TEXT:
            written = key.value if isinstance(key, yaml.ScalarNode) else "a list or dict"
            raise _refusal(f"{written} is no key", name, line, "write a key of LLaMA-Factory, or remove it")
        if key.value in lines:
            raise FinetuneError(
                f"{key.value} is there twice.", where=f"{where}, and {lines[key.value]}", change="keep one of them"
            )
        for scalar in _scalars(value):
            if scalar.tag == _DATE:
                line = scalar.start_mark.line + 1
                raise _refusal(f"{key.value} is {scalar.value}, a date to YAML", name, line, "put it in quotes")
        try:
            values[key.value] = yaml.constructor.SafeConstructor().construct_document(value)  # type: ignore[no-untyped-call]
        except ValueError:  # a tag that its value does not fit
            raise _refusal(f"{key.value} cannot be read", name, line, "write the value without a tag") from None
        lines[key.value] = where
    return values, lines


def _scalars(node: yaml.Node) -> t.Iterator[yaml.ScalarNode]:
    if isinstance(node, yaml.ScalarNode):
        yield node
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _scalars(item)
    else:
        for pair in node.value:
            for item in pair:
                yield from _scalars(item)


def _told(error: yaml.YAMLError, text: str) -> tuple[int, str]:
    """Line and fault."""
    if isinstance(error, yaml.reader.ReaderError):
        return text.count("\n", 0, error.position) + 1, f"it holds the character U+{ord(text[error.position]):04X}"
    if isinstance(error, yaml.MarkedYAMLError):
        return error.problem_mark.line + 1 if error.problem_mark else 1, str(error.problem)
    return 1, "it cannot be read"


def _refusal(what: str, name: str, line: int, change: str) -> FinetuneError:
    return FinetuneError(f"{what}.", where=f"train_config, {name}, line {line}", change=change)
