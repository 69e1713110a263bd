# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recipes train for real on the CPU, through the playbook, on the embedded model; reward and ppo in test_ppo.py."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest

from .conftest import BASE, Demo, World

PAIRS = [
    {
        "instruction": f"How do I {what}?",
        "input": "",
        "chosen": f"Run the playbook {book}.",
        "rejected": "I do not know.",
    }
    for what, book in (("train", "train"), ("see my runs", "status"), ("end a run", "stop"), ("plan", "plan")) * 6
]
PREFERENCES: dict[str, t.Any] = {
    "train_datasets": [
        {
            "name": "pairs",
            "file": str(BASE / "pairs.jsonl"),
            "ranking": True,
            "columns": {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"},
        }
    ],
    "train_eval_datasets": [],
}


def train(world: World, recipe: str, variables: dict[str, t.Any], left: list[str]) -> Path:
    """A short run of the recipe learns, leaves its results, and is not done twice. Returns its output."""
    text = "".join(json.dumps(pair) + "\n" for pair in PAIRS)
    (BASE / "pairs.jsonl").write_text(text, encoding="utf-8")
    asked = {"train_name": recipe.replace("_", "-"), "train_recipe": recipe, **variables}
    done = world.play(variables=asked, max_steps=16, logging_steps=2, learning_rate=1e-3)
    assert done.rc == 0, done.text
    output = world.folder(done) / "output"
    for name in left:
        assert (output / name).stat().st_size > 500
    log = [json.loads(line) for line in (output / "trainer_log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if "loss" in line]
    assert len(losses) == 8 and sum(losses[-3:]) < sum(losses[:3]), losses
    again = world.play(variables=asked, max_steps=16, logging_steps=2, learning_rate=1e-3)
    assert again.rc == 0 and again.changed == []
    return output


@pytest.mark.parametrize(
    ("recipe", "variables", "left"),
    [
        ("qlora_sft", {}, ["adapter_model.safetensors"]),
        ("dpo", PREFERENCES, ["adapter_model.safetensors"]),
    ],
)
def test_it_trains(world: World, demo: Demo, recipe: str, variables: dict[str, t.Any], left: list[str]) -> None:
    train(world, recipe, variables, left)


def test_pairs_are_refused_where_single_answers_are_due_and_the_other_way_round(world: World, demo: Demo) -> None:
    single = world.play(variables={"train_recipe": "dpo"})
    assert single.rc != 0 and "learns from pairs of answers" in single.message
    pairs = world.play(variables={"train_recipe": "lora_sft", **PREFERENCES})
    assert pairs.rc != 0 and "learns from single answers" in pairs.message
