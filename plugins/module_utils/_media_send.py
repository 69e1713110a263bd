# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's side of a media set: what of all datasets is in it, and the archive that nodes are sent."""

from __future__ import annotations

import os
import tarfile
import typing as t
from pathlib import Path

from . import _media, _media_set, _readers
from ._dataset import Source
from ._engine import files
from ._errors import FinetuneError

_ONE_FOLDER = "rename one of them: LLaMA-Factory has one media_dir for all datasets"


def plan(sources: t.Sequence[Source]) -> dict[str, t.Any]:
    """The set of a run: digest, number of files, and where they come from. Empty where no dataset brings any along."""
    _refuse_two_places(sources)
    content = _union(sources)
    senders = [source for source in sources if source.media_files]
    parts = [[source.local, source.dataset.field_names, source.media_folders] for source in senders]
    return {"digest": _media_set.digest(content), "count": len(content), "parts": parts} if content else {}


def _union(sources: t.Sequence[Source]) -> dict[str, str]:
    """Digests by path. Refused where one path would have to be two files, or file and folder."""
    content: dict[str, str] = {}
    owner: dict[str, str] = {}
    for source in sources:
        for path, found in source.media_files.items():
            if content.setdefault(path, found) != found:
                raise FinetuneError(
                    f"Datasets {owner[path]!r} and {source.dataset.name!r} mean two files by one path.",
                    where=f"train_datasets, {path}",
                    change=_ONE_FOLDER,
                )
            owner.setdefault(path, source.dataset.name)
    folders = {Path(os.path.dirname(path)) for path in content}
    for folder in {str(above) for path in folders for above in (path, *path.parents)} & content.keys():
        raise FinetuneError(
            f"A file of dataset {owner[folder]!r} has the path of a folder of other media.",
            where=f"train_datasets, {folder}",
            change=_ONE_FOLDER,
        )
    return content


def _refuse_two_places(sources: t.Sequence[Source]) -> None:
    """Some datasets bring theirs along, others count on media_dir of the nodes: there is but one."""
    sent = next((source.dataset.name for source in sources if source.media_files), "")
    there = next((source.dataset.name for source in sources if source.media_dir), "")
    if sent and there:
        raise FinetuneError(
            f"Dataset {sent!r} brings its media along, those of dataset {there!r} are in media_dir on the nodes.",
            where="train_datasets",
            change=f"use `file` for both or `path` for both, or write full paths into the records of {there!r}",
        )


def pack(parts: t.Sequence[t.Sequence[t.Any]], archive: Path) -> None:
    """Write the set as an archive. parts: as `plan` gave them."""
    write((file for part in parts for file in _files(*part)), archive, "Media")


def write(named: t.Iterable[tuple[str, str]], archive: Path, what: str) -> None:
    """Write files as an archive, unless another host had it written. named: path in the archive, and on this host."""
    guard = files.lock(archive.with_suffix(".lock"), patience=float("inf"))
    temporary = archive.with_suffix(".part")
    packed: set[str] = set()
    try:
        if archive.exists():
            return
        with tarfile.open(temporary, "w") as tar:
            for name, path in named:
                if name not in packed:
                    packed.add(name)
                    _add(tar, name, path)
        os.replace(temporary, archive)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise FinetuneError(
            f"{what} cannot be packed to be sent: {error.strerror or error}.",
            where=str(error.filename or archive),
            change="see that the file can be read, and that there is room for all of them in ANSIBLE_LOCAL_TEMP",
        ) from None
    finally:
        if guard is not None:
            os.close(guard)


def _files(local: str, fields: t.Mapping[str, str], folders: t.Sequence[str]) -> t.Iterator[tuple[str, str]]:
    """Path in the set, and file on the controller, of all media of a dataset."""
    media = _media.Media(folders=folders, sent=True)
    for _number, record, _torn in _readers.records(Path(local)):
        for path in _media.paths(record, fields):
            if not os.path.isabs(path):
                yield _media.name(path), media.find(path) or media.places(path)[0]


def _add(tar: tarfile.TarFile, name: str, path: str) -> None:
    """A link is the file that it leads to; owner and times stay at home."""
    with open(path, "rb") as file:
        member = tarfile.TarInfo(name)
        member.size = os.fstat(file.fileno()).st_size
        tar.addfile(member, file)
