# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a `split` takes of a dataset: train, train[:100], train[10%:20%], or several with + between them.

The grammar and the counts are those of datasets, 3.6.0 and 4.0.0 (arrow_reader.py ReadInstruction).
"""

from __future__ import annotations

import re
import typing as t

_NUMBER = r"-?\d+(?:_\d+)*"
_PART = re.compile(
    rf"(?P<name>\w+(?:\.\w+)*)"
    rf"(?P<slice>\[(?:(?P<first>{_NUMBER})(?P<first_part>%)?)?:(?:(?P<last>{_NUMBER})(?P<last_part>%)?)?\])?"
    r"(?:\((?P<rounding>closest|pct1_dropremainder)\))?",
    re.ASCII,
)


class Part(t.NamedTuple):
    name: str
    sliced: bool = False
    first: int | None = None
    last: int | None = None
    percent: bool = False
    whole: bool = False
    """Percents are of whole hundreds of records, and what is over is left out (pct1_dropremainder)."""

    def count(self, records: int) -> int:
        """How many of so many records these are."""
        first = 0 if self.first is None else self._at(self.first, records)
        last = records if self.last is None else self._at(self.last, records)
        first, last = (max(records + place, 0) if place < 0 else min(place, records) for place in (first, last))
        return max(last - first, 0)

    def _at(self, boundary: int, records: int) -> int:
        if not self.percent:
            return boundary
        return boundary * (records // 100) if self.whole else round(boundary * records / 100)


def parse(split: str) -> list[Part]:
    """The parts of a split; empty where it is none that datasets reads."""
    found = [_part(word) for word in re.split(r"\s*\+", split)]
    parts = [part for part in found if part]
    roundings = {part.whole for part in parts if part.percent}
    return parts if len(parts) == len(found) and len(roundings) < 2 else []


def _part(word: str) -> Part | None:
    match = _PART.fullmatch(word)
    if not match:
        return None
    first, last = (int(match[end]) if match[end] else None for end in ("first", "last"))
    percent = bool(match["first_part"] or match["last_part"])
    if percent and any(abs(boundary) > 100 for boundary in (first, last) if boundary is not None):
        return None
    if match["rounding"] and not percent:
        return None
    return Part(match["name"], bool(match["slice"]), first, last, percent, match["rounding"] == "pct1_dropremainder")


def sliced(split: str) -> bool:
    """It takes something else than one split as it is."""
    return [part._replace(name="") for part in parse(split)] != [Part("")]


def count(split: str, records: int) -> int:
    """How many of so many records a split of a file takes."""
    return sum(part.count(records) for part in parse(split))
