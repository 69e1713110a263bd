# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A quarter of the recipes, drawn by RECIPES_SEED, trains for real on the CPU; `make soak PART=recipes` trains all."""

from __future__ import annotations

import os
import random

import pytest

from .conftest import Demo, World
from .recipes import RUNS, apply, data, finished

ELSEWHERE = {"reward", "ppo", "multimodal_sft", "lora_sft", "full_sft"}
"""Those that other files train: test_ppo.py, test_media.py, test_demo_run.py, test_engines.py."""
DRAWN = sorted(
    random.Random(os.environ.get("RECIPES_SEED", "5")).sample(sorted(RUNS.keys() - ELSEWHERE), len(RUNS) // 4)
)


@pytest.mark.parametrize("name", DRAWN)
def test_it_trains(world: World, demo: Demo, name: str) -> None:
    finished(world, apply(world, demo, name, name.replace("_", "-")), name)


def test_the_same_again_changes_nothing(world: World, demo: Demo) -> None:
    again = apply(world, demo, DRAWN[0], DRAWN[0].replace("_", "-"))
    assert again.rc == 0 and again.changed == []


def test_pairs_are_refused_where_single_answers_are_due_and_the_other_way_round(world: World, demo: Demo) -> None:
    single = world.play(variables={"train_recipe": "dpo"})
    assert single.rc != 0 and "learns from pairs of answers" in single.message
    pairs = world.play(variables={"train_recipe": "lora_sft", **data("dpo")})
    assert pairs.rc != 0 and "learns from single answers" in pairs.message
