# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pt → sft → dpo by one playbook: planned, trained, the same again, and the middle one changed."""

from __future__ import annotations

import math
import typing as t
from pathlib import Path

import pytest
import yaml

from . import recipes
from .conftest import Demo, Outcome, World

STEPS: dict[str, t.Any] = {**recipes.STEPS, "max_steps": 8, "lora_dropout": 0}


def chain(**middle: t.Any) -> list[dict[str, t.Any]]:
    return [
        {
            "train_name": "c-pt",
            "train_recipe": "pretrain",
            "train_args": {"finetuning_type": "full", "cutoff_len": 32},
            **recipes.data("pt"),
        },
        {"train_name": "c-sft", "train_from": "c-pt", "train_args": middle},
        {"train_name": "c-dpo", "train_from": "c-sft", "train_recipe": "dpo", **recipes.data("dpo")},
    ]


def play(world: World, *arguments: str, **middle: t.Any) -> Outcome:
    return world.play("llmops.finetune.chain", *arguments, variables={"train_chain": chain(**middle)}, **STEPS)


def ids(done: Outcome) -> list[str]:
    """The runs that were planned, in order."""
    return list(dict.fromkeys(str(line["result"]["plan"]["id"]) for line in done.results if "plan" in line["result"]))


def trained(done: Outcome) -> set[str]:
    """The runs that were started."""
    changes = [path for action, path in done.changes if action == "start"]
    return {Path(path).name for path in changes}


@pytest.fixture(scope="module")
def predicted(world: World, demo: Demo) -> Outcome:
    return play(world, "--check")


@pytest.fixture(scope="module")
def first(world: World, predicted: Outcome) -> Outcome:
    return play(world)


def test_it_is_planned_whole_before_anything_is_there(predicted: Outcome) -> None:
    assert predicted.rc == 0, predicted.text
    assert [run_id.rpartition("-")[0] for run_id in ids(predicted)] == ["c-pt", "c-sft", "c-dpo"]
    assert trained(predicted) == set(ids(predicted))


def test_what_is_wrong_with_the_last_one_is_told_before_the_first_one_trains(world: World) -> None:
    no_judge = {"train_name": "c-ppo", "train_recipe": "ppo", "train_reward_from": "c-sft", **recipes.data("pt")}
    refused = world.play("llmops.finetune.chain", variables={"train_chain": [*chain()[:2], no_judge]}, **STEPS)
    assert refused.rc != 0 and refused.changed == []
    assert "is no reward model" in refused.message and "train_chain, member c-ppo: " in refused.message


def test_each_takes_up_what_the_one_before_left(world: World, predicted: Outcome, first: Outcome) -> None:
    assert first.rc == 0, first.text
    assert ids(first) == ids(predicted) and trained(first) == set(ids(first))
    pt, sft, dpo = (world.root / "runs" / run_id for run_id in ids(first))
    middle, last = (yaml.safe_load((folder / "train.yaml").read_text()) for folder in (sft, dpo))
    assert middle["model_name_or_path"] == last["model_name_or_path"] == f"{pt}/output"
    assert last["adapter_name_or_path"] == f"{sft}/output" and last["create_new_adapter"] is True
    losses = [
        line["loss"]
        for line in map(_json, (dpo / "output/trainer_log.jsonl").read_text().splitlines())
        if "loss" in line
    ]
    assert abs(losses[0] - math.log(2)) < 0.01, "it begins as the model that it is compared with: sft's, not pt's"
    assert "Merged 1 adapter(s)" in "".join(path.read_text() for path in (dpo / "logs").glob("attempt-*.log"))


def test_the_same_again_changes_nothing(world: World, first: Outcome) -> None:
    again = play(world)
    assert again.rc == 0, again.text
    assert again.changed == [] and ids(again) == ids(first)


def test_the_middle_changed_would_train_it_and_what_follows(world: World, first: Outcome) -> None:
    """`make soak PART=faults` trains them."""
    changed_alone(play(world, "--check", learning_rate=5e-4), first)


def changed_alone(other: Outcome, first: Outcome) -> None:
    assert other.rc == 0, other.text
    before, now = ids(first), ids(other)
    assert now[0] == before[0] and set(now[1:]).isdisjoint(before)
    assert trained(other) == set(now[1:])


def _json(line: str) -> dict[str, t.Any]:
    return dict(yaml.safe_load(line))
