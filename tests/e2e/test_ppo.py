# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PPO in its environment, with a reward model that was trained in the other one: interrupted, begun again, finished."""

from __future__ import annotations

import json
import math
import subprocess
import time
import typing as t
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from .conftest import REPOSITORY, Demo, Outcome, World, processes
from .recipes import apply, data, finished
from .test_agreement import combinations, compare, extracted, twins

STEPS: dict[str, t.Any] = {"max_steps": 12, "save_steps": 4, "logging_steps": 2, "max_new_tokens": 16}


@dataclass
class Ppo:
    reward: Path
    """Output of the reward run, trained in environment main."""
    started: Outcome
    stopped: Outcome
    state: dict[str, t.Any]
    """What state.json said after the stop."""
    left: list[int]
    """Processes that were left then."""
    took: float
    """Seconds that the stop took."""
    done: Outcome
    folder: Path
    asked: dict[str, t.Any]

    @property
    def python(self) -> str:
        return str(json.loads((self.folder / "launch.json").read_text())["python"])


@pytest.fixture(scope="module")
def ppo(world: World, demo: Demo) -> Ppo:
    judge = apply(world, demo, "reward", "reward")
    finished(world, judge, "reward")
    reward = world.folder(judge) / "output"
    asked: dict[str, t.Any] = {"train_name": "ppo", "train_recipe": "ppo", "train_reward_from": "reward"}
    started = world.play(variables={**asked, "train_wait": False}, **STEPS)
    assert started.rc == 0, started.text
    folder = world.folder(started)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and beat(folder).get("step", 0) < 2:
        time.sleep(0.5)
    assert beat(folder).get("step", 0) >= 2, (folder / "logs/attempt-1.log").read_text()[-3000:]
    began = time.monotonic()
    stopped = world.play("llmops.finetune.stop", variables={"train_name": "ppo"})
    took = time.monotonic() - began
    state = json.loads((folder / "state.json").read_text())
    left = processes(folder.name)
    done = world.play(variables={**asked, "train_retry": True}, **STEPS)
    assert done.rc == 0, done.text
    return Ppo(reward, started, stopped, state, left, took, done, folder, asked)


def beat(folder: Path) -> dict[str, t.Any]:
    try:
        read: dict[str, t.Any] = json.loads((folder / "progress.json").read_text())
    except (OSError, ValueError):
        return {}
    return read


def test_it_trains_in_an_environment_of_its_own(demo: Demo, ppo: Ppo) -> None:
    assert ppo.done.plan["environment"]["lock"] == "node-ppo"
    assert ppo.python != json.loads((demo.folder / "launch.json").read_text())["python"]
    output = ppo.folder / "output"
    for name in ("adapter_model.safetensors", "value_head.safetensors", "training_reward.png", "training_loss.png"):
        assert (output / name).stat().st_size > 500, name
    log = [json.loads(line) for line in (output / "trainer_log.jsonl").read_text().splitlines()]
    assert [line["current_steps"] for line in log] == [2, 4, 6, 8, 10, 12]
    rewards = [line["reward"] for line in log]
    assert all(math.isfinite(reward) and reward for reward in rewards) and len(set(rewards)) > 1
    last = beat(ppo.folder)
    assert (last["step"], last["total_steps"], last["reward"]) == (12, 12, rewards[-1])


def test_the_last_checkpoints_are_whole_and_older_ones_go(ppo: Ppo) -> None:
    checkpoints = sorted((ppo.folder / "output").glob("checkpoint-*"))
    assert [path.name for path in checkpoints] == ["checkpoint-12", "checkpoint-8"]
    for path in checkpoints:
        sizes = json.loads((path / "complete.json").read_text())["files"]
        assert {"adapter_model.safetensors", "value_head.safetensors", "trainer_state.json"} <= sizes.keys()
        assert sizes == {name: (path / name).stat().st_size for name in sizes}


def test_a_stop_ends_it_at_once_and_the_next_apply_begins_again(ppo: Ppo) -> None:
    assert ppo.stopped.rc == 0 and ppo.left == []
    assert ppo.state["state"] == "stopped" and ppo.took < 60
    assert json.loads((ppo.folder / "state.json").read_text())["from_step"] == 0
    assert "cannot go on from a checkpoint" in ppo.done.text


def test_the_same_again_changes_nothing(world: World, ppo: Ppo) -> None:
    again = world.play(variables=ppo.asked, **STEPS)
    assert again.rc == 0 and again.changed == []


def test_a_chain_goes_from_sft_over_its_reward_model_to_ppo(world: World, ppo: Ppo) -> None:
    """The policy begins as the model that answers were scored on: both merge the adapter of sft, and train another."""
    members = [
        {"train_name": "r-sft"},
        {"train_name": "r-judge", "train_recipe": "reward", "train_from": "r-sft", **data("rm")},
        {
            "train_name": "r-ppo",
            "train_recipe": "ppo",
            "train_from": "r-sft",
            "train_reward_from": "r-judge",
            "train_args": {"max_new_tokens": 16},
        },
    ]
    steps: dict[str, t.Any] = {"max_steps": 4, "save_steps": 4, "logging_steps": 2}
    first, again = (
        world.play("llmops.finetune.chain", variables={"train_chain": members}, **steps) for _time in range(2)
    )
    assert first.rc == 0, first.text
    sft, judge, policy = (next((world.root / "runs").glob(f"{one['train_name']}-*")) for one in members)
    for folder in (judge, policy):
        asked = yaml.safe_load((folder / "train.yaml").read_text())
        assert (asked["adapter_name_or_path"], asked["create_new_adapter"]) == (f"{sft}/output", True)
        assert "Merged 1 adapter(s)" in (folder / "logs/attempt-1.log").read_text()
        assert (folder / "output/adapter_model.safetensors").stat().st_size > 500
    assert asked["reward_model"] == f"{judge}/output"
    assert again.rc == 0 and again.changed == [], again.text


def test_the_reward_model_is_the_same_in_both_environments(demo: Demo, ppo: Ppo) -> None:
    """Tokenizer, adapter and value head as the newer packages wrote them."""
    main = str(json.loads((demo.folder / "launch.json").read_text())["python"])
    base = str(demo.applied.plan["nodes"]["localhost"]["model"]["path"])
    arguments = [str(REPOSITORY / "tests/e2e/score.py"), base, str(ppo.reward)]
    asked = [subprocess.Popen([python, *arguments], stdout=subprocess.PIPE) for python in (main, ppo.python)]
    ours, theirs = (json.loads(process.communicate()[0]) for process in asked)
    assert ours["transformers"] != theirs["transformers"] and ours["peft"] != theirs["peft"]
    assert ours["tokens"] == theirs["tokens"]
    assert ours["scores"] == pytest.approx(theirs["scores"], rel=1e-4)
    good, bad = ours["scores"][:2]
    assert good > bad


def test_what_its_llamafactory_refuses_is_refused_and_nothing_else_but_what_fails_later(ppo: Ppo) -> None:
    configurations = [*twins("ppo"), *combinations("ppo", 200, seed=20261125)]
    wrong, refused = compare(ppo.python, configurations)
    assert wrong == []
    assert 30 < refused < len(configurations) - 30


def test_the_stored_schema_is_what_its_llamafactory_says(ppo: Ppo, tmp_path: Path) -> None:
    found = extracted(ppo.python, tmp_path)
    assert found == {"llamafactory-0.9.3/keys.json": True, "llamafactory-0.9.3/templates.json": True}


def test_a_folder_without_a_reward_model_is_refused_in_no_time(world: World, ppo: Ppo) -> None:
    for path in (ppo.reward.parent, ppo.reward / "nothing"):
        named = {"train_reward_from": "", "train_set": f"reward_model={path}"}
        refused = world.play(variables={**ppo.asked, **named}, **STEPS)
        assert refused.rc != 0 and "no reward model" in refused.message and "recipe reward" in refused.message
        assert "train_set, key reward_model" in refused.message
