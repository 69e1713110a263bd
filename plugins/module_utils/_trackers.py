# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run gives to the trackers that it reports to: one run for all its attempts, by the run's id, with files below
the run's folder. Variables in train_secrets go over these."""

from __future__ import annotations

import typing as t

from ._engine.trackers import reported

_VARIABLES: dict[str, dict[str, str]] = {
    "wandb": {
        "WANDB_RUN_ID": "{id}",
        "WANDB_RESUME": "allow",
        "WANDB_NAME": "{name}",
        "WANDB_DIR": "{logs}",
        "WANDB_CACHE_DIR": "{logs}/wandb/cache",
        "WANDB_CONFIG_DIR": "{logs}/wandb/config",
        "WANDB_DATA_DIR": "{logs}/wandb/data",
        "WANDB_ARTIFACT_DIR": "{logs}/wandb/artifacts",
        "WANDB_ERROR_REPORTING": "false",
    },
    "swanlab": {
        "SWANLAB_RUN_ID": "{id}",
        "SWANLAB_RESUME": "allow",
        "SWANLAB_EXP_NAME": "{name}",
        "SWANLAB_PROJ_NAME": "llamafactory",  # else the name of the run's folder: a project for each run
        "SWANLAB_LOG_DIR": "{logs}/swanlab",
        "SWANLAB_SAVE_DIR": "{logs}/swanlab",
    },
    "mlflow": {
        "MLFLOW_TRACKING_URI": "{logs}/mlflow",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    },
    "trackio": {
        "TRACKIO_DIR": "{logs}/trackio",
        "GRADIO_ANALYTICS_ENABLED": "False",
    },
}
_MODES = ("WANDB_MODE", "SWANLAB_MODE")


def variables(arguments: t.Mapping[str, t.Any], run_id: str, folder: str) -> dict[str, str]:
    """Environment variables of the ranks. folder: the run's, on the node."""
    places = {"id": run_id, "name": str(arguments.get("run_name") or run_id), "logs": f"{folder}/logs"}
    named = reported(arguments)
    return {
        variable: value.format(**places)
        for tracker, wanted in _VARIABLES.items()
        if tracker in named
        for variable, value in wanted.items()
    }


def arguments(written: t.Mapping[str, t.Any], run_id: str, folder: str) -> dict[str, str]:
    """LLaMA-Factory's keys that the author left out: the name, and one place of TensorBoard for all attempts."""
    named = reported(written)
    ours = {"run_name": run_id} if named else {}
    if "tensorboard" in named:
        ours["logging_dir"] = f"{folder}/output/runs/{run_id}"
    return {key: value for key, value in ours.items() if not written.get(key)}


def asks_hub(arguments: t.Mapping[str, t.Any]) -> bool:
    """trackio writes to a Space, unless it is told not to."""
    return "trackio" in reported(arguments) and bool(arguments.get("trackio_space_id", "trackio"))


def told(secrets: t.Mapping[str, str]) -> dict[str, str]:
    """What rules may know of train_secrets: the names, and of a mode its value."""
    return {name: value if name in _MODES else "" for name, value in secrets.items()}
