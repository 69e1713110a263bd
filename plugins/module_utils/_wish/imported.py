# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file of train_config as it was read: what of it a wish takes, where variables leave it to the file."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from .. import _config
from .._errors import FinetuneError

NOT_WRITTEN = "LLaMA-Factory's default"
"""Origin of a key that a file leaves out."""


@dataclass
class Imported:
    """One file, read."""

    file: str = ""
    """Its name."""
    arguments: dict[str, t.Any] = field(default_factory=dict)
    """LLaMA-Factory's keys, typed, without those that a variable or the run decides."""
    origins: dict[str, str] = field(default_factory=dict)
    """File and line of each of them."""
    model: str = ""
    revision: str = ""
    datasets: list[t.Any] = field(default_factory=list)
    """Entries as in train_datasets."""
    eval_datasets: list[t.Any] = field(default_factory=list)
    refused: dict[str, FinetuneError] = field(default_factory=dict)
    """By variable: why its datasets cannot be taken, told where the variable does not stand in for them."""
    described: dict[str, str] = field(default_factory=dict)
    """By name of a dataset: where it is described, as refusals tell it."""
    dataset_dir: str = "data"
    media_folders: list[str] = field(default_factory=list)
    """Where it has its media: its media_dir, looked for as dataset_dir is, and LLaMA-Factory's default, dataset_dir."""
    engine: str = ""
    """train_engine for its `deepspeed` or `fsdp`."""
    notices: list[str] = field(default_factory=list)

    def data(self, variable: str) -> list[t.Any]:
        """Its entries in the place of a variable."""
        if variable in self.refused:
            raise self.refused[variable]
        return {"train_datasets": self.datasets, "train_eval_datasets": self.eval_datasets}[variable]

    def lacks(self, key: str, variable: str) -> FinetuneError:
        """It leaves out what it is about: the demo that is the role's default is not what its author means."""
        return FinetuneError(
            f"{self.file} has no {key}.",
            where=f"train_config, {self.file}",
            change=f"add {key} to the file, or set {variable}",
        )

    def overruled(self, over: _config.Arguments, origins: t.Mapping[str, str]) -> list[str]:
        """Its lines that a variable goes over. over: what variables say; origins: which of them."""
        return [
            f"{self.origins[key]}: {key} {_config.to_yaml(value)} is overruled by {origins[key]}: "
            f"{_config.to_yaml(over[key])}."
            for key, value in self.arguments.items()
            if over.get(key, value) != value and self.origins[key] != NOT_WRITTEN
        ]
