# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files on the controller that variables name."""

from __future__ import annotations

import os
import typing as t
from pathlib import Path

from ._errors import FinetuneError


def folders(known: t.Mapping[str, t.Any]) -> list[Path]:
    """Those that relative paths may begin in: beside the inventory, beside the playbook, here. known: task_vars."""
    places = [known.get("inventory_dir"), known.get("playbook_dir"), os.environ.get("PWD") or os.getcwd()]
    return [Path(str(place)) for place in places if place]


def find(wanted: str, folders: t.Sequence[Path], there: str, where: str, change: str) -> Path:
    """A file on the controller. folders: where a relative one is looked for, in order. there: how a refusal begins."""
    places = candidates(wanted, folders)
    path = next(filter(Path.is_file, places), None)
    if path is not None:
        return path
    folder = next(filter(Path.is_dir, places), None)
    if folder is not None:
        raise FinetuneError(f"{there} is a folder {folder}, and a file is due.", where=where, change=change)
    looked = ", ".join(dict.fromkeys(str(place.parent) for place in places))
    if not Path(wanted).is_absolute():
        where = f"{where}, looked in {looked}"
    raise FinetuneError(f"{there} is no file {wanted} on this controller.", where=where, change=change)


def candidates(wanted: str, folders: t.Sequence[Path]) -> list[Path]:
    """Where it may be. folders: those that a relative path may begin in."""
    path = Path(wanted).expanduser()
    return [path] if path.is_absolute() else [folder / path for folder in folders]
