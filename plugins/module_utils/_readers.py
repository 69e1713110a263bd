# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records of a file, one at a time: a file of gigabytes needs no more memory than its longest record.

Numbers begin at 1; in a file of lines they are the lines'. What is no record comes with what is wrong and what to
change.
"""

from __future__ import annotations

import csv
import itertools
import re
import typing as t
from pathlib import Path

from . import _json, _tables
from ._formats import Records
from ._torn import NOT_UTF8, foreign

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


def records(path: Path) -> Records:
    """Records of a file by its ending, one of _dataset.SUFFIXES."""
    with open(path, "rb") as file:
        wrong = foreign(file.read(100), path.suffix)
    if wrong:
        return iter([(0, None, wrong)])
    by_ending = {".csv": _table, ".txt": _texts, **dict.fromkeys(_tables.SUFFIXES, _tables.records)}
    return by_ending.get(path.suffix, _json.records)(path)


def in_lines(path: Path) -> bool:
    """Whether it is a JSON file whose records are not in a list."""
    return path.suffix in (".json", ".jsonl") and _json.in_lines(path)


def _texts(path: Path) -> Records:
    """Every line as `text`."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield number, {"text": line.decode("utf-8").rstrip("\r\n")}, None
            except UnicodeDecodeError:
                yield number, None, NOT_UTF8


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
            yield number, None, NOT_UTF8
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
