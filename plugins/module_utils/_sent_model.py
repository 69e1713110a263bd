# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model in a folder of the controller: named by its content, and sent to nodes that lack it."""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

from . import _digests, _lookup, _media_set, _model
from ._engine import hub_files
from ._errors import FinetuneError

PREFIX = "file:"
"""How train_model begins then; `file` is also what datasets of the controller are called."""
NAME = "file"
"""What it is called in a request and a record, which have its content instead."""
_OF_A_RUN = re.compile(r"(checkpoint-\d+|global_step\d+|runs)/.*|training_args\.bin|trainer_.*|manifest\.json")
"""What a trainer leaves beside the model."""


class Sent(t.NamedTuple):
    local: str
    """Its folder on the controller."""
    files: dict[str, str]
    """SHA-256 by path in the folder."""
    facts: dict[str, t.Any]
    """Fields of a `_model.Model`."""

    @property
    def digest(self) -> str:
        return _media_set.digest(self.files)


def find(model: str, folders: t.Sequence[Path], where: str) -> Sent:
    """The folder that train_model names. folders: where a relative one is looked for, in order."""
    wanted = model.removeprefix(PREFIX)
    places = _lookup.candidates(wanted, folders)
    folder = next((place for place in places if (place / "config.json").is_file()), None)
    if folder is None:
        looked = ", ".join(dict.fromkeys(map(str, places)))
        raise FinetuneError(
            f"There is no model in {wanted} on this controller.",
            where=f"{where}, looked in {looked}",
            change="correct the path; the folder holds config.json and the weights. One on the nodes begins with /",
        )
    folder = folder.absolute()
    try:
        names = hub_files.wanted(
            str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file() and path.name
        )
        names = [name for name in names if not _OF_A_RUN.fullmatch(name)]
        digests = _digests.sha256([str(folder / name) for name in names], _digests.of_account(str(folder)))
    except OSError as error:
        raise FinetuneError(
            f"{error.filename} cannot be read: {error.strerror}.", where=where, change="let this account read it"
        ) from None
    facts = _model.facts(folder)
    return Sent(str(folder), dict(zip(names, digests)), {**facts, "name": facts["name"] or str(folder)})


def over(sent: Sent | None, facts: t.Mapping[str, dict[str, t.Any]]) -> dict[str, dict[str, t.Any]]:
    """The facts of hosts, with what is known of the model that each of them is sent."""
    return {host: {**node, "model": sent.facts} if sent else node for host, node in facts.items()}


def folder_name(digest: str) -> str:
    """Of the model's folder below `models`."""
    return f"file@{digest[:16]}"
