# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Trackers in the ranks: which of them a run reports to, and how its attempts stay one run there."""

from __future__ import annotations

import hashlib
import os
import sys
import typing as t

from . import files
from .state import Run

MODULES = ("wandb", "swanlab", "mlflow", "trackio")
"""What the environment has besides tensorboard. Each goes by the same word in report_to."""
_RUN, _SERVER = "MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI"


def reported(arguments: t.Mapping[str, t.Any]) -> frozenset[str]:
    """The trackers that arguments name."""
    value = arguments.get("report_to") or ()
    words = value.split(",") if isinstance(value, str) else value
    own = ["swanlab"] if arguments.get("use_swanlab") else []
    return frozenset([*(str(word).strip() for word in words), *own]) - {"none"}


def hide(arguments: t.Mapping[str, t.Any]) -> None:
    """Have Python find none that the run does not report to: trl imports whichever it finds, which takes seconds."""
    for module in frozenset(MODULES) - reported(arguments):
        sys.modules.setdefault(module, t.cast(t.Any, None))


def go_on(run: Run) -> None:
    """MLflow gives a run its id; a later attempt names it, where it reports to the same place, and so does what is
    reported after training, when the callback of transformers has ended the run."""
    known = files.read_json(run.tracked)
    if known.get("run") and known.get("server") == _server():
        os.environ.setdefault(_RUN, known["run"])


def remember(run: Run, report_to: t.Container[str]) -> None:
    """Keep the id that MLflow gave."""
    if "mlflow" in report_to:
        import mlflow

        active = mlflow.active_run()
        if active:
            files.write_json(run.tracked, {"run": active.info.run_id, "server": _server()})


def _server() -> str:
    """As a digest: a password may be in it."""
    return hashlib.sha256(os.environ.get(_SERVER, "").encode()).hexdigest()
