# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One member of train_chain: what it says goes over the role's inputs, its train_args key by key."""

from __future__ import annotations

import typing as t

from ._errors import FinetuneError
from ._wish import DEMO_MODEL

KEYS = (
    "train_name",
    "train_from",
    "train_reward_from",
    "train_recipe",
    "train_config",
    "train_args",
    "train_model",
    "train_model_revision",
    "train_datasets",
    "train_eval_datasets",
    "train_engine",
    "train_global_batch_size",
)
"""What a member may say: what the run is, and not where it runs."""


def over(variables: t.Mapping[str, t.Any], member: t.Any) -> dict[str, t.Any]:
    """The variables of one member. What all have in common is not for one that has its own from elsewhere: held-out
    records where it names data, the model where it begins with an earlier run."""
    if not isinstance(member, t.Mapping) or not member.get("train_name"):
        raise FinetuneError(
            "A member of a chain has no name.",
            where=f"train_chain: {member}",
            change="give each a train_name of its own, by which later ones take it up (train_from)",
        )
    where = f"train_chain, member {member['train_name']}"
    for key in member:
        if key not in KEYS:
            raise FinetuneError(f"A member of a chain cannot say {key}.", where=where, change="use " + ", ".join(KEYS))
    own = member.get("train_args") or {}
    common = variables.get("train_args") or {}
    if not isinstance(own, t.Mapping) or not isinstance(common, t.Mapping):
        raise FinetuneError("train_args is no dict.", where=where, change="write keys with their values below it")
    held_out = [] if "train_datasets" in member else variables.get("train_eval_datasets")
    model = DEMO_MODEL if member.get("train_from") else variables.get("train_model")
    variables = {**variables, "train_eval_datasets": held_out, "train_model": model}
    return {**variables, **member, "train_args": {**common, **own}}
