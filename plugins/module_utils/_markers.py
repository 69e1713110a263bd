# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Environment markers (PEP 508), read as nodes see them: CPython on Linux x86-64."""

from __future__ import annotations

import re
import typing as t

from ._errors import FinetuneError


def target(python_version: tuple[int, ...]) -> dict[str, str]:
    """What markers see on a node: CPython of this version on Linux x86-64."""
    full = ".".join(str(part) for part in (*python_version, 0, 0)[:3])
    return {
        "python_version": ".".join(full.split(".")[:2]),
        "python_full_version": full,
        "implementation_version": full,
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }


_TOKEN = re.compile(
    r"\s*(?:(?P<string>'[^']*'|\"[^\"]*\")|(?P<op>===|[<>=!~]=|[<>()])|(?P<word>[A-Za-z_][A-Za-z0-9_.]*))"
)
_VERSIONED = ("python_version", "python_full_version", "implementation_version")


def holds(marker: str, values: t.Mapping[str, str], *, where: str = "") -> bool:
    """Whether an environment marker is true for these values. A marker that we cannot read is an error."""
    tokens: list[str] = []
    at = 0
    while at < len(marker.rstrip()):
        match = _TOKEN.match(marker, at)
        if match is None:
            raise _bad_marker(marker, where)
        tokens.append(match.group().strip())
        at = match.end()
    reader = _MarkerReader(tokens, values)
    try:
        result = reader.either()
    except (IndexError, KeyError, ValueError):
        raise _bad_marker(marker, where) from None
    if reader.at != len(tokens):
        raise _bad_marker(marker, where)
    return result


def _bad_marker(marker: str, where: str) -> FinetuneError:
    return FinetuneError(
        f"The environment marker {marker!r} cannot be read.",
        where=where,
        change="make the lock with `uv pip compile --universal --generate-hashes`",
    )


class _MarkerReader:
    """Recursive descent over the tokens of one marker; both sides are always read, so that all of it is checked."""

    def __init__(self, tokens: list[str], values: t.Mapping[str, str]) -> None:
        self.tokens, self.values, self.at = tokens, values, 0

    def next(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1]

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def either(self) -> bool:
        result = self.both()
        while self.peek() == "or":
            self.next()
            right = self.both()
            result = result or right
        return result

    def both(self) -> bool:
        result = self.single()
        while self.peek() == "and":
            self.next()
            right = self.single()
            result = result and right
        return result

    def single(self) -> bool:
        if self.peek() == "(":
            self.next()
            result = self.either()
            if self.next() != ")":
                raise ValueError
            return result
        left, operator = self.next(), self.next()
        if operator == "not":
            if self.next() != "in":
                raise ValueError
            operator = "not in"
        right = self.next()
        versioned = left in _VERSIONED or right in _VERSIONED
        return _compare(self.value(left), operator, self.value(right), versioned)

    def value(self, token: str) -> str:
        return token[1:-1] if token[0] in "'\"" else self.values[token]


def _compare(left: str, operator: str, right: str, versioned: bool) -> bool:
    if operator == "in":
        return left in right
    if operator == "not in":
        return left not in right
    if not versioned:
        if operator not in ("==", "!=", "==="):
            raise ValueError
        return (left == right) != (operator == "!=")
    if right.endswith(".*"):
        prefix = _release(right[:-2])
        if operator not in ("==", "!="):
            raise ValueError
        return (_release(left)[: len(prefix)] == prefix) != (operator == "!=")
    if operator == "===":
        return left == right
    if operator == "~=":
        return _padded(left) >= _padded(right) and _release(left)[: len(_release(right)) - 1] == _release(right)[:-1]
    a, b = _padded(left), _padded(right)
    return {"==": a == b, "!=": a != b, "<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b}[operator]


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    if match is None:
        raise ValueError(version)
    return tuple(int(part) for part in match.group().split("."))


def _padded(version: str) -> tuple[int, ...]:
    return (*_release(version), 0, 0, 0, 0)[:4]
