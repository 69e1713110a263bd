# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run, interrupted in its middle, tells five trackers at once, each with its own package and without a server."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import typing as t
from pathlib import Path

import pytest

from .conftest import ACCOUNT, BASE, REPOSITORY, Demo, Outcome, World, has_account, tree
from .test_demo_run import node_python
from .test_faults import killer, write_plan

TOLD: dict[str, t.Any] = {
    "train_name": "told",
    "train_secrets": {"WANDB_MODE": "offline", "SWANLAB_MODE": "offline"},
}
KEYS: dict[str, t.Any] = {
    "report_to": ["wandb", "swanlab", "mlflow", "trackio", "tensorboard"],
    "trackio_space_id": None,
    "max_steps": 8,
    "save_steps": 4,
    "logging_steps": 2,
}
MARKS = ("wandb", "swanlab", "swanlog", "mlflow", "mlruns", "trackio", "gradio")


def home() -> Path:
    return Path(pwd.getpwnam(ACCOUNT).pw_dir if os.getuid() == 0 and has_account() else Path.home())


def left_by_trackers(world: World) -> set[str]:
    """Paths that go by the name of one, in the home of the account and under the root but for packages."""
    places = [home(), world.clone, *world.root.iterdir(), *(world.root / "cache").iterdir()]
    looked = [path for path in places if path.name not in ("envs", "cache", "uv")]
    return {path for path in tree(*looked) if any(mark in Path(path).name.lower() for mark in MARKS)}


@pytest.fixture(scope="module")
def told(world: World, demo: Demo) -> tuple[Outcome, set[str]]:
    """The run, and what trackers left outside its folder."""
    before = left_by_trackers(world)
    plan = BASE / "killer-told.json"
    write_plan(plan, [["checkpoint-4", "complete.json"]])
    done = world.play(variables=TOLD, environment=killer(plan), **KEYS)
    assert done.rc == 0, done.text
    new = left_by_trackers(world) - before
    assert new, "they are to be found"
    return done, {path for path in new if not path.startswith(str(world.folder(done) / "logs"))}


def test_all_attempts_are_one_run_with_its_loss(world: World, demo: Demo, told: tuple[Outcome, set[str]]) -> None:
    done = told[0]
    folder = world.folder(done)
    assert (done.run["attempt"], done.run["from_step"]) == (2, 4)
    answer = subprocess.run(
        [node_python(world, demo), str(REPOSITORY / "tests/e2e/tracked.py"), str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    kept = json.loads(answer.stdout.splitlines()[-1])
    log = [json.loads(line) for line in (folder / "output/trainer_log.jsonl").read_text().splitlines()]
    losses = {line["current_steps"]: line["loss"] for line in log if "loss" in line}
    assert set(losses) == {2, 4, 6, 8}
    assert kept.keys() == set(KEYS["report_to"])
    for tracker, rows in kept.items():
        assert {run.partition(" ")[0] for run, _step, _loss in rows} == {folder.name}, tracker
        assert len({run for run, _step, _loss in rows}) == 1, tracker
        assert {6, 8} <= {step for _run, step, _loss in rows} <= {2, 4, 6, 8}, tracker
        for _run, step, loss in rows:
            assert loss == pytest.approx(losses[step], abs=1e-3), (tracker, step)
    assert len({path.parent.parent for path in folder.glob("logs/mlflow/*/*/metrics/*")}) == 1, "also of the evaluation"
    assert {step for _run, step, _loss in kept["mlflow"]} == {2, 4, 6, 8}
    begun = [path.name for path in folder.glob("logs/wandb/offline-run-*")]  # the kill took what the first held back
    assert len(begun) == 2 and all(name.endswith(folder.name) for name in begun)


def test_nothing_lies_outside_the_logs_of_the_run(told: tuple[Outcome, set[str]]) -> None:
    assert told[1] == set()


def test_the_same_again_changes_nothing(world: World, told: tuple[Outcome, set[str]]) -> None:
    before = tree(world.folder(told[0]))
    again = world.play(variables=TOLD, **KEYS)
    assert again.rc == 0 and again.changed == [], again.text
    assert tree(world.folder(told[0])) == before


def test_without_a_key_it_is_refused_before_anything_is_there(world: World, demo: Demo) -> None:
    refused = world.play(variables={"train_name": "keyless"}, report_to="wandb")
    assert refused.rc != 0 and "WANDB_API_KEY into train_secrets" in refused.message
    assert not list((world.root / "runs").glob("keyless-*"))
