# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Trackers: words of report_to, the packages they need, and what their servers ask for."""

from __future__ import annotations

import typing as t

from .rule import Rule, View

_TRANSFORMERS = "transformers integrations"
_PACKAGES = {
    "wandb": ("wandb",),
    "tensorboard": ("tensorboard",),
    "swanlab": ("swanlab",),
    "mlflow": ("mlflow-skinny", "mlflow"),
    "trackio": ("trackio",),
    "comet_ml": ("comet-ml",),
    "neptune": ("neptune",),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "dvclive": ("dvclive",),
}
"""By word of report_to: the packages of which it needs one."""
_WORDS = (*_PACKAGES, "azure_ml", "dagshub", "flyte", "all", "none")
"""All that transformers knows."""


def _lacks(tracker: str) -> t.Callable[[View], t.Any]:
    packages = _PACKAGES[tracker]
    return lambda c: tracker in c.words("report_to") and not any(name in c.schema.packages for name in packages)


def _blank(value: t.Any) -> bool:
    return isinstance(value, str) and not value.strip()


_MODES = {
    "wandb": ("online", "offline", "shared", "disabled", "dryrun", "run"),
    "swanlab": ("cloud", "offline", "local", "disabled"),
}
"""By word of report_to: what its variable …_MODE may say."""


def _mode(c: View, tracker: str) -> str:
    """Empty where it is not said."""
    return c.now.variables.get(f"{tracker.upper()}_MODE", "")


def _misspelt(tracker: str) -> t.Callable[[View], t.Any]:
    return lambda c: tracker in c.words("report_to") and _mode(c, tracker) not in ("", *_MODES[tracker])


def _no_wandb(c: View) -> bool:
    asks = _mode(c, "wandb") in ("", "online", "shared", "run")
    return "wandb" in c.words("report_to") and asks and "WANDB_API_KEY" not in c.now.variables


def _no_swanlab(c: View) -> bool:
    """LLaMA-Factory's own callback takes no mode from the environment."""
    if "SWANLAB_API_KEY" in c.now.variables:
        return False
    if c["use_swanlab"]:
        return bool(c["swanlab_mode"] == "cloud")
    return "swanlab" in c.words("report_to") and _mode(c, "swanlab") in ("", "cloud")


def _swanlab_here(c: View) -> bool:
    """Modes that need a server on the node, or write into the home of the account."""
    if c["use_swanlab"]:
        return bool(c["swanlab_mode"] == "local")
    return "swanlab" in c.words("report_to") and _mode(c, "swanlab") in ("local", "disabled")


RULES: t.Tuple[Rule, ...] = (
    Rule(
        ("report_to",),
        lambda c: isinstance(c["report_to"], str) and "," in c["report_to"],
        "several trackers in one text are one tracker to transformers, which there is not",
        "write a list: [wandb, tensorboard]; in train_set report_to=[wandb,tensorboard]",
        _TRANSFORMERS,
    ),
    Rule(
        ("report_to",),
        lambda c: any(word not in _WORDS for word in c.words("report_to")) or _blank(c["report_to"]),
        "transformers has no such tracker",
        "use wandb, tensorboard, swanlab, mlflow, trackio or none",
        _TRANSFORMERS,
    ),
    Rule(
        ("report_to",),
        lambda c: "none" in c.words("report_to") and len(c.words("report_to")) > 1,
        "trackers are named, and none beside them, which is no tracker",
        "remove none, or the others",
        _TRANSFORMERS,
    ),
    Rule(
        ("report_to",),
        lambda c: "all" in c.words("report_to"),
        "all are those that the environment has, each with a server of its own",
        "name those that you mean, or none",
        _TRANSFORMERS,
    ),
    *(
        Rule(
            ("report_to",),
            _lacks(tracker),
            f"it needs the package {packages[-1]}, which the environment does not have",
            f"remove {tracker}, or use tensorboard or none",
            _TRANSFORMERS,
        )
        for tracker, packages in _PACKAGES.items()
    ),
    *(
        Rule(
            ("report_to",),
            _misspelt(tracker),
            f"{tracker.upper()}_MODE in train_secrets is no mode that {tracker} has",
            f"use {told}",
            source,
        )
        for tracker, told, source in (
            ("wandb", "online, offline or disabled", "wandb sdk/wandb_settings.py"),
            ("swanlab", "cloud or offline", "swanlab env.py"),
        )
    ),
    Rule(
        ("report_to",),
        _no_wandb,
        "wandb asks for the key of an account, and there is nobody to answer",
        "put WANDB_API_KEY into train_secrets, or WANDB_MODE: offline to keep it in the run's folder",
        "wandb sdk/wandb_login.py",
    ),
    Rule(
        ("report_to", "use_swanlab"),
        _no_swanlab,
        "SwanLab asks for the key of an account",
        "put SWANLAB_API_KEY into train_secrets; with report_to: swanlab, SWANLAB_MODE: offline there keeps it in the "
        "run's folder",
        "swanlab data/sdk.py",
    ),
    Rule(
        ("report_to", "swanlab_mode"),
        _swanlab_here,
        "this mode of SwanLab needs packages that the environment does not have, or writes into the account's home",
        "use report_to: swanlab, with SWANLAB_MODE: offline in train_secrets",
        "swanlab data/sdk.py",
    ),
    Rule(
        ("report_to",),
        lambda c: "project" in c.schema.keys and "trackio" in c.words("report_to") and not c["project"],
        "trackio needs a project",
        "set project",
        "hparams/parser.py",
    ),
    Rule(
        ("trackio_space_id", "report_to"),
        lambda c: "trackio" in c.words("report_to") and c["trackio_space_id"] and "HF_TOKEN" not in c.now.variables,
        "trackio writes to a Space of the hub, which takes a token",
        "set trackio_space_id: null to keep it in the run's folder, or put HF_TOKEN into train_secrets",
        _TRANSFORMERS,
    ),
)
