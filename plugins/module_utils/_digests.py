# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Digests of files, remembered: one that was not touched since is not read again.

The memory is a cache. Without it every file is read at every plan.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import typing as t
from pathlib import Path

from ._engine import files

FRESH_SECONDS = 2.0
"""A file that was touched so shortly before could be once more without a later time."""


def sha256(paths: t.Iterable[str], memory: Path, *, again: bool = False) -> list[str]:
    """The digest of each file. memory: a file for what is known of them; again: read them all the same."""
    known = {} if again else files.read_json(memory)
    seen: dict[str, str] = {}
    found = []
    for path in paths:
        now = os.stat(path)
        mark = f"{now.st_size} {now.st_mtime_ns} {now.st_ctime_ns} {now.st_ino} {now.st_dev}"
        was, _blank, digest = str(known.get(path)).rpartition(" ")
        if was != mark:
            digest = files.sha256(Path(path))
        found.append(digest)
        if time.time() - now.st_ctime > FRESH_SECONDS:
            seen[path] = f"{mark} {digest}"
    if seen != known:
        with contextlib.suppress(OSError):
            memory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.write_json(memory, seen, mode=0o600)
    return found


def of_account(about: str) -> Path:
    """The memory about something, in the one place for caches of the account."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return within(Path(cache) / "llmops.finetune", about)


def within(folder: Path, about: str) -> Path:
    return folder / f"{hashlib.sha256(os.fsencode(about)).hexdigest()[:16]}.json"
