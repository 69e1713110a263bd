# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Types of fields at any depth: a table has one for each, and gives all objects of one place the same keys.

Most records are like one before, so what is found of a shape is kept. Written for speed.
"""

from __future__ import annotations

import typing as t

_NESTED = (dict, list)
FILLED = (
    "tool calls or tools whose objects have other keys than the first: all get the keys of all, with null in them; "
    "write calls as JSON text in messages of the function tag, and tools as a JSON string"
)


class _Shape(t.NamedTuple):
    nested: tuple[str, ...]
    """Keys whose values are to be looked into."""
    other: bool
    """It has other keys than the first object of its place, and is trained on as it is."""


class Kinds:
    """Types met so far in a file."""

    def __init__(self, dumped: t.Sequence[str] = ()) -> None:
        """dumped: places whose objects are written out with all their keys."""
        self._dumped = tuple(dumped)
        self._first: dict[str, tuple[type, int]] = {}
        self._keys: dict[str, t.KeysView[str]] = {}
        self._shapes: dict[tuple[t.Any, ...], _Shape] = {}
        self.fields: set[str] = set()
        """Names of the fields of records."""
        self.wrongs: list[tuple[str, str]] = []
        """What no table can be made of, in the record looked at last."""
        self.filled = False
        """Objects of it get keys of others."""

    def look(self, record: dict[str, t.Any], number: int) -> None:
        self.wrongs, self.filled = [], False
        self._object(record, "", number)

    def _object(self, value: dict[str, t.Any], place: str, number: int) -> None:
        key = (place, *value, *map(type, value.values()))
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._new(value, place, number, key)
        self.filled |= shape.other
        for name in shape.nested:
            self._inner(value[name], f"{place}{name}", number)

    def _inner(self, value: t.Any, place: str, number: int) -> None:
        if isinstance(value, dict):
            self._object(value, f"{place}.", number)
        elif isinstance(value, list):
            place += "[]"
            kinds = set(map(type, value))
            for kind in kinds:
                self._note(kind, place, number)
            if not kinds.isdisjoint(_NESTED):
                for item in value:
                    self._inner(item, place, number)

    def _new(self, value: dict[str, t.Any], place: str, number: int, key: tuple[t.Any, ...]) -> _Shape:
        if not place:
            self.fields |= value.keys()
        wrong = len(self.wrongs)
        for name, inner in value.items():
            self._note(type(inner), f"{place}{name}", number)
        other = place.startswith(self._dumped) and self._keys.setdefault(place, value.keys()) != value.keys()
        shape = _Shape(tuple(name for name, inner in value.items() if isinstance(inner, _NESTED)), other)
        if len(self.wrongs) == wrong:  # what is wrong is told of each record
            self._shapes[key] = shape
        return shape

    def _note(self, kind: type, place: str, number: int) -> None:
        if kind is type(None):
            return
        first, record = self._first.setdefault(place, (kind, number))
        if first is not kind and {first, kind} != {int, float}:
            where = f"in record {record}" if record != number else "elsewhere in it"
            self.wrongs.append(
                (
                    f"{place!r} is {kind.__name__}, {where} it is {first.__name__}",
                    "give the field one type in all records",
                )
            )
