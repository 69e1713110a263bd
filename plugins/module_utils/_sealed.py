# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Folders that are whole: what was put there, by the digests in manifest.json, and whether it is as it was."""

from __future__ import annotations

import contextlib
import os
import stat
import typing as t
from pathlib import Path

from ._engine import files


def stored(folder: Path) -> dict[str, dict[str, t.Any]]:
    """The files that manifest.json names, with digest, size and time; none when there is no manifest."""
    entries = files.read_json(folder / "manifest.json").get("files")
    return entries if isinstance(entries, dict) else {}


def untouched(folder: Path) -> dict[str, str]:
    """The digests, by name, of the files that manifest.json names and that nobody touched since it was written."""
    found = {}
    for name, was in stored(folder).items():
        with contextlib.suppress(OSError, TypeError):  # no such file; a manifest without times
            now = (folder / name).stat()
            if (now.st_size, now.st_ctime_ns) == (was["size"], was["ctime_ns"]):
                found[name] = was["sha256"]
    return found


def intact(folder: Path) -> bool:
    """Every file that manifest.json names has the digest it names; a file untouched since is not read again."""
    entries = stored(folder)
    for name, was in entries.items():
        path = os.path.join(folder, name)
        try:
            now = os.stat(path)
        except OSError:
            return False
        if not stat.S_ISREG(now.st_mode) or now.st_size != was["size"]:
            return False
        if now.st_ctime_ns != was["ctime_ns"] and files.sha256(Path(path)) != was["sha256"]:
            return False
    return bool(entries)


def seal(folder: Path, names: t.Iterable[str], known: t.Mapping[str, str] | None = None) -> None:
    """Write the manifest that `intact` reads. known: digests that need not be computed."""
    entries = {}
    for name in names:
        now = (folder / name).stat()
        digest = (known or {}).get(name) or files.sha256(folder / name)
        entries[name] = {"sha256": digest, "size": now.st_size, "ctime_ns": now.st_ctime_ns}
    files.write_json(folder / "manifest.json", {"files": entries})


def whole(folder: Path) -> bool:
    made = files.read_json(folder / "manifest.json").get("identity")
    return model_intact(folder, folder.name.partition("@")[2]) if made else intact(folder)


def model_intact(folder: Path, identity: str) -> bool:
    """Made by the recipe `identity`, and every file has the digest it was left with."""
    manifest = files.read_json(folder / "manifest.json")
    if not manifest.get("files"):
        return False
    return manifest.get("identity") == identity and all(
        (folder / name).is_file() and files.sha256(folder / name) == digest
        for name, digest in manifest["files"].items()
    )
