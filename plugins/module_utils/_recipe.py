# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recipes: named sets of LLaMA-Factory's keys, and the environments that keys need. Values are starting points that
`train_args` overrides."""

from __future__ import annotations

import difflib
import typing as t
from types import MappingProxyType

from . import _config
from ._errors import FinetuneError

LLAMAFACTORY = {
    "main": "0.9.5",
    "ppo": "0.9.3",
    "unsloth": "0.9.5",
    "fp8": "0.9.5",
    "megatron": "0.9.5",
    "ktransformers": "0.9.6.dev0",
}
"""By environment: the version that its lock pins, whose keys and templates are in roles/train/files."""
UNLOCKED = {"megatron": ("mcore-adapter", "megatron-core")}
"""Environments without a lock in requirements/, and what a site's own lock has besides LLaMA-Factory: mcore-adapter is
made from its sources, and what the public registry has under that name (0.0.1) is empty."""
_OF_KEYS = {"use_unsloth": "unsloth", "fp8": "fp8"}
"""Environments that have all of the main one, and packages that only a key needs: large ones, and for GPUs alone."""


def environment(arguments: t.Mapping[str, t.Any], own: str = "") -> str:
    """The environment that arguments need, whose lock is requirements/node-<environment>.txt: PPO is alone, with the
    only trl that its trainer can be imported with. own: that of the engine, which goes before."""
    if own or arguments.get("stage") == "ppo":
        return own or "ppo"
    return next((name for key, name in _OF_KEYS.items() if _config.scalar(arguments.get(key)) is True), "main")


class Recipe(t.NamedTuple):
    """A file of roles/train/files/recipes."""

    purpose: str = ""
    hardware: str = ""
    arguments: t.Mapping[str, t.Any] = MappingProxyType({})
    engine: str = ""
    """For train_engine, where that is left at auto."""
    unproved: str = ""
    """Why this project has never run it; empty where `make soak` does."""


def find(name: str, recipes: t.Mapping[str, Recipe]) -> Recipe:
    """The recipe of that name; an unknown name is refused with those that are like it, or all."""
    if name not in recipes:
        near = difflib.get_close_matches(name, recipes, n=3)
        raise FinetuneError(
            f"There is no recipe {name!r}.", where="train_recipe", change="use " + " or ".join(near or sorted(recipes))
        )
    return recipes[name]
