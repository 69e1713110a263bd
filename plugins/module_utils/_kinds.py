# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Types of fields at any depth: a table has one for each, and gives all objects of one place the same keys.

Most records are like one before, so what is found of a shape is kept. Written for speed.
"""

from __future__ import annotations

import typing as t

FILLED = (
    "tool calls or tools whose objects have other keys than the first: all get the keys of all, with null in them; "
    "write calls as JSON text in messages of the function tag, and tools as a JSON string"
)


_NONE: frozenset[type] = frozenset()
DEEPEST = 62
"""Levels below a field that pyarrow takes."""


class Unsigned(int):
    """A number of a list that 64 bits hold without a sign. The reader of pandas takes it where no more is around it."""


class Long(int):
    """A number of a list that 64 bits do not hold."""


WORDS: dict[type, str] = {
    str: "text",
    dict: "an object",
    list: "a list",
    bool: "true or false",
    **dict.fromkeys((int, float, Unsigned, Long), "a number"),
}
"""What people call the types of JSON."""


_NUMBERS = {int, float, Unsigned}


class _Shape(t.NamedTuple):
    objects: tuple[tuple[str, str], ...]
    """Keys of what is to be looked into, with its place."""
    lists: tuple[tuple[str, str], ...]
    other: bool
    """It has other keys than the first object of its place, and is trained on as it is."""


class Kinds:
    """Types met so far in a file."""

    def __init__(self, dumped: t.Sequence[str] = ()) -> None:
        """dumped: places whose objects are written out with all their keys."""
        self._dumped = tuple(dumped)
        self._first: dict[str, tuple[type, int]] = {}
        self._keys: dict[str, t.KeysView[str]] = {}
        self._flat: set[tuple[t.Any, ...]] = set()
        """Shapes of which nothing more is to be found."""
        self._nested = False
        """Records hold lists or objects."""
        self._items: dict[str, frozenset[type]] = {}
        self._shapes: dict[tuple[t.Any, ...], _Shape] = {}
        self.fields: set[str] = set()
        """Names of the fields of records."""
        self.wrongs: list[tuple[str, str]] = []
        """What no table can be made of, in the record looked at last."""
        self.filled = False
        """Objects of it get keys of others."""

    def knows(self, record: t.Any) -> bool:
        """Whether nothing more is to be found in this, for there is nothing in it to be looked into."""
        flat = not self._nested and isinstance(record, dict)
        return flat and ("", *record, *map(type, record.values())) in self._flat

    def look(self, record: dict[str, t.Any], number: int) -> None:
        self.wrongs, self.filled = [], False
        self._object(record, "", number)

    def _object(self, value: dict[str, t.Any], place: str, number: int) -> None:
        key = (place, *value, *map(type, value.values()))
        shape = self._shapes.get(key) or self._new(value, place, number, key)
        if shape.other:
            self.filled = True
        for name, inner in shape.objects:
            self._object(value[name], inner, number)
        for name, inner in shape.lists:
            self._list(value[name], inner, number)

    def _list(self, value: list[t.Any], place: str, number: int) -> None:
        kinds = set(map(type, value))
        known = self._items.get(place, _NONE)
        if not kinds <= known:
            self._items[place] = known | {kind for kind in kinds if self._note(kind, place, number)}
        if dict in kinds:
            inner = f"{place}."
            flat = self._flat
            for item in value:
                if isinstance(item, dict) and (inner, *item, *map(type, item.values())) not in flat:
                    self._object(item, inner, number)
        if list in kinds:
            for item in value:
                if isinstance(item, list):
                    self._list(item, f"{place}[]", number)

    def _new(self, value: dict[str, t.Any], place: str, number: int, key: tuple[t.Any, ...]) -> _Shape:
        if not place:
            self.fields |= value.keys()
        good = [self._note(type(inner), f"{place}{name}", number) for name, inner in value.items()]
        shape = _Shape(
            tuple((name, f"{place}{name}.") for name, inner in value.items() if isinstance(inner, dict)),
            tuple((name, f"{place}{name}[]") for name, inner in value.items() if isinstance(inner, list)),
            place.startswith(self._dumped) and self._keys.setdefault(place, value.keys()) != value.keys(),
        )
        self._nested |= bool(shape.objects or shape.lists)
        if all(good):  # what is wrong is told of each record
            self._shapes[key] = shape
            if not any(shape):
                self._flat.add(key)
        return shape

    def _note(self, kind: type, place: str, number: int) -> bool:
        """Whether the place has this type in all that was met."""
        if kind is type(None):
            return True
        inside = place.count("[]") + place.count(".")
        if kind is Long or (kind is Unsigned and inside):
            self.wrongs.append((f"{place!r} is a number of more than 64 bits", "write it as text, or save as .jsonl"))
            return False
        if inside > DEEPEST:
            raise RecursionError
        first, record = self._first.setdefault(place, (kind, number))
        if first is kind or {first, kind} <= _NUMBERS:
            return True
        where = f"in record {record}" if record != number else "elsewhere in the record"
        self.wrongs.append(
            (
                f"{place!r} is {WORDS.get(kind, kind.__name__)}, {where} it is {WORDS.get(first, first.__name__)}",
                "give the field one type in all records",
            )
        )
        return False
