# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run gives to its trackers, and how its attempts stay one run there."""

from __future__ import annotations

import os
import subprocess
import sys
import types
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _engine, _trackers
from ansible_collections.llmops.finetune.plugins.module_utils._engine import files, state, trackers
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

from .plans import make, node, origins

LOGS = "/r/runs/x-1/logs"
ALL = ["wandb", "swanlab", "mlflow", "trackio", "tensorboard"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, set()),
        ({"report_to": None}, set()),
        ({"report_to": "none"}, set()),
        ({"report_to": ["none"]}, set()),
        ({"report_to": "wandb"}, {"wandb"}),
        ({"report_to": ["wandb", "mlflow"]}, {"wandb", "mlflow"}),
        ({"report_to": "none", "use_swanlab": True}, {"swanlab"}),
    ],
)
def test_which_trackers_arguments_name(arguments: dict[str, t.Any], expected: set[str]) -> None:
    assert trackers.reported(arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"report_to": "none"}, {}),
        ({"report_to": "tensorboard"}, {}),
        (
            {"report_to": "wandb"},
            {"WANDB_RUN_ID": "x-1", "WANDB_RESUME": "allow", "WANDB_NAME": "x-1", "WANDB_DIR": LOGS},
        ),
        ({"report_to": ["wandb"], "run_name": "mine"}, {"WANDB_RUN_ID": "x-1", "WANDB_NAME": "mine"}),
        (
            {"report_to": "swanlab"},
            {"SWANLAB_RUN_ID": "x-1", "SWANLAB_RESUME": "allow", "SWANLAB_LOG_DIR": f"{LOGS}/swanlab"},
        ),
        ({"use_swanlab": True}, {"SWANLAB_RUN_ID": "x-1", "SWANLAB_EXP_NAME": "x-1"}),
        ({"report_to": "mlflow"}, {"MLFLOW_TRACKING_URI": f"{LOGS}/mlflow", "MLFLOW_ALLOW_FILE_STORE": "true"}),
        ({"report_to": "trackio"}, {"TRACKIO_DIR": f"{LOGS}/trackio"}),
    ],
)
def test_the_ranks_are_told_one_run_and_places_in_its_folder(
    arguments: dict[str, t.Any], expected: dict[str, str]
) -> None:
    found = _trackers.variables(arguments, "x-1", "/r/runs/x-1")
    assert found.items() >= expected.items() and bool(found) == bool(expected)
    prefixes = {name.partition("_")[0].lower() for name in found} - {"gradio"}
    assert prefixes == trackers.reported(arguments) - {"tensorboard"}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"report_to": "none"}, {}),
        ({"report_to": "mlflow"}, {"run_name": "x-1"}),
        ({"report_to": "mlflow", "run_name": "mine"}, {}),
        ({"report_to": "tensorboard"}, {"run_name": "x-1", "logging_dir": "/r/output/runs/x-1"}),
        ({"report_to": "tensorboard", "logging_dir": "/tb"}, {"run_name": "x-1"}),
    ],
)
def test_what_the_author_left_out_is_the_id_of_the_run(written: dict[str, t.Any], expected: dict[str, str]) -> None:
    assert _trackers.arguments(written, "x-1", "/r") == expected


def test_a_plan_gives_them_and_the_id_stays_that_of_the_request() -> None:
    given: dict[str, t.Any] = {"train_args": {"report_to": ["tensorboard", "mlflow"], "run_name": None}}
    plan = make({"a": node()}, **given)
    launch = plan.nodes["a"]["launch"]["environment"]
    assert launch["MLFLOW_TRACKING_URI"] == f"/home/me/llmops/runs/{plan.id}/logs/mlflow"
    written = [(line["key"], line["value"]) for line in plan.nodes["a"]["arguments"]]
    assert [value for key, value in written if key == "run_name"] == [plan.id]
    assert origins(plan)["run_name"] == origins(plan)["logging_dir"] == "the run's id"
    silent = make({"a": node()})
    assert "MLFLOW_TRACKING_URI" not in silent.nodes["a"]["launch"]["environment"]
    assert "run_name" not in origins(silent)


def test_a_space_of_the_hub_is_asked_and_the_folder_is_not() -> None:
    here = make({"a": node()}, train_args={"report_to": "trackio", "trackio_space_id": None})
    assert here.nodes["a"]["launch"]["environment"]["HF_HUB_OFFLINE"] == "1"
    assert _trackers.asks_hub({"report_to": "trackio"})


def test_rules_see_names_of_secrets_and_no_value_but_a_mode() -> None:
    told = _trackers.told({"WANDB_API_KEY": "s3cret", "WANDB_MODE": "offline", "OTHER": "1"})
    assert told == {"WANDB_API_KEY": "", "WANDB_MODE": "offline", "OTHER": ""}
    with pytest.raises(FinetuneError, match="WANDB_API_KEY into train_secrets"):
        make({"a": node()}, train_args={"report_to": "wandb"})


def test_where_no_tracker_is_named_there_is_none() -> None:
    """To LLaMA-Factory it would be every one that is installed."""
    plan = make({"a": node()}, train_args={"report_to": None})
    assert plan.resolved["arguments"]["report_to"] == "none" and origins(plan)["report_to"] == "no tracker is named"


def test_python_finds_no_tracker_that_is_not_reported_to(tmp_path: Path) -> None:
    """Where all are installed; a process of its own, as it stays so."""
    for name in trackers.MODULES:
        (tmp_path / f"{name}.py").touch()
    code = """
import importlib.util
from engine import trackers
trackers.hide({"report_to": ["mlflow"]})
print([name for name in trackers.MODULES if importlib.util.find_spec(name)])
try:
    import wandb
except ImportError:
    print("gone")
"""
    (tmp_path / "engine").symlink_to(Path(str(_engine.__file__)).parent)
    command, variables = [sys.executable, "-c", code], {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[:2] == ["['mlflow']", "gone"], done.stderr


def test_a_later_attempt_goes_on_with_the_run_that_mlflow_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = state.Run(tmp_path)
    active = types.SimpleNamespace(info=types.SimpleNamespace(run_id="abc"))
    monkeypatch.setitem(sys.modules, "mlflow", types.SimpleNamespace(active_run=lambda: active))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:s3cret@server")
    monkeypatch.setenv("MLFLOW_RUN_ID", "")
    monkeypatch.delenv("MLFLOW_RUN_ID")
    trackers.remember(run, ["wandb"])
    assert not run.tracked.exists()
    trackers.go_on(run)
    assert "MLFLOW_RUN_ID" not in os.environ
    trackers.remember(run, ["wandb", "mlflow"])
    assert files.read_json(run.tracked)["run"] == "abc" and "s3cret" not in run.tracked.read_text()
    trackers.go_on(run)
    assert os.environ["MLFLOW_RUN_ID"] == "abc"
    monkeypatch.setenv("MLFLOW_RUN_ID", "mine")
    trackers.go_on(run)
    assert os.environ["MLFLOW_RUN_ID"] == "mine"
    monkeypatch.delenv("MLFLOW_RUN_ID")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://another")
    trackers.go_on(run)
    assert "MLFLOW_RUN_ID" not in os.environ
