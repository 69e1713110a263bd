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

KINDS = (("images", "<image>"), ("videos", "<video>"), ("audios", "<audio>"))


class Media(t.NamedTuple):
    """What is known of media where records are checked."""

    taken: bool = False
    """The chat template is for media, so that a placeholder in a text is one. In others it is mere text."""
    folder: str = ""
    """media_dir. LLaMA-Factory's default is dataset_dir, which in a run is the run's own folder."""
    here: bool = False
    """The files are on this host."""


def held(record: Record, layout: Layout) -> bool:
    """Whether the record has any. Pretraining looks at its text alone."""
    return layout.stage != "pt" and any(_items(layout.of(record, role)) for role, _placeholder in KINDS)


def fault(record: Record, layout: Layout, talks: t.Sequence[t.Sequence[str]]) -> Wrong:
    """talks: the texts of each conversation that the stage makes of the record."""
    if not held(record, layout) and not (layout.media.taken and layout.stage != "pt"):
        return None
    for role, placeholder in KINDS:
        items = _items(layout.of(record, role))
        name = layout.columns.get(role, role)
        for texts in talks:
            asked = sum(text.count(placeholder) for text in texts)
            if asked != len(items):
                return (
                    f"{name!r} holds {len(items)}, its texts have {asked} {placeholder}",
                    f"write one {placeholder} for each",
                )
        for item in items:
            if wrong := _absent(item, name, layout.media):
                return wrong
    return None


def _items(value: t.Any) -> list[t.Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _absent(item: t.Any, name: str, media: Media) -> Wrong:
    """One image, video or audio that cannot be opened: a path, the frames of a video, or the bytes themselves."""
    if isinstance(item, list):
        return next(filter(None, (_absent(frame, name, media) for frame in item)), None)
    folder = media.folder
    if isinstance(item, dict):  # as `datasets` stores an image; its path is taken as it is
        if item.get("bytes") is not None:
            return None
        item, folder = item.get("path"), ""
    if isinstance(item, bytes):
        return None
    if not isinstance(item, str):
        return f"{name!r} holds {item!r}, no path", "write the path of a file"
    path = os.path.join(folder, item)
    if os.path.isabs(path):
        if not media.here or os.path.isfile(path):
            return None
        return f"{name!r} holds {item!r}, and there is no file {path}", "put it there, or correct the path or media_dir"
    if media.here:
        return (
            f"{name!r} holds {item!r}, and no media_dir says where that is",
            "set `media_dir` to the full path of the folder it is in, or write full paths",
        )
    return (
        f"{name!r} holds {item!r}, which no node has: media are not sent along",
        "have data and media on the nodes: `path` instead of `file`, and `media_dir` with the full path of the folder",
    )
