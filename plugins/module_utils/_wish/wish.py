# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run as it is wished for: the fields that all else is decided from."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from .. import _assumed, _config, _dataset, _media, _sent_model, _template
from .._engine.state import EARLIER

IMPORTED = "config"
"""The recipe of a run that train_config describes."""
DEMO_MODEL = "demo"
"""train_model for the base model that is made on the spot."""

ASKED, FASTEST = "asked", "fastest"
"""What train_fit may be."""


@dataclass(frozen=True)
class Wish:
    """One run as wished for. None stands for `auto`."""

    name: str
    recipe: str
    args: _config.Arguments
    """train_args, then train_set over it."""
    origins: dict[str, str]
    """Which of the two each key of `args` came from."""
    base: _config.Arguments
    """What the recipe starts from; nothing with train_config."""
    environment: str
    """Profile of the environment that the ranks run in."""
    lock: str
    """A lock of the author's own for it, on the controller; empty for the collection's."""
    notices: list[str]
    """What of train_config is not taken over."""
    model: str
    model_revision: str
    begins_with: str
    """A run, by name or id, whose model or adapter this one takes up."""
    rewarded_by: str
    """A run, by name or id, that is the reward model of PPO."""
    model_place: str
    """The variable or the key that names it, as refusals tell it."""
    template: _template.Choice | None
    """The chat template that the model's name leads to."""
    insists: bool
    """A template is taken also where the registry has another one for the model."""
    mixes: bool
    """GPUs of several kinds may be used together."""
    risks: bool
    """It may start also where it does not fit into memory by the estimate."""
    datasets: list[_dataset.Dataset]
    eval_datasets: list[_dataset.Dataset]
    stage: str
    """LLaMA-Factory's, from the recipe unless the author wrote another."""
    media: _media.Media
    media_folders: list[str]
    """Where train_config has its media, on the controller."""
    folders: list[str]
    """Where on the nodes adapters, the reward model and descriptions of tokens are that the run begins with."""
    engine: str
    gpus: str
    global_batch_size: int | None
    processes_per_node: int | None
    port: int
    user: str
    root: str
    output_root: str
    """Where all nodes have their results in common; empty where each keeps its own."""
    store: str
    """Where in S3 checkpoints and results go; empty for nowhere."""
    spot_notices: list[str]
    """For what EC2 says it leaves."""
    state: str
    retry: bool
    refresh: bool
    max_restarts: int
    tokenized: bool = False
    """Its data is tokenized when it is staged, not by its ranks."""
    fit: str = ASKED
    quantizes: bool = False
    """Weights may be quantized where that is what fits."""
    assumed: _assumed.Assumed | None = None
    """GPUs that a plan takes each host to have."""
    family: str = ""
    """The model at the beginning of a chain of runs, where an earlier one is this one's model."""
    scored_on: tuple[str, ...] | None = None
    """Adapters that were merged into the model below that of the reward model, where a run is that."""
    left: t.Mapping[str, t.Any] = field(default_factory=dict)
    """What is known of the run that it begins with: the config.json of its model, and LLaMA-Factory's keys of its
    adapter."""

    @property
    def present(self) -> bool:
        """It is to be on its nodes with all that it needs, ready to train or trained."""
        return self.state in ("finished", "staged")

    @property
    def fetched(self) -> list[str]:
        """Runs that it begins with, which hosts without them have from the store."""
        return [name for name in (self.begins_with, self.rewarded_by) if name and self.store and self.present]

    @property
    def objects(self) -> list[str]:
        """Addresses of what is in S3."""
        return [dataset.where for dataset in (*self.datasets, *self.eval_datasets) if dataset.source == "s3"]

    @property
    def hub(self) -> dict[str, str]:
        """The model and its revision as asked for, where it is one of a hub."""
        elsewhere = self.model.startswith(("/", EARLIER, _sent_model.PREFIX))
        there = elsewhere or self.model in ("", DEMO_MODEL, _sent_model.NAME)
        return {} if there else {"model": self.model, "revision": self.model_revision}
