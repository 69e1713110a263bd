# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records of a file, one at a time: a file of gigabytes needs no more memory than its longest record.

Numbers begin at 1; in a file of lines they are the lines'. What is no record comes with what is wrong and what to
change.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import re
import typing as t
from pathlib import Path

from . import _tables
from ._formats import Records, Wrong

CHUNK = 1 << 20
ROWS = 10_000
_NULLS = frozenset(
    [
        "#N/A",
        "#NA",
        "-1.#IND",
        "-1.#QNAN",
        "-NaN",
        "-nan",
        "1.#IND",
        "1.#QNAN",
        "<NA>",
        "N/A",
        "NA",
        "NULL",
        "NaN",
        "None",
        "n/a",
        "nan",
        "null",
    ]
) | {"", "#N/A N/A"}
"""What pandas takes for nothing in a table."""
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|inf|Inf|infinity|Infinity)\s*")
_SWITCHES = {"True": True, "TRUE": True, "true": True, "False": False, "FALSE": False, "false": False}
_CUT = "correct it: a quote left open, a comma after the last item; a file cut short must be copied again"
DEEP = ("it is nested too deep to be read", "write what is nested as a JSON string, or leave it out")
_NOT_UTF8 = ("it is not UTF-8", "save the file as UTF-8")


def records(path: Path) -> Records:
    """Records of a file by its ending, one of _dataset.SUFFIXES."""
    by_ending = {".csv": _table, ".txt": _texts, **dict.fromkeys(_tables.SUFFIXES, _tables.records)}
    return by_ending.get(path.suffix, _json)(path)


def _texts(path: Path) -> Records:
    """Every line as `text`."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield number, {"text": line.decode("utf-8").rstrip("\r\n")}, None
            except UnicodeDecodeError:
                yield number, None, _NOT_UTF8


def _table(path: Path) -> Records:
    """Rows by the names in the first one, with the types that pandas makes of columns: 10 000 rows at a time."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, strict=True)
        number = 1
        try:
            names = next(rows, [])
            if len(names) == 1 and (other := next((mark for mark in ";\t|" if mark in names[0]), "")):
                yield 0, None, (f"its fields are separated by {other!r}, not by commas", "separate them by commas")
                return
            while part := [row for row in itertools.islice(rows, ROWS) if row]:
                fields = itertools.zip_longest(names, *part, fillvalue="")  # names too: a part may lack the last ones
                columns = [_column(texts[1:]) for texts in itertools.islice(fields, len(names))]
                for row, values in zip(part, zip(*columns)):
                    if len(row) > len(names):
                        wrong = (
                            f"it has {len(row)} fields, the first line names {len(names)}",
                            "quote texts with commas",
                        )
                        yield number, None, wrong
                    else:
                        yield number, dict(zip(names, values)), None
                    number += 1
        except UnicodeDecodeError:
            yield number, None, _NOT_UTF8
        except csv.Error as error:
            yield number, None, (f"it is no row: {error}", "close every quote")


def _column(texts: t.Sequence[str]) -> t.Sequence[t.Any]:
    """The values of a column: numbers or true and false where all of them are, else texts; null for what is none."""
    present = [text for text in texts if text not in _NULLS]
    if present and all(map(_NUMBER.fullmatch, present)):
        return [None if text in _NULLS else float(text) for text in texts]
    if present and all(text in _SWITCHES for text in present):
        return [None if text in _NULLS else _SWITCHES[text] for text in texts]
    return texts if len(present) == len(texts) else [None if text in _NULLS else text for text in texts]


def _json(path: Path) -> Records:
    """One per line, over lines, or in a list. LLaMA-Factory takes all with either ending."""
    with open(path, "rb") as file:
        head = file.peek(CHUNK)
        first = head.removeprefix(codecs.BOM_UTF8).lstrip()
        if first[:1] not in (b"{", b"") or (not first and path.suffix != ".jsonl"):
            yield from _list(file) if first[:1] == b"[" or path.suffix != ".jsonl" else _lines(file)
        elif b"\n" in first and not _is_whole(first.partition(b"\n")[0]):
            yield from _spread(file)
        else:
            yield from _lines(file)


def _is_whole(line: bytes) -> bool:
    """Whether a JSON value begins and ends in it."""
    try:
        _PLAIN.raw_decode(line.decode("utf-8", "replace"))
    except ValueError:
        return False
    except RecursionError:  # which the reader of lines tells
        return True
    return True


def _lines(file: t.BinaryIO) -> Records:
    """A record on each line. What is plainly one is read in one go, of all else `_line` tells more."""
    number = 0
    while piece := file.read(CHUNK) + file.readline():
        if not number:
            piece = piece.removeprefix(codecs.BOM_UTF8)
        try:
            text = piece.decode("utf-8")
        except UnicodeDecodeError:
            for line in io.BytesIO(piece):
                number += 1
                yield from _line(number, line)
            continue
        marks = [mark for mark in _COLONS if mark[0] in text]
        at = 0
        while at < len(text):
            number += 1
            end = text.find("\n", at)
            end = len(text) if end < 0 else end
            try:
                value, last = _PLAIN.raw_decode(text, at)
                plain = last == end and isinstance(value, dict)
                colons = text.count(":", at, end)
                if plain and colons != len(value):
                    keys = _keys(value)
                    plain = keys == colons or keys == sum([text.count(mark, at, end) for mark in marks])
                if plain and text.find("\\", at, end) >= 0:
                    plain = not any(text.find(mark, at, end) >= 0 for mark in _HALVES)
            except (ValueError, RecursionError):
                plain = False
            if plain:
                yield number, value, None
            else:
                yield from _line(number, text[at:end].encode("utf-8"))
            at = end + 1


def _keys(value: t.Any) -> int:
    """How many keys all objects of a value have."""
    count = 0
    if isinstance(value, dict):
        count = len(value)
        value = value.values()
    for inner in value:
        if isinstance(inner, (dict, list)):
            count += _keys(inner)
    return count


def _line(number: int, line: bytes) -> Records:
    """A line of which each key and letter is looked at."""
    try:
        text = line.decode("utf-8").strip()  # empty lines are no records, to LLaMA-Factory too
        at = 0
        while at < len(text):  # nearly always once
            value, end = _CAREFUL.raw_decode(text, at)
            _refuse_half_letters(value, text[at:end])
            yield number, value, None
            at = end
            while at < len(text) and text[at].isspace():
                at += 1
    except (ValueError, RecursionError) as error:
        yield number, None, _unread(error)


def _unread(error: Exception) -> Wrong:
    """What is wrong with a text that no value could be read from."""
    if isinstance(error, UnicodeDecodeError):
        return _NOT_UTF8
    return DEEP if isinstance(error, RecursionError) else (f"it is not JSON: {error}", _CUT)


def _refuse_half_letters(value: t.Any, text: str) -> None:
    r"""Half of a letter that JSON writes in two (`\ud83d` alone)."""
    if any(mark in text for mark in _HALVES):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("half a letter, such as \\ud83d without its other half") from None


def _spread(file: t.BinaryIO) -> Records:
    """Values one after another that go over lines."""
    text = _Text(file)
    number = 0
    try:
        while text.skip(" \t\r\n\ufeff"):
            number += 1
            yield number, text.value(in_list=False), None
    except (ValueError, RecursionError) as error:
        yield number, None, _unread(error)


def _object(pairs: list[tuple[str, t.Any]]) -> dict[str, t.Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [pair[0] for pair in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} occurs twice in one object")
    return value


_COLONS = ('":', " :", "\t:", "\r:")
"""Where a key ends. As many of them as the value has keys: no key was there twice; there may be more, in texts."""
_HALVES = ("\\ud", "\\uD")
"""How each half of a letter begins that JSON writes in two."""
_PLAIN = json.JSONDecoder()
_CAREFUL = json.JSONDecoder(object_pairs_hook=_object)


def _list(file: t.BinaryIO) -> Records:
    """The items of one JSON list, which is read in pieces."""
    text = _Text(file)
    number = 1
    try:
        if text.skip(" \t\r\n") != "[":
            yield 1, None, _no_list(text)
            return
        text.take(1)
        closed = text.skip(" \t\r\n") == "]"
        while not closed:
            yield number, text.value(), None
            closed = text.skip(" \t\r\n") == "]"
            if closed:
                break
            number += 1
            if text.skip("") != ",":
                raise ValueError("a comma or the end of the list is due")
            text.take(1)
            text.skip(" \t\r\n")
        text.take(1)
        if text.skip(" \t\r\n"):
            raise ValueError("something comes after the list")
    except (ValueError, RecursionError) as error:
        yield number, None, _unread(error)


def _no_list(text: _Text) -> Wrong:
    text.value()
    return "the file holds no JSON list", "write a list of records, or one record per line in a .jsonl file"


class _Text:
    """What is left of a file's text, read as far as it is needed."""

    def __init__(self, file: t.BinaryIO) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._at = 0

    def _more(self, amount: int = CHUNK) -> bool:
        """Read on; False at the end of the file."""
        data = self._file.read(amount)
        self._text = self._text[self._at :] + self._decoder.decode(data, final=not data)
        self._at = 0
        return bool(data)

    def skip(self, letters: str) -> str:
        """Pass over these letters; the one that comes next, empty at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in letters:
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    def take(self, count: int) -> None:
        self._at += count

    def _may_go_on(self, error: ValueError) -> bool:
        """Whether more text may mend it; else the rest of the file would be read for nothing."""
        if not isinstance(error, json.JSONDecodeError):
            return False
        return error.pos > len(self._text) - 16 or error.msg.startswith("Unterminated string")

    def value(self, *, in_list: bool = True) -> t.Any:
        """The JSON value that begins here. Lists are read by another reader than lines, which takes more."""
        amount = CHUNK
        decoder = _PLAIN if in_list else _CAREFUL
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._at)
                if end == len(self._text) and self._more(amount):  # a number may go on
                    continue
                break
            except ValueError as error:
                if not self._may_go_on(error) or not self._more(amount):
                    raise
                amount *= 2
        if not in_list:
            _refuse_half_letters(value, self._text[self._at : end])
        self._at = end
        return value
