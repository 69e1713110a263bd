# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Progress: the one line a person reads, durations and sizes, and the summary at the end."""

from __future__ import annotations

import json
import time
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._engine import files, progress, state

TRAINING: dict[str, t.Any] = {
    "phase": "training",
    "step": 120,
    "total_steps": 300,
    "loss": 2.11341,
    "learning_rate": 8.2e-4,
    "steps_per_second": 3.1,
    "eta": 58.06,
    "cpu": 187.4,
    "memory": 1.23e9,
}


@pytest.mark.parametrize(
    ("beat", "expected"),
    [
        (TRAINING, "step 120/300   40%  loss 2.1134  lr 8.2e-04  3.10 steps/s  ETA 0:58  cpu 187%  mem 1.2 GB"),
        ({}, "starting"),
        ({"phase": "loading", "cpu": 99.6, "memory": 8.12e8}, "loading  cpu 100%  mem 812 MB"),
        ({"phase": "training", "step": 0, "total_steps": 300}, "step   0/300    0%"),
        ({"step": 299, "total_steps": 300}, "step 299/300   99%"),
        ({"step": 300, "total_steps": 300, "eta": 0.0}, "step 300/300  100%"),
        ({"step": 7, "total_steps": 1000, "steps_per_second": 0.05}, "step    7/1000    0%  20 s/step"),
        ({"step": 7, "total_steps": 10, "loss": 0.0}, "step  7/10   70%  loss 0.0000"),
        ({"step": 7, "total_steps": 10, "phase": "saving"}, "step  7/10   70%  saving"),
        ({"step": 7, "total_steps": 10, "phase": "evaluating"}, "step  7/10   70%  evaluating"),
        (
            {"step": 1, "total_steps": 4, "gpu": 93.4, "gpu_memory": 1.5e10, "cpu": 100},
            "step 1/4   25%  gpu 93%  15.0 GB",
        ),
    ],
)
def test_the_line(beat: dict[str, t.Any], expected: str) -> None:
    assert progress.line(beat) == expected


def test_the_line_of_a_run_that_is_over_shows_nothing_live() -> None:
    assert progress.line(TRAINING, live=False) == "step 120/300   40%  loss 2.1134  lr 8.2e-04"
    assert progress.line({"phase": "loading", "cpu": 99.6}, live=False) == ""


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0:00"),
        (0.5, "0:01"),
        (58.4, "0:58"),
        (59.6, "1:00"),
        (600, "10:00"),
        (3599.9, "1:00:00"),
        (3723, "1:02:03"),
        (86399, "23:59:59"),
        (86400, "1d 00:00:00"),
        (183845, "2d 03:04:05"),
    ],
)
def test_durations(seconds: float, expected: str) -> None:
    assert progress.duration(seconds) == expected


@pytest.mark.parametrize(
    ("amount", "expected"),
    [(0, "0 MB"), (812e6, "812 MB"), (999e6, "999 MB"), (1e9, "1.0 GB"), (1.25e9, "1.2 GB"), (141e9, "141.0 GB")],
)
def test_sizes(amount: float, expected: str) -> None:
    assert progress.size(amount) == expected


@pytest.fixture
def run(tmp_path: Path) -> state.Run:
    made = state.Run(tmp_path / "x-00000000")
    made.output.mkdir(parents=True)
    return made


def test_a_beat_joins_what_ranks_and_supervisor_measure(run: state.Run) -> None:
    assert progress.read(run) == {}
    files.write_json(run.usage, {"cpu": 50.0})
    assert progress.read(run) == {"cpu": 50.0}
    files.write_json(run.progress, {"step": 10, "total_steps": 40, "steps_per_second": 0.5, "time": time.time() - 5})
    beat = progress.read(run)
    assert (beat["eta"], beat["cpu"]) == (60.0, 50.0)
    assert 5 <= beat["age"] < 10


def finish(run: state.Run) -> None:
    log = [
        {"current_steps": 5, "loss": 3.0},
        {"current_steps": 10, "loss": 2.0},
        {"current_steps": 10, "eval_loss": 2.5},
    ]
    run.trainer_log.write_text("".join(json.dumps(line) + "\n" for line in log) + '{"current_st', encoding="utf-8")
    files.write_json(run.output / "all_results.json", {"train_runtime": 75.2, "train_samples_per_second": 12.34})
    (run.output / "adapter_model.safetensors").touch()
    (run.output / "training_loss.png").touch()
    files.write_json(run.state, {"state": "finished", "time": 1.0, "attempt": 2})


def test_the_summary_says_losses_speed_and_places(run: state.Run) -> None:
    finish(run)
    facts = progress.summary(run)
    assert (facts["first_loss"], facts["last_loss"], facts["eval_loss"], facts["steps"]) == (3.0, 2.0, 2.5, 10)
    loss, speed, *places = progress.summary_lines(facts)
    assert loss == "loss      3.0000 → 2.0000 over 10 steps, held out 2.5000"
    assert speed.startswith("speed     12.3 samples/s, 1:15 in the last")
    assert "2" in speed.partition("last")[2], "there were two attempts"
    assert places == [
        f"weights   {run.output}/adapter_model.safetensors",
        f"plot      {run.output}/training_loss.png",
    ]


@pytest.mark.parametrize(
    ("predicted", "measured", "expected"),
    [
        (
            {"reserved": 3 << 29},
            [{"cuda_reserved": 1 << 30}, {"cuda_reserved": 5 << 29}],
            "2.5 GiB of a GPU reserved, 1.5",
        ),
        ({}, [{"cuda_reserved": 1 << 30}], "1.0 GiB of a GPU reserved"),
        ({}, [{"rss": 1 << 30}], None),
    ],
)
def test_the_summary_says_what_a_gpu_held_beside_what_was_predicted(
    run: state.Run, predicted: t.Any, measured: t.Any, expected: str | None
) -> None:
    finish(run)
    files.write_json(run.memory, {"predicted": predicted, "measured": measured})
    lines = [line for line in progress.summary_lines(progress.summary(run)) if line.startswith("memory")]
    assert lines == ([f"memory    {expected}" + (" predicted" if predicted else "")] if expected else [])


def test_the_summary_of_ppo_says_the_reward(run: state.Run) -> None:
    log = [{"current_steps": 5, "loss": 3.0, "reward": -0.5}, {"current_steps": 10, "loss": 2.0, "reward": 1.25}]
    run.trainer_log.write_text("".join(json.dumps(line) + "\n" for line in log), encoding="utf-8")
    assert progress.summary_lines(progress.summary(run))[1] == "reward    -0.5000 → 1.2500"
    assert "loss 2.0000  reward 1.2500" in progress.line({"step": 5, "total_steps": 9, "loss": 2.0, "reward": 1.25})


def test_a_run_without_logs_has_a_summary_too(run: state.Run) -> None:
    facts = progress.summary(run)
    assert facts["first_loss"] is None
    assert progress.summary_lines(facts) == [f"weights   {run.output}"]
