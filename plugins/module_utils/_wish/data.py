# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What to train and to evaluate on, and what media its records may have."""

from __future__ import annotations

import typing as t

from .. import _dataset, _media
from .._errors import FinetuneError
from .arguments import Arguments
from .imported import Imported

_DEMO, _HELD_OUT = ["demo"], ["demo_heldout"]
"""The role's defaults."""


def read(
    variables: t.Mapping[str, t.Any], imported: Imported | None, stage: str
) -> tuple[list[_dataset.Dataset], list[_dataset.Dataset]]:
    """The data of the file where the variables are the role's defaults."""
    datasets = _to_train_on(variables.get("train_datasets") or [], imported)
    eval_datasets = _to_evaluate_on(variables.get("train_eval_datasets") or [], imported or Imported(), stage)
    for dataset in eval_datasets:
        if any(other.name == dataset.name and other != dataset for other in datasets):
            raise FinetuneError(
                f"{dataset.name!r} names one dataset to train on and another one to evaluate on.",
                where="train_eval_datasets",
                change="give each its own `name`",
            )
    return datasets, eval_datasets


def _to_train_on(entries: t.Any, imported: Imported | None) -> list[_dataset.Dataset]:
    described: t.Mapping[str, str] = {}
    if imported is not None and entries == _DEMO:
        if not imported.datasets:
            raise imported.lacks("dataset", "train_datasets")
        entries, described = imported.data("train_datasets"), imported.described
    datasets = _dataset.parse(entries, "train_datasets", described)
    if not datasets:
        raise FinetuneError("There is nothing to train on.", where="train_datasets", change="name at least one dataset")
    return datasets


def _to_evaluate_on(entries: t.Any, given: Imported, stage: str) -> list[_dataset.Dataset]:
    described: t.Mapping[str, str] = {}
    if stage == "ppo" and entries == _HELD_OUT:
        entries = []  # beside the demo; PPO takes none
    if given.datasets and entries in ([], _HELD_OUT):
        entries, described = given.data("train_eval_datasets"), given.described
    return _dataset.parse(entries, "train_eval_datasets", described)


def media(asked: Arguments, template: str) -> _media.Media:
    """template: that of the model, which is taken unless another one is asked for."""
    arguments = asked.all
    chats = str(arguments.get("template", template))
    folder = arguments.get("media_dir")
    return _media.Media(bool(asked.schema.templates.get(chats, {}).get("media")), (str(folder),) if folder else ())
