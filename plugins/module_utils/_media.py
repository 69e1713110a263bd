# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images, videos and audios of a record: as many as its texts ask for, and where LLaMA-Factory looks for them.

The rules are those of LLaMA-Factory 0.9.5: data/converter.py joins each path with media_dir and keeps it as it is where
that is no file, with a warning; data/mm_plugin.py counts placeholders, and dies on what cannot be opened.
"""

from __future__ import annotations

import os
import typing as t

if t.TYPE_CHECKING:
    from ._formats import Layout, Record, Wrong

OUTSIDE = "set `media_dir` to a folder that all are in, and write paths below it without `..`"
KINDS = (("images", "<image>"), ("videos", "<video>"), ("audios", "<audio>"))


class Media(t.NamedTuple):
    """What is known of media where records are checked."""

    taken: bool = False
    """The chat template is for media, so that a placeholder in a text is one. In others it is mere text."""
    folders: t.Sequence[str] = ()
    """Where relative paths are looked for, in order. LLaMA-Factory does so in media_dir alone; its default is
    dataset_dir, which in a run is the run's own folder."""
    here: bool = False
    """The data is trained on on this host, and so is where full paths lead to."""
    sent: bool = False
    """The files of relative paths are on this host and are sent along with the data."""

    def find(self, path: str) -> str:
        """The file of a relative path; empty where there is none."""
        return next(filter(os.path.isfile, self.places(path)), "")

    def places(self, path: str) -> list[str]:
        return [os.path.join(folder, path) for folder in self.known_folders]

    @property
    def known_folders(self) -> list[str]:
        return [folder for folder in self.folders if os.path.isabs(folder)]


UNKNOWN = Media()


def held(record: Record, layout: Layout) -> bool:
    """Whether the record has any. Pretraining looks at its text alone."""
    return layout.stage != "pt" and any(_items(layout.of(record, role)) for role, _placeholder in KINDS)


def fault(record: Record, layout: Layout, talks: t.Sequence[t.Sequence[str]]) -> Wrong:
    """talks: the texts of each conversation that the stage makes of the record."""
    if not held(record, layout) and not (layout.media.taken and layout.stage != "pt"):
        return None
    for role, placeholder in KINDS:
        items = _items(layout.of(record, role))
        field = layout.columns.get(role, role)
        for texts in talks:
            asked = sum(text.count(placeholder) for text in texts)
            if asked != len(items):
                return (
                    f"{field!r} holds {len(items)}, its texts have {asked} {placeholder}",
                    f"write one {placeholder} for each, and no other",
                )
        for item in items:
            if wrong := _absent(item, field, layout.media):
                return wrong
    return None


def paths(record: Record, columns: t.Mapping[str, str]) -> t.Iterator[str]:
    """The paths of a record's media, frames of videos one by one."""
    for role, _placeholder in KINDS:
        for item in _items(record.get(columns.get(role, ""))):
            for part in item if isinstance(item, list) else [item]:
                path = part.get("path") if isinstance(part, dict) and part.get("bytes") is None else part
                if isinstance(path, str):
                    yield path


def name(path: str) -> str:
    """One name for all ways to write a relative path; empty where it leads out of its folder."""
    return "" if ".." in path.split("/") else os.path.normpath(path)


def _items(value: t.Any) -> list[t.Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _absent(item: t.Any, field: str, media: Media) -> Wrong:
    """One image, video or audio that cannot be opened: a path, the frames of a video, or the bytes themselves."""
    if isinstance(item, list):
        return next(filter(None, (_absent(frame, field, media) for frame in item)), None)
    if isinstance(item, dict):  # as `datasets` stores an image; its path is taken as it is
        if item.get("bytes") is not None:
            return None
        item, media = item.get("path"), media._replace(folders=(), sent=False)
    if isinstance(item, bytes):
        return None
    if not isinstance(item, str):
        return f"{field!r} holds {item!r}, no path", "write the path of a file"
    if "://" in item:
        return f"{field!r} holds {item!r}, and addresses are not fetched", "download it, and write the path of the file"
    if os.path.isabs(item):
        return _lost(item, field, "") if media.here and not os.path.isfile(item) else None
    if media.sent and not name(item):
        return f"{field!r} holds {item!r}, which leads out of its folder", OUTSIDE
    places = media.places(item)
    if not places:
        return (
            f"{field!r} holds {item!r}, and no media_dir says where that is",
            "set `media_dir` to the full path of the folder it is in, or write full paths",
        )
    folders = " or ".join(media.known_folders)
    return _lost(item, field, folders) if (media.here or media.sent) and not media.find(item) else None


def _lost(item: str, field: str, folders: str) -> Wrong:
    """folders: where it may be; in the remedy, which many records share."""
    put = f"put it below {folders}" if folders else "put it there"
    return f"{field!r} holds {item!r}, and there is no file of that path", f"{put}, or correct the path or media_dir"
