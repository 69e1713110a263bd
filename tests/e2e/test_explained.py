# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Failures that are provoked in real training, and what a person is told of each: now, and of yesterday's run."""

from __future__ import annotations

import os
import resource
import signal
import typing as t
from pathlib import Path

import pytest

from .conftest import BASE, Demo, Outcome, World
from .test_faults import LONG, rank_process, step, wait_for


def follow(world: World, name: str, **short: t.Any) -> Outcome:
    """The same command as the one that started a run: it follows that run."""
    done = world.play(variables={"train_name": name, "train_max_restarts": 0}, **short)
    assert done.rc != 0 and "Traceback (most" not in done.message, done.text
    return done


def begun(world: World, name: str) -> Path:
    """A run that is some steps on, and is not to be tried again."""
    started = world.play(variables={"train_name": name, "train_wait": False, "train_max_restarts": 0}, **LONG)
    assert started.rc == 0, started.text
    folder = world.folder(started)
    wait_for(lambda: step(folder) > 2)
    return folder


def test_a_killed_rank(world: World, demo: Demo) -> None:
    os.kill(rank_process(begun(world, "struck")), signal.SIGKILL)
    done = follow(world, "struck", **LONG)
    assert "A rank was killed (SIGKILL)." in done.message and "kernel log" in done.message
    told = world.play("llmops.finetune.explain", variables={"train_run_id": "struck-*"})
    assert "A rank was killed (SIGKILL)." in told.text, "of yesterday's run"


def test_a_node_without_memory(world: World, demo: Demo) -> None:
    """The rank may have no more of it than it has."""
    rank = rank_process(begun(world, "starved"))
    pages = int(Path(f"/proc/{rank}/statm").read_text().split()[0])
    limit = pages * resource.getpagesize()
    resource.prlimit(rank, resource.RLIMIT_AS, (limit, limit))
    done = follow(world, "starved", **LONG)
    assert "The node ran out of memory." in done.message, done.message


@pytest.mark.parametrize("name", ["optimizer.pt", "adapter_model.safetensors", "trainer_state.json"])
def test_a_full_disk(world: World, demo: Demo, name: str) -> None:
    """A file that takes no byte: what the kernel answers is what it answers on a full disk."""
    folder = begun(world, "full")
    save = folder / "output" / f"checkpoint-{(step(folder) // 20 + 3) * 20}"
    save.mkdir()
    save.chmod(0o777)
    (save / name).symlink_to("/dev/full")
    done = follow(world, "full", **LONG)
    world.play("llmops.finetune.train", variables={"train_name": "full", "train_state": "absent"}, **LONG)
    assert "The disk is full." in done.message and "save_total_limit" in done.message, done.message


def test_a_package_that_does_not_fit(world: World, demo: Demo) -> None:
    broken = BASE / "broken"
    (broken / "peft").mkdir(parents=True, exist_ok=True)
    (broken / "peft" / "__init__.py").write_text("from torch import what_it_has_not\n")
    variables = {"train_name": "misfit", "train_max_restarts": 0}
    done = world.play(variables=variables, environment={"PYTHONPATH": str(broken)})
    assert done.rc != 0 and "A package is missing from the environment or does not fit." in done.message, done.text


@pytest.mark.parametrize(
    ("name", "asked", "arguments", "told"),
    [
        ("far", {"train_model": "no-one/no-such-model"}, {}, "could not be had from its hub"),
        ("long", {}, {"packing": True, "cutoff_len": 4}, "No record of the dataset survived"),
        ("wrong", {}, {"lora_target": "no_such_module"}, "The trainer refused its input"),
    ],
)
def test_what_would_fail_again_is_not_tried_again(
    world: World, demo: Demo, name: str, asked: dict[str, t.Any], arguments: dict[str, t.Any], told: str
) -> None:
    done = world.play(variables={"train_name": name, **asked}, **arguments)
    assert done.rc != 0 and told in done.message and "change:" in done.message, done.text
    assert done.run["attempt"] == 1 and "train_retry=true" in done.message
