# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Leases: one kernel lock per GPU (by UUID), or one for the CPUs of a node, in one place of the host.

A lease is gone with the processes that hold it, so it is never stale. The file's text names the holder.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import typing as t
from pathlib import Path

from . import files

CPU = "cpu"
"""The lease of a node that trains on its CPUs."""


class Held(Exception):
    """A lease that somebody else has; `holder` is what they wrote about themselves."""

    def __init__(self, key: str, holder: dict[str, t.Any]) -> None:
        self.key = key
        self.holder = holder
        super().__init__(describe(key, holder))


def describe(key: str, holder: dict[str, t.Any]) -> str:
    what = "The CPUs of this node are" if key == CPU else f"{key} is"
    run, user, pid = (holder.get(key, "?") for key in ("run", "user", "pid"))
    return f"{what} held by run {run} (user {user}, process {pid})."


def directory(asked: str = "") -> Path:
    """Where the leases of this host are: the same answer for every user of it."""
    if asked:
        return Path(asked)
    shared = Path("/run/lock")
    with contextlib.suppress(OSError):
        if shared.stat().st_mode & stat.S_IWOTH:
            return shared / "llmops"
    return Path("/tmp/llmops-leases")  # noqa: S108 - one place for all users, locks and not content


def acquire(keys: t.Sequence[str], holder: dict[str, t.Any], place: Path) -> list[int]:
    """Take all leases or none; returns the descriptors to keep open. Raises Held naming the first that is taken."""
    if not place.exists():
        with contextlib.suppress(FileExistsError):
            place.mkdir(parents=True)
            place.chmod(0o1777)
    taken: list[int] = []
    for key in sorted(keys):
        path = place / key
        descriptor = files.lock(path)
        if descriptor is None:
            for other in taken:
                os.close(other)
            raise Held(key, files.read_json(path))
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        taken.append(descriptor)
    return taken


def holders(keys: t.Iterable[str], place: Path) -> dict[str, dict[str, t.Any]]:
    """Who holds which of these leases now; free ones are left out."""
    return {key: files.read_json(place / key) for key in keys if files.locked(place / key)}
