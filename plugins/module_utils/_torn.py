# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with a text that is no JSON, and with a file that is not what its ending says."""

from __future__ import annotations

import json

from ._formats import Wrong

NOT_UTF8 = ("it is not UTF-8", "save the file as UTF-8")
DEEP = ("it is nested too deep to be read", "write what is nested as a JSON string, or leave it out")
BOM = ("it begins with a byte order mark", "save the file as UTF-8 without one (without signature)")
NUL = ("it holds a letter of code 0", "remove it; a file that is damaged must be copied again")
OPEN = ("the list has no end: there is no ] in the last line", "add it; a file cut short must be copied again")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGES = (b"<!doctype", b"<html")
_SPELT = {"N": "null", "T": "true", "F": "false"}
"""By first letter: how JSON spells what Python calls None, True and False."""


class Torn(ValueError):
    """A fault of a text that `json` does not tell, with its remedy."""

    def __init__(self, what: str, change: str, *, whole: bool = False) -> None:
        """whole: the file is at fault, not the record that is read."""
        super().__init__(what)
        self.change, self.whole = change, whole


def foreign(head: bytes, ending: str) -> Wrong:
    """A file of another kind than its ending says, by its first bytes."""
    if head.startswith(_POINTER):
        return "it is a pointer of Git LFS, and not the file itself", "run `git lfs pull` where it comes from"
    if head.startswith(_UTF16) and ending not in (".parquet", ".arrow"):
        return "it is UTF-16, not UTF-8", NOT_UTF8[1]
    if ending in (".json", ".jsonl", ".csv") and head.lstrip().lower().startswith(_PAGES):
        return "it is a web page", "download the file itself, by the link to its raw content"
    return None


def unread(error: Exception, *, line: int = 0, before: int = 0) -> Wrong:
    """What is wrong with a text that no value could be read from.

    line: where in the file it is, 0 where the record's number says it. before: letters left of the text.
    """
    if isinstance(error, UnicodeDecodeError):
        return NOT_UTF8
    if isinstance(error, RecursionError):
        return DEEP
    if isinstance(error, Torn):
        return str(error), error.change
    if not isinstance(error, json.JSONDecodeError):
        return f"it is not JSON: {error}", "correct it"
    place = f"on line {line}" if line else f"at column {before + error.colno}"
    return f"it is not JSON {place}: {error.msg.removesuffix(' at').removesuffix(' starting')}", _remedy(error)


def _remedy(error: json.JSONDecodeError) -> str:
    rest = error.doc[error.pos : error.pos + 5].lstrip()
    last = error.doc[max(0, error.pos - 100) : error.pos].rstrip()[-1:]
    if error.msg.startswith("Invalid control character"):
        return "write \\n for a new line in a text, and \\t for a tab"
    if error.msg.startswith("Invalid \\"):
        return "write \\\\ for a backslash"
    if not rest or error.msg.startswith("Unterminated string"):
        return "close what is open; a file cut short must be copied again"
    if error.msg.startswith("Illegal trailing comma") or (rest[0] in "]}" and last == ","):
        return "remove the comma after the last item"
    if rest[0] == "'":
        return "write double quotes in place of single ones"
    if rest.startswith(("None", "True", "False")):
        return f"write {_SPELT[rest[0]]}"
    if error.msg.startswith("Expecting ','"):
        return 'write a comma between items, and \\" for a quote in a text'
    return "correct it"
