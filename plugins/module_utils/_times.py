# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Texts that are times: pyarrow, which reads lines of JSON, makes a field of times where every text of it is one."""

from __future__ import annotations

import datetime
import re
import typing as t

from ._fields import texts_read
from ._formats import Layout, Record, Wrong

_HOUR = r"([01]\d|2[0-3])(:?[0-5]\d(:?[0-5]\d)?)?"
_TIME = re.compile(rf"(\d{{4}})-(\d\d)-(\d\d)([ T]{_HOUR}(Z|[+-]{_HOUR})?)?")


class Times:
    """Fields that hold times in all records so far. Nearly always the first record leaves none."""

    def __init__(self, record: t.Any, layout: Layout) -> None:
        self._layout = layout
        roles = texts_read(layout) if isinstance(record, dict) else ()
        self.roles = [role for role in roles if any(map(_is_time, self._texts(record, role)))]
        self.look(record)

    def look(self, record: t.Any) -> None:
        if isinstance(record, dict):
            self.roles = [role for role in self.roles if all(map(_may_be_time, self._texts(record, role)))]

    def _texts(self, record: Record, role: str) -> list[t.Any]:
        """Those of a field: of messages their contents."""
        value = self._layout.of(record, role)
        content = self._layout.tags.get("content_tag", "")
        messages = value if isinstance(value, list) else [value]
        return [message.get(content) if isinstance(message, dict) else message for message in messages]

    def wrong(self) -> Wrong:
        if not self.roles:
            return None
        names = " and ".join(repr(self._layout.columns[role]) for role in self.roles)
        return (
            f"{names} holds nothing but dates, which are read from lines as times and not as text",
            "save the file as a list of records, ending in .json",
        )


def _is_time(text: t.Any) -> bool:
    found = _TIME.fullmatch(text) if isinstance(text, str) else None
    if not found:
        return False
    try:
        datetime.date(*map(int, found.group(1, 2, 3)))
    except ValueError:
        return False
    return True


def _may_be_time(text: t.Any) -> bool:
    return text is None or _is_time(text)
