# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A play that is refused: nothing is touched, and a person reads what to change."""

from __future__ import annotations

import json
import os
import typing as t
from pathlib import Path

import pytest

from .conftest import Demo, World, tree

BROKEN = {"instruction": "Why?"}
"""A record without an answer."""


@pytest.mark.parametrize(
    ("variables", "where", "change"),
    [
        ({"train_set": "quantization_bit=3"}, "train_set, key quantization_bit", "change quantization_bit"),
        ({"train_nodes": 2}, "train_nodes of localhost", "llmops.finetune.provision"),
        ({"train_datasets": [{"file": "{}/a.jsonl"}]}, "record 2", "output"),
    ],
)
def test_a_refused_play_touches_nothing_and_names_variable_and_remedy(
    world: World, demo: Demo, tmp_path: Path, variables: dict[str, t.Any], where: str, change: str
) -> None:
    record = {"instruction": "Why?", "output": "So."}
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(record)}\n{json.dumps(BROKEN)}\n", encoding="utf-8")
    given = json.loads(json.dumps(variables).replace("{}", str(tmp_path)))
    watched = [path for path in world.clone.iterdir() if path.name not in (".venv", ".git")]
    watched += [world.root, world.leases]  # what is the machine's, another worker may touch meanwhile
    before = tree(*watched)
    refused = world.play("train.yml", variables=given)
    assert tree(*watched) == before
    assert refused.rc == 2 and refused.changed == []
    assert where in refused.message.partition("where: ")[2]
    assert change in refused.message.partition("change: ")[2]
    assert "Traceback" not in refused.text


def test_an_engine_without_a_lock_is_planned_for_assumed_gpus_alone(world: World, demo: Demo, tmp_path: Path) -> None:
    """On a node that says it has two GPUs."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nfor i in 0 1; do echo $i, GPU-$i, H100, 81559, 9.0, 570.1; done\n", encoding="utf-8")
    tool.chmod(0o755)
    there = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    asked: dict[str, t.Any] = {"train_recipe": "full_sft", "train_engine": "megatron", "train_state": "staged"}
    assumed = {**asked, "train_assume_gpus": "2xH100"}
    checked = world.play("train.yml", "--check", variables=assumed, environment=there, tensor_model_parallel_size=2)
    assert checked.rc == 0 and "Engine megatron is unproved" in checked.text, checked.text
    assert ("create", f"{world.folder(checked)}/train.yaml") in checked.changes
    assert checked.plan["nodes"]["localhost"]["launch"]["environment"]["USE_MCA"] == "1"
    for mode in (["--check"], []):
        refused = world.play("train.yml", *mode, variables=asked, environment=there, tensor_model_parallel_size=2)
        assert refused.rc == 2 and refused.changed == [] and not world.folder(checked).exists()
        assert "where:  train_lock" in refused.message and "mcore-adapter" in refused.message
