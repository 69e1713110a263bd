# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where on a node the model of a run lies. Pure."""

from __future__ import annotations

import typing as t

from . import _hub, _sent_model
from ._engine.state import EARLIER


def earlier(value: str, root: str) -> str:
    """The results of `run:<id>`; anything else as it is."""
    return f"{root}/runs/{value.removeprefix(EARLIER)}/output" if value.startswith(EARLIER) else value


def folder(model: t.Mapping[str, t.Any], root: str) -> str:
    """model: name and revision, as a run was resolved to."""
    name, revision = str(model["name"]), str(model["revision"])
    if name.startswith(("/", EARLIER)):
        return earlier(name, root)
    if name == _sent_model.NAME:
        return f"{root}/models/{_sent_model.folder_name(revision)}"
    return f"{root}/models/{_hub.folder_name(name, revision)}"
