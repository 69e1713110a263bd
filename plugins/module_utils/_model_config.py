# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model's config.json on the controller: given as it is, in a file or folder, or had from a hub by the model's id."""

from __future__ import annotations

import json
import os
import re
import typing as t
from pathlib import Path

from . import _hub, _lookup
from ._engine import hub_modelscope
from ._errors import FinetuneError

WHERE = "config"
ID = re.compile(rf"(?:{hub_modelscope.PREFIX})?\w[\w.-]*/\w[\w.-]*")
_NAME = "give the path of the model's config.json or of its folder, or the model's id on a hub (owner/name)"
_CHANGE = {
    "missing": "correct the path or the id; for a private model set HF_TOKEN where Ansible runs",
    "revision": "correct revision",
    "gated": "accept its terms on its page and set HF_TOKEN where Ansible runs, or give the path of a config.json",
    "unreachable": "let this host reach the hub, or a mirror that HF_ENDPOINT names, or give the path of a config.json",
}


def find(given: t.Any, known: t.Mapping[str, t.Any], revision: str = "main") -> dict[str, t.Any]:
    """known: task_vars, for the folders that relative paths may begin in."""
    if isinstance(given, t.Mapping):
        return dict(given)
    wanted, folders = str(given or ""), _lookup.folders(known)
    if not wanted:
        raise FinetuneError("No model is named.", where=WHERE, change=_NAME)
    places = _lookup.candidates(wanted, folders)
    folder = next(filter(Path.is_dir, places), None)
    if folder is not None:
        return _read(_lookup.find(str(folder / "config.json"), [], "There", WHERE, "name the folder of a model"))
    if ID.fullmatch(wanted) and not any(map(Path.is_file, places)):
        return _from_hub(wanted, revision)
    return _read(_lookup.find(wanted, folders, "There", WHERE, _NAME))


def _from_hub(model: str, revision: str) -> dict[str, t.Any]:
    from . import _hub_ask  # slow to import, and few calls ask

    access = _hub.access(model, os.environ)
    told = _hub_ask.ask(model, revision, *access)
    if "kind" in told:
        error = _hub.refusal(told, model, revision, WHERE)
        what = f"There is no file {model} on this controller. {error.what}"
        raise FinetuneError(what, where=WHERE, change=_CHANGE.get(told["kind"], error.change))
    found = _hub_ask.config(model, revision, told["revision"], *access)
    if not isinstance(found, dict):
        raise FinetuneError(
            f"Model {model} of the hub has no config.json that can be read.",
            where=WHERE,
            change="name a model as transformers saves it; adapters and GGUF files have none",
        )
    return found


def _read(path: Path) -> dict[str, t.Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FinetuneError(f"{path} cannot be read: {error}.", where=WHERE, change="fetch it again") from None
    if not isinstance(found, dict):
        raise FinetuneError(f"{path} is no JSON object.", where=WHERE, change="give the model's config.json")
    return found
