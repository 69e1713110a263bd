# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""train_engine for real: two ranks on the CPUs of this node train whole weights. `make soak` has the other engines."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import typing as t
from pathlib import Path

import pytest

from .conftest import BASE, REPOSITORY, Demo, Outcome, World
from .test_faults import killer, write_plan

FEW: dict[str, t.Any] = {"max_steps": 6, "save_steps": 2, "logging_steps": 1}
MODEL = "model.safetensors"
_SHARD = "global_step4/zero_pp_rank_1_mp_rank_00_optim_states.pt"
PARTS = {
    "ddp": "optimizer.pt",
    "zero0": "global_step4/mp_rank_00_model_states.pt",
    "zero2": _SHARD,
    "zero2_offload": _SHARD,
    "zero3": _SHARD,
    "zero3_offload": _SHARD,
    "fsdp2": "optimizer.bin",
}
"""What checkpoint-4 of an engine holds, and of no engine that is not like it."""


def apply(world: World, engine: str, name: str, environment: dict[str, str] | None = None) -> Outcome:
    variables = {"train_recipe": "full_sft", "train_engine": engine, "train_processes_per_node": 2, "train_name": name}
    return world.play(variables=variables, environment=environment, **FEW)


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "output/trainer_log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def whole(world: World, engine: str) -> Path:
    """Train with the engine and look at what is there; the run's folder."""
    done = apply(world, engine, f"whole-{engine}")
    assert done.rc == 0, done.text
    folder = world.folder(done)
    assert done.plan["resolved"]["engine"] == engine and f"engine  {engine}" in done.text
    assert len(losses(folder)) == 6
    assert (folder / "output" / MODEL).stat().st_size > 100_000
    mark = json.loads((folder / "output/checkpoint-4/complete.json").read_text())
    assert {PARTS[engine], MODEL, "rng_state_0.pth", "rng_state_1.pth"} <= mark["files"].keys()
    again = apply(world, engine, f"whole-{engine}")
    assert again.rc == 0 and again.changed == [], again.text
    return folder


def killed(world: World, engine: str) -> Path:
    """The same with a rank that dies once its part of checkpoint-4 is written and the checkpoint is not yet whole."""
    plan = BASE / f"killer-{engine}.json"
    write_plan(plan, [["checkpoint-4", PARTS[engine]]])
    done = apply(world, engine, f"killed-{engine}", killer(plan))
    assert done.rc == 0, done.text
    went = (done.run["attempt"], done.run["from_step"])
    assert went == (2, 2), f"{went}\n{done.text}"
    return world.folder(done)


def test_zero3_goes_on_from_its_shards_and_learns_what_fsdp2_learns(world: World, demo: Demo) -> None:
    """`make soak` compares the weights of what went on with those of a run that nothing disturbed."""
    assert losses(killed(world, "zero3")) == pytest.approx(losses(whole(world, "fsdp2")), abs=1e-4)


def test_what_a_node_sends_arrives_though_the_other_one_is_late(demo: Demo) -> None:
    """The exchange of `train_preflight=full`, with gloo: who has received all keeps what it sends till it has come."""
    python = json.loads((demo.folder / "launch.json").read_text())["python"]
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = str(door.getsockname()[1])
    command = [python, str(REPOSITORY / "tests/e2e/late_node.py")]
    environment = {**os.environ, "PYTHONPATH": str(demo.folder), "CUDA_VISIBLE_DEVICES": ""}
    nodes = [
        subprocess.Popen([*command, node, port], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for node in "01"
    ]
    told = [node.communicate(timeout=120)[0].decode() for node in nodes]
    assert [text.splitlines()[-1] for text in told] == ["exchanged", "exchanged"], told


def test_what_no_node_here_can_run_is_refused_before_anything_is_touched(world: World, demo: Demo) -> None:
    """LLaMA-Factory itself would wait without end for Ray on CPUs."""
    refused = apply(world, "ray", "refused")
    assert refused.rc != 0
    assert "without end" in refused.message and "train_engine" in refused.message
    assert not list((world.root / "runs").glob("refused-*"))
