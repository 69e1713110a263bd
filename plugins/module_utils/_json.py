# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records of JSON files: one on each line, over lines, or in a list.

LLaMA-Factory reads what is in lines with pyarrow, and lists with the reader of pandas, which takes more of texts and
less of numbers.
"""

from __future__ import annotations

import codecs
import io
import json
import re
import typing as t
from pathlib import Path

from ._formats import Records, Wrong
from ._kinds import Long, Unsigned
from ._torn import BOM, NUL, OPEN, Torn, unread

CHUNK = 1 << 20


def records(path: Path) -> Records:
    """LLaMA-Factory takes all three with either ending."""
    with open(path, "rb") as file:
        first = _start(file)
        if first[:1] == b"[" or (first[:1] != b"{" and path.suffix != ".jsonl"):
            yield from _list(file)
        elif first[:1] == b"{" and b"\n" in first and not _is_whole(first.partition(b"\n")[0]):
            yield from _spread(file)
        else:
            yield from _lines(file)


def in_lines(path: Path) -> bool:
    """Whether the records are not in a list."""
    with open(path, "rb") as file:
        return _start(file)[:1] == b"{"


def _start(file: t.BinaryIO) -> bytes:
    head: bytes = t.cast("io.BufferedReader", file).peek(CHUNK)
    return head.removeprefix(codecs.BOM_UTF8).lstrip()


def _is_whole(line: bytes) -> bool:
    """Whether a JSON value begins and ends in it, or no line after it can mend it."""
    text = line.decode("utf-8", "replace").rstrip()
    try:
        _PLAIN.raw_decode(text)
    except json.JSONDecodeError as error:
        return error.pos < len(text)
    except (ValueError, RecursionError):  # which the reader of lines tells
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
        before = len(line) - len(line.lstrip()) if isinstance(error, json.JSONDecodeError) else 0
        yield number, None, unread(error, before=before)


def _refuse_half_letters(value: t.Any, text: str) -> None:
    r"""Half of a letter that JSON writes in two (`\ud83d` alone)."""
    if any(mark in text for mark in _HALVES):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise Torn(
                "half a letter, such as \\ud83d without its other half", "write the letter itself, or both halves"
            ) from None


def _spread(file: t.BinaryIO) -> Records:
    """Values one after another that go over lines."""
    text = _Text(file)
    number = 0
    try:
        while text.skip(" \t\r\n\ufeff"):
            number += 1
            yield number, text.value(in_list=False), None
    except (ValueError, RecursionError) as error:
        yield number, None, text.unread(error)


def _object(pairs: list[tuple[str, t.Any]]) -> dict[str, t.Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [pair[0] for pair in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Torn(f"{twice!r} occurs twice in one object", "keep one of the two")
    return value


_COLONS = ('":', " :", "\t:", "\r:")
"""Where a key ends. As many of them as the value has keys: no key was there twice; there may be more, in texts."""
_HALVES = ("\\ud", "\\uD")
"""How each half of a letter begins that JSON writes in two."""
_PLAIN = json.JSONDecoder()
_CAREFUL = json.JSONDecoder(object_pairs_hook=_object)


def _whole_number(text: str) -> int:
    if len(text) < 19:
        return int(text)
    value = int(text) if len(text) <= 20 else 1 << 64
    if -(1 << 63) <= value < 1 << 63:
        return value
    return Unsigned(value) if 0 < value < 1 << 64 else Long(value)


def _number(text: str) -> float:
    """What is before the point is read as a whole number, to the same end."""
    whole = text if len(text) < 19 else _POINT.split(text, maxsplit=1)[0]
    return _whole_number(whole) if len(whole) > 18 and isinstance(_whole_number(whole), Long) else float(text)


_POINT = re.compile("[.eE]")
_OF_LISTS = json.JSONDecoder(parse_int=_whole_number, parse_float=_number)
_LAX = json.JSONDecoder(strict=False, parse_int=_whole_number, parse_float=_number)
"""For new lines and tabs in the middle of texts."""


def _list(file: t.BinaryIO) -> Records:
    """The items of one JSON list, which is read in pieces."""
    text = _Text(file)
    number = 1
    try:
        start = text.skip(" \t\r\n")
        if not start:
            return
        if start != "[":
            raise Torn(*(BOM if start == "\ufeff" else _no_list(text)), whole=True)
        text.take(1)
        closed = text.skip(" \t\r\n") == "]"
        while not closed:
            yield number, text.value(), None
            closed = text.skip(" \t\r\n") == "]"
            if closed:
                break
            number += 1
            if text.skip("") not in (",", ""):
                raise Torn(
                    f"a comma or the end of the list is due on line {text.line()}", "write a comma between records"
                )
            text.take(1)
            if not text.skip(" \t\r\n"):
                raise Torn(*OPEN, whole=True)
        text.take(1)
        if text.skip(" \t\r\n"):
            raise Torn(f"something comes after the list on line {text.line()}", "remove it")
    except (ValueError, RecursionError) as error:
        yield 0 if isinstance(error, Torn) and error.whole else number, None, text.unread(error)


def _no_list(text: _Text) -> tuple[str, str]:
    text.value()
    return "the file holds no JSON list", "write a list of records, or one record per line in a .jsonl file"


class _Text:
    """What is left of a file's text, read as far as it is needed."""

    def __init__(self, file: t.BinaryIO) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._at = 0

    def line(self, at: int | None = None) -> int:
        """Number of the line that a letter of the text is on, else that was read up to. The file is read again."""
        end = self._file.tell() - len(self._text[self._at if at is None else at :].encode("utf-8"))
        self._file.seek(0)
        return 1 + sum(self._file.read(min(CHUNK, end - begin)).count(b"\n") for begin in range(0, end, CHUNK))

    def unread(self, error: Exception) -> Wrong:
        return unread(error, line=self.line(error.pos) if isinstance(error, json.JSONDecodeError) else 0)

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
        decoder = _OF_LISTS if in_list else _CAREFUL
        lax = False
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._at)
                if end == len(self._text) and self._more(amount):  # a number may go on
                    continue
                break
            except ValueError as error:
                if in_list and not lax and getattr(error, "msg", "").startswith("Invalid control"):
                    decoder, lax = _LAX, True
                    continue
                if not self._may_go_on(error) or not self._more(amount):
                    raise
                amount *= 2
        if lax and "\0" in self._text[self._at : end]:
            raise Torn(*NUL)
        if not in_list:
            _refuse_half_letters(value, self._text[self._at : end])
        self._at = end
        return value
