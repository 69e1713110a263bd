# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names and tags: what belongs to a fleet says so, and what a node is. Pure."""

from __future__ import annotations

import re
import typing as t

from .._errors import FinetuneError

FLEET, INDEX, NODES = "llmops_fleet", "llmops_index", "llmops_nodes"
EXPIRES, IDLE = "llmops_expires", "llmops_idle"
"""Tags. The index is given once and kept for life; a replacement gets that of what it replaces."""
OURS = (FLEET, INDEX, NODES, EXPIRES, IDLE, "Name")
_KEY = re.compile(r"[A-Za-z0-9+=._,:@-]+")
_NAME = re.compile(r"[a-z][a-z0-9-]{1,29}")


def checked(name: str) -> str:
    if not _NAME.fullmatch(name) or name.endswith("-"):
        raise FinetuneError(
            f"{name!r} is no name of a fleet.",
            where="ec2_name",
            change="2 to 30 small letters, digits and dashes, a letter first, no dash last",
        )
    return name


def own_name(fleet: str) -> str:
    """Of what the role makes for a fleet."""
    return f"llmops-{fleet}"


def iam(fleet: str, region: str) -> str:
    """Roles are of the whole account, fleets of a region."""
    return f"llmops-{fleet}-{region}"


def node(fleet: str, index: int) -> str:
    """Padded, so that names in order are nodes in order."""
    return f"{fleet}-{index:03d}"


def tags(given: t.Iterable[t.Mapping[str, str]] | None) -> dict[str, str]:
    return {str(tag["Key"]): str(tag["Value"]) for tag in given or ()}


def listed(tags_: t.Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": str(value)} for key, value in tags_.items()]


def own(fleet: str, user: t.Mapping[str, t.Any]) -> dict[str, str]:
    """What everything of a fleet is tagged with."""
    taken = sorted(set(user) & set(OURS))
    if taken:
        raise FinetuneError(
            f"{', '.join(taken)} is set by this role.", where="ec2_tags", change="take another name for the tag"
        )
    for key in map(str, user):
        if not _KEY.fullmatch(key) or key in (".", "..", "_index"):
            raise FinetuneError(
                f"The tag {key!r} cannot be told to a node by its metadata service.",
                where="ec2_tags",
                change="use letters, digits and -_+=,.@: in names of tags",
            )
    return {**{str(key): str(value) for key, value in user.items()}, FLEET: fleet}
