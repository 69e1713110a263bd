# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cases of the rules about trackers (_rules/trackers.py)."""

from __future__ import annotations

import typing as t

from .situations import PPO, WITH, Case


def secrets(**given: str) -> dict[str, t.Any]:
    """A situation in which train_secrets has these."""
    return {"variables": given}


WANDB: dict[str, t.Any] = {"report_to": ["wandb"]}
SWANLAB: dict[str, t.Any] = {"report_to": "swanlab"}
OWN = {"use_swanlab": True}
TRACKIO: dict[str, t.Any] = {"report_to": ["trackio"], "trackio_space_id": None}
KEY, OFFLINE = secrets(SWANLAB_API_KEY=""), secrets(SWANLAB_MODE="offline")
GIVEN = secrets(WANDB_API_KEY="", SWANLAB_API_KEY="")

CASES: list[Case] = [
    ("one tracker to transformers", {"report_to": "wandb,mlflow"}, GIVEN, {"report_to": ["wandb", "mlflow"]}, GIVEN),
    ("no such tracker", {"report_to": "wandbb"}, {}, {"report_to": "tensorboard"}, {}),
    ("no such tracker", {"report_to": ""}, {}, {"report_to": []}, {}),
    ("none beside them", {"report_to": ["none", "tensorboard"]}, {}, {"report_to": ["none"]}, {}),
    ("all are those", {"report_to": "all"}, {}, {"report_to": "none"}, {}),
    *(
        (
            f"package {package}",
            {"report_to": tracker, "trackio_space_id": None},
            {"without": [package, f"{package}-skinny"], **GIVEN},
            {"report_to": tracker, "trackio_space_id": None},
            {WITH: [package], **GIVEN},
        )
        for tracker, package in (
            ("wandb", "wandb"),
            ("tensorboard", "tensorboard"),
            ("mlflow", "mlflow"),
            ("trackio", "trackio"),
            ("swanlab", "swanlab"),
            ("comet_ml", "comet-ml"),
            ("neptune", "neptune"),
            ("clearml", "clearml"),
            ("codecarbon", "codecarbon"),
            ("dvclive", "dvclive"),
        )
    ),
    ("wandb asks", WANDB, {}, WANDB, GIVEN),
    ("wandb asks", WANDB, secrets(WANDB_MODE="online"), WANDB, secrets(WANDB_MODE="offline")),
    ("wandb asks", {**PPO, "report_to": "wandb"}, {}, {**PPO, "report_to": "wandb"}, secrets(WANDB_MODE="disabled")),
    ("no mode that wandb", WANDB, secrets(WANDB_MODE="offlin"), WANDB, secrets(WANDB_MODE="offline")),
    ("no mode that wandb", WANDB, secrets(WANDB_MODE="offlin", WANDB_API_KEY=""), WANDB, GIVEN),
    ("no mode that swanlab", SWANLAB, secrets(SWANLAB_MODE="Offline"), SWANLAB, OFFLINE),
    ("no mode that swanlab", SWANLAB, secrets(SWANLAB_MODE="clod", SWANLAB_API_KEY=""), SWANLAB, KEY),
    ("SwanLab asks", SWANLAB, {}, SWANLAB, KEY),
    ("SwanLab asks", SWANLAB, secrets(SWANLAB_MODE="cloud"), SWANLAB, OFFLINE),
    ("SwanLab asks", OWN, OFFLINE, OWN, KEY),
    ("this mode of SwanLab", SWANLAB, secrets(SWANLAB_MODE="local"), SWANLAB, OFFLINE),
    ("this mode of SwanLab", {**OWN, "swanlab_mode": "local"}, KEY, OWN, KEY),
    ("trackio needs", {**TRACKIO, "project": ""}, {}, {**TRACKIO, "project": "x"}, {}),
    ("Space of the hub", {"report_to": "trackio"}, {}, TRACKIO, {}),
    ("Space of the hub", {**TRACKIO, "trackio_space_id": "a/b"}, {}, {"report_to": "trackio"}, secrets(HF_TOKEN="")),
]
