# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make train` in a fresh clone, and the same command again."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from .conftest import BASE, CONTROLLER_ONLY, REPOSITORY, Demo, World, tree

LORA_RANK = {"train_args": {"lora_rank": 16}}
"""What group_vars/trainers.yml says."""


def node_python(world: World, demo: Demo) -> str:
    return str(json.loads((demo.folder / "launch.json").read_text())["python"])


def test_it_trains_an_adapter_with_log_and_plot(demo: Demo) -> None:
    output = demo.folder / "output"
    steps = [json.loads(line) for line in (output / "trainer_log.jsonl").read_text().splitlines()]
    assert (output / "adapter_model.safetensors").stat().st_size > 10_000
    assert (output / "training_loss.png").read_bytes()[:4] == b"\x89PNG"
    assert steps[-1]["current_steps"] == steps[-1]["total_steps"] > 50
    assert json.loads((output / "adapter_config.json").read_text())["r"] == 16


def test_what_its_rank_took_is_one_of_the_results(demo: Demo) -> None:
    """On CPUs that is memory of the host alone, and nothing was predicted."""
    told = json.loads((demo.folder / "output" / "memory.json").read_text())
    (rank,) = told["measured"]
    assert told["predicted"] == {} and rank.keys() == {"rank", "attempt", "steps", "rss"}
    assert rank["steps"] > 50 and 2**28 < rank["rss"] < 2**33
    assert "output/memory.json" in json.loads((demo.folder / "artefacts.json").read_text())


def test_a_person_reads_progress_and_a_summary(demo: Demo) -> None:
    assert "is finished." in demo.text
    assert "held out" in demo.text
    assert f"{demo.folder.name}  step" in demo.text
    assert "RETRYING" not in demo.text
    assert str(demo.folder / "output" / "adapter_model.safetensors") in demo.text


def test_the_adapter_beats_base_and_unigram_on_held_out_answers(world: World, demo: Demo) -> None:
    model = demo.applied.plan["nodes"]["localhost"]["model"]["path"]
    asked = [node_python(world, demo), str(REPOSITORY / "tests/e2e/heldout.py"), "--model", str(model)]
    asked += ["--adapter", str(demo.folder / "output")]
    files = world.clone / "roles/train/files"
    asked += ["--train", str(files / "demo.jsonl"), "--heldout", str(files / "demo_heldout.jsonl")]
    answer = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    losses = json.loads(answer[answer.index("{") :])
    print(losses, file=sys.stderr)
    assert losses["adapter"] <= losses["base"] - 0.3
    assert losses["adapter"] <= losses["unigram"] - 0.3


def test_a_first_apply_executes_at_most_eight_modules(demo: Demo) -> None:
    tasks = [line["action"].rpartition(".")[2] for line in demo.applied.results]
    assert len([action for action in tasks if action not in CONTROLLER_ONLY]) <= 8


def test_check_mode_said_what_the_apply_did(demo: Demo) -> None:
    assert demo.predicted.rc == 0
    assert demo.predicted.changes == demo.applied.changes
    assert demo.predicted.changed == demo.applied.changed
    assert len(demo.applied.changes) > 5


def test_with_diff_check_mode_shows_each_path(demo: Demo) -> None:
    shown = demo.predicted.text.splitlines()
    assert [change for change in demo.predicted.changes if " ".join(change) not in shown] == []


def test_check_mode_touched_nothing(demo: Demo) -> None:
    assert demo.touched == []


def test_the_same_command_changes_nothing(world: World, demo: Demo) -> None:
    before = tree(demo.folder, world.root / "envs", world.root / "models", world.root / "datasets")
    again = world.play(variables=LORA_RANK)
    assert again.rc == 0, again.text
    assert again.changed == [] and again.changes == []
    assert again.plan["id"] == demo.folder.name
    assert tree(demo.folder, world.root / "envs", world.root / "models", world.root / "datasets") == before
    assert 1 <= len(again.on_node) <= 4, again.on_node


def test_check_mode_on_a_finished_run_says_nothing_would_change(world: World, demo: Demo) -> None:
    before = tree(world.root / "runs")
    checked = world.play("train.yml", "--check", variables=LORA_RANK)
    assert checked.rc == 0 and checked.changed == []
    assert tree(world.root / "runs") == before


def test_from_another_directory(world: World, demo: Demo) -> None:
    record = BASE / "elsewhere.jsonl"
    done = subprocess.run(
        [
            "ansible-playbook",
            world.clone / "train.yml",
            "-i",
            world.clone / "inventory",
            "-e",
            json.dumps(world.variables),
        ],
        cwd="/",
        env={**os.environ, **world.environment(record)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "changed=0" in done.stdout and demo.folder.name in done.stdout


def test_status_shows_the_run(world: World, demo: Demo) -> None:
    status = world.play("llmops.finetune.status")
    lines = next(line["result"]["lines"] for line in status.results if line["action"].endswith("train_status"))
    assert any(demo.folder.name in line and "finished" in line for line in lines)
