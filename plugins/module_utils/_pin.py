# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One commit of a hub's model for all nodes of a run, from what each of them was told."""

from __future__ import annotations

import typing as t

from . import _hub, _sent_model
from ._errors import FinetuneError
from ._ranks import Facts
from ._wish.wish import Wish

_SPARE = 1.02
"""Of the disk, for what lies beside the files while they come."""


class Pin(t.NamedTuple):
    revision: str
    old: str = ""
    """Why the hub did not tell: the commit is the one that the last run took."""


def choose(wish: Wish, facts: t.Mapping[str, Facts], recorded: str, sent: _sent_model.Sent | None = None) -> Pin:
    """The commit that the hub told the first host that it answered; else the recorded one, or one that lies on a host.

    recorded: the commit that this run was resolved to; empty where it is new. sent: a model of the controller, which
    its content stands for.
    """
    if not wish.hub:
        return Pin(sent.digest if sent else "")
    told = [node["hub"] for node in facts.values() if node["hub"]]
    if not told:  # an earlier run has it pinned already
        return Pin(wish.model_revision)
    for answer in told:
        if "kind" not in answer:
            return Pin(answer["revision"])
    first = told[0]
    here = next((answer["revision"] for answer in told if answer.get("revision")), "")
    if recorded or not wish.present:
        return Pin(recorded or here or wish.model_revision)
    if here:
        return Pin(here, old=first["said"])
    raise _hub.refusal(first, wish.model, wish.model_revision, wish.model_place)


def notices(pin: Pin) -> list[str]:
    old = f"The hub could not be asked ({pin.old}): the model is the one that the last run took."
    return [old] if pin.old else []


def refuse_full_disks(wish: Wish, revision: str, facts: t.Mapping[str, Facts]) -> None:
    """Before anything is fetched: the model has to fit beside what is there. What a cut fetch left is not fetched
    again."""
    for host, node in facts.items():
        told = node["hub"]
        needed = int(told.get("bytes", 0) * _SPARE) - told.get("begun", 0)
        if wish.present and _hub.folder_name(wish.model, revision) not in node["models"] and needed > node["disk_free"]:
            raise FinetuneError(
                f"Model {wish.model} takes {size(needed)} on {host}, which has {size(node['disk_free'])} free.",
                where="train_root",
                change="free some space there, or choose a train_root on a larger disk",
            )


def size(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
