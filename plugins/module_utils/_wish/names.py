# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role's inputs by name, and variables that nearly have such a name."""

from __future__ import annotations

import difflib
import typing as t

from .._errors import FinetuneError, together

INPUTS = (
    "train_name",
    "train_recipe",
    "train_config",
    "train_args",
    "train_set",
    "train_model",
    "train_model_revision",
    "train_from",
    "train_reward_from",
    "train_datasets",
    "train_eval_datasets",
    "train_tokenized",
    "train_engine",
    "train_lock",
    "train_global_batch_size",
    "train_gpus",
    "train_processes_per_node",
    "train_address",
    "train_nodes",
    "train_port",
    "train_user",
    "train_root",
    "train_output_root",
    "train_store",
    "train_spot_notices",
    "train_max_restarts",
    "train_state",
    "train_wait",
    "train_watch_interval",
    "train_retry",
    "train_preflight",
    "train_resolve",
    "train_insist",
    "train_fit",
    "train_fit_quantize",
    "train_assume_gpus",
)
"""The role's inputs that a wish is read from, or that are checked with it."""

OTHERS = ("train_become", "train_chain", "train_lease_dir", "train_secrets", "train_run_id", "train_fetch_to")
"""Inputs that a task of the role hands on as they are."""


def unheard(names: t.Iterable[str], keys: t.Container[str], written: t.Container[str]) -> list[str]:
    """What a plan says of variables that are called like a key of LLaMA-Factory, which nobody hands to it. keys: all of
    them. written: those that the author has given a value, which may come from such a variable."""
    called = [(name, name.partition("_")[2]) for name in sorted(names) if name.startswith("train_")]
    return [
        f"{name} is no input, and passed over: LLaMA-Factory's {key} is written in train_args."
        for name, key in called
        if name not in (*INPUTS, *OTHERS) and key in keys and key not in written
    ]


def refuse_misspelt(names: t.Iterable[str]) -> None:
    """Refuse variables that are nearly one of the role's inputs: Ansible itself would pass over them.

    Others that begin with train_ are left alone, they may be the inventory's own.
    """
    known = (*INPUTS, *OTHERS)
    wrong = []
    for name in sorted(set(names) - set(known)):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.85) if name.startswith("train_") else []
        if near:
            change = f"write {near[0]}, or give a variable of your own another name"
            wrong.append(FinetuneError(f"There is no input {name}.", where=name, change=change))
    if wrong:
        raise together(wrong)
