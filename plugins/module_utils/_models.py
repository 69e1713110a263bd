# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The model of a run in its place on the node: made from the demo text, sent, or fetched from a hub. Runs share it.

Either takes its place when it is whole. The making and the fetching are done by the Python of the run's environment.
"""

from __future__ import annotations

import json
import os
import shutil
import typing as t
from pathlib import Path

from . import _hub, _media_set, _sealed, _workshop
from ._changes import Changes
from ._errors import FinetuneError

MAKING_SECONDS, FETCHING_SECONDS = 600.0, 24 * 3600.0
"""How long an apply waits for another one that makes the same model, or fetches it."""
WHAT = "the model"

Spec = dict[str, t.Any]


def stage(spec: Spec, changes: Changes, secrets: t.Mapping[str, t.Any], *, starting: bool) -> None:
    """secrets: environment variables of the fetch. starting: ranks will read it; else a fetched model is left alone."""
    model = spec["model"]
    folder = Path(model["path"])
    if model["build"] and not _sealed.model_intact(folder, model["identity"]):
        if changes.add("update" if folder.exists() else "build", folder):
            _workshop.alone(folder, WHAT, MAKING_SECONDS, lambda _lock: _make(spec, folder))
    elif model["local"] and starting:
        if not _sealed.intact(folder) and changes.add("update" if folder.exists() else "create", folder):
            _workshop.alone(folder, WHAT, MAKING_SECONDS, lambda _lock: _store(model, folder))
    elif model["hub"] and starting:
        if not _sealed.intact(folder) and changes.add("update" if folder.exists() else "fetch", folder):
            _workshop.alone(folder, WHAT, FETCHING_SECONDS, lambda lock: _fetch(spec, folder, secrets, lock))
        if not changes.dry:
            _hub.remember(folder.parent, model["hub"], model["asked"], model["identity"])


def _make(spec: Spec, folder: Path) -> None:
    if _sealed.model_intact(folder, spec["model"]["identity"]):
        return  # another apply made it meanwhile
    shutil.rmtree(folder, ignore_errors=True)
    with _workshop.Workshop(folder, spec) as workshop:
        corpus = workshop / "corpus.jsonl"
        corpus.write_text(spec["model"]["corpus"], encoding="utf-8")
        made = _workshop.run(spec, workshop, "base_model", ["--corpus", str(corpus), "--output", str(folder)], {})
    if made.returncode != 0 or not _sealed.model_intact(folder, spec["model"]["identity"]):
        raise FinetuneError(
            "The embedded base model could not be made.",
            where=_workshop.last(made),
            change="see the lines above; the environment playbook checks the packages",
        )


def _store(model: Spec, folder: Path) -> None:
    if not _sealed.intact(folder):
        _media_set.store(model["stream"], folder, model["identity"], what="files of the model")


def _fetch(spec: Spec, folder: Path, secrets: t.Mapping[str, t.Any], lock: int) -> None:
    """What a cut fetch left is gone on with, and of a damaged folder what is right is kept."""
    if _sealed.intact(folder):
        return
    partial, model = folder.with_name(f".{folder.name}"), spec["model"]
    if folder.exists() and not partial.exists():
        os.replace(folder, partial)
    shutil.rmtree(folder, ignore_errors=True)
    asked = ["--model", model["hub"], "--asked", model["asked"], "--revision", model["identity"]]
    given = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **secrets}
    with _workshop.Workshop(folder, spec) as workshop:
        given |= {name: str(workshop / "client") for name in ("MODELSCOPE_HOME", "MODELSCOPE_CACHE")}
        given["HF_HUB_OFFLINE"] = "0"
        asked += ["--folder", str(partial)]
        done = _workshop.run(spec, workshop, "hub_model", asked, given, lock, python=model["python"])
    told = _answer(done.stdout)
    if "kind" in told:
        raise _hub.refusal(told, model["hub"], model["asked"], "train_model")
    if done.returncode != 0 or not told:
        raise FinetuneError(
            f"The model {model['hub']} could not be fetched.", where=_workshop.last(done), change="see the lines above"
        )
    _sealed.seal(partial, told["files"], told["files"])
    os.replace(partial, folder)


def _answer(said: str) -> dict[str, t.Any]:
    try:
        told = json.loads(said.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}
