# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The model, and what else a run begins with: an earlier run, adapters, a reward model."""

from __future__ import annotations

import typing as t

from .. import _dataset, _sent_model, _store
from .._engine import hub_modelscope, hub_s3
from .._errors import FinetuneError
from . import values
from .arguments import Arguments
from .imported import Imported
from .wish import DEMO_MODEL

Variables = t.Mapping[str, t.Any]


def read(variables: Variables, imported: Imported | None) -> tuple[str, str, str]:
    """The model, its revision and where it is named: in the file where the variable is the role's default. Of a run
    that begins with an earlier one the model is not known yet."""
    model, revision, where = _named(variables, imported)
    if not variables.get("train_from"):
        return model, revision, where
    if model != DEMO_MODEL:
        raise FinetuneError(
            f"train_from takes the model of an earlier run, and {where} names {model}.",
            where=f"train_from, {where}",
            change="leave one of them out",
        )
    return "", revision, where


def _named(variables: Variables, imported: Imported | None) -> tuple[str, str, str]:
    model: t.Any = variables.get("train_model") or ""
    revision = str(variables.get("train_model_revision") or "main")
    where = "train_model"
    if imported is not None and model == DEMO_MODEL:
        if not imported.model:
            raise imported.lacks("model_name_or_path", "train_model")
        model, revision = imported.model, imported.revision or revision
        where = f"train_config, {imported.file}, key model_name_or_path"
    if not model:
        raise FinetuneError(
            "There is no model to train.", where=where, change="name a hub id or a full path on the node"
        )
    if not isinstance(model, str):
        raise FinetuneError(f"{model!r} is no model.", where=where, change="write one name, as text")
    path = model.removeprefix(_sent_model.PREFIX)
    if path and path == path.strip() and (path != model or path.startswith("/")):
        return model, revision, where
    if model.startswith(hub_s3.PREFIX):
        return _store.read(model, where), revision, where
    if not _dataset.HUB_ID.fullmatch(model.removeprefix(hub_modelscope.PREFIX)):
        raise FinetuneError(
            f"{model!r} is neither a hub id nor a full path on the node.",
            where=where,
            change="write owner/name, modelscope:owner/name or s3://bucket/prefix; begin the path with / on the nodes, "
            "with file: on this controller",
        )
    return model, revision, where


def rewarded_by(variables: Variables, stage: str) -> str:
    """The run that is the reward model of PPO."""
    wanted = values.run(variables, "train_reward_from")
    if wanted and stage != "ppo":
        raise FinetuneError(
            f"Stage {stage} takes no reward model.", where="train_reward_from", change="leave it out, or use recipe ppo"
        )
    return wanted


def folders(asked: Arguments) -> list[str]:
    """Full paths among what names a folder on the node, a hub id, or the address of a server."""
    arguments = asked.all
    named = [("adapter_name_or_path", path.strip()) for path in _text(arguments, "adapter_name_or_path").split(",")]
    if asked.stage == "ppo":
        named.append(("reward_model", _text(arguments, "reward_model")))
    for key, found in named:
        leads = found.count("/") > 1 and not found.startswith("/") and "://" not in found
        if leads or found.startswith(("~", ".", hub_s3.PREFIX)):
            raise FinetuneError(
                f"{found!r} is neither a full path on the node nor a hub id.",
                where=f"{asked.origins[key]}, key {key}",
                change="begin the path with /",
            )
    paths = [found for _key, found in named] + [_text(arguments, "new_special_tokens_config")]
    return [path for path in paths if path.startswith("/")]


def _text(arguments: t.Mapping[str, t.Any], key: str) -> str:
    """What a key says; empty where it says nothing, or no text, which the rules tell."""
    found = arguments.get(key)
    return found if isinstance(found, str) else ""
