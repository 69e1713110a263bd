# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The media set of a run: all images, videos and audios that its datasets bring along, in one folder on the node.

One folder, because LLaMA-Factory has one media_dir. It is named by the paths and the content of what is in it, so that
runs on the same data share it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import typing as t
from pathlib import Path

from . import _media, _sealed
from ._errors import FinetuneError

CONTENT = "files"
"""Folder of a set that is media_dir; beside it is the manifest."""


def digest(content: t.Mapping[str, str]) -> str:
    """Digest of a set, from its digests by path; empty for no files."""
    listing = hashlib.sha256()
    for path in sorted(content):
        listing.update(os.fsencode(f"{content[path]} {path}\n"))
    return listing.hexdigest() if content else ""


def unpack(stream: t.IO[bytes], folder: Path, wanted: str, what: str = "media") -> dict[str, str]:
    """Store the files of an archive below `folder`; their digests by path, which together must be `wanted`."""
    content: dict[str, str] = {}
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                if not member.isreg() or os.path.isabs(member.name) or not _media.name(member.name):
                    raise _other(member.name, what)
                content[member.name] = _store(t.cast("t.IO[bytes]", archive.extractfile(member)), folder / member.name)
    except tarfile.TarError:
        raise _other(str(folder), what) from None
    except OSError as error:
        raise FinetuneError(
            f"{what.capitalize()} cannot be stored: {error.strerror or error}.",
            where=str(error.filename or folder),
            change="see that there is room under train_root",
        ) from None
    if digest(content) != wanted:
        raise _other(str(folder), what)
    return content


def store(stream: t.IO[bytes], folder: Path, wanted: str, content: str = "", what: str = "media") -> None:
    """Have the files of an archive as `folder`, with a manifest; it takes its place when it is whole.

    content: the folder in it that they are in, where that is not `folder` itself.
    """
    workshop = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        found = unpack(stream, workshop / content, wanted, what)
        digests = {str(Path(content, path)): digest for path, digest in found.items()}
        os.sync()  # the manifest is not to outlive what it names
        _sealed.seal(workshop, digests, digests)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(workshop, folder)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def _store(source: t.IO[bytes], path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    seen = hashlib.sha256()
    with open(path, "xb") as file:
        while chunk := source.read(1 << 20):
            seen.update(chunk)
            file.write(chunk)
    return seen.hexdigest()


def _other(where: str, what: str) -> FinetuneError:
    return FinetuneError(
        f"The {what} are not those that were planned with.",
        where=where,
        change="run again; if they are being written to, wait for it",
    )
