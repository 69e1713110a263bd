# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Failures that are provoked in real training, and what a person is told of each: now, and of yesterday's run. More of
them are in `make soak PART=faults`."""

from __future__ import annotations

import contextlib
import os
import signal
import typing as t
from pathlib import Path

import pytest

from .conftest import BASE, Demo, Outcome, World, processes
from .test_faults import LONG, rank_process, step, wait_for

UNSAVED = {**LONG, "save_steps": 2000}
"""Before its first save a run has nothing to go on from: it is tried as often as train_max_restarts says."""

Begun = t.Callable[..., Path]


@pytest.fixture
def begun(world: World, demo: Demo) -> t.Iterator[Begun]:
    """Runs that are some steps on and may be tried again so often. What is left of them goes with the test."""
    folders = []

    def begin(name: str, restarts: int = 0, **short: t.Any) -> Path:
        variables = {"train_name": name, "train_wait": False, "train_max_restarts": restarts}
        started = world.play(variables=variables, **short)
        assert started.rc == 0, started.text
        folders.append(world.folder(started))
        wait_for(lambda: step(folders[-1]) > 2)
        return folders[-1]

    yield begin
    for pid in [pid for folder in folders for pid in processes(folder.name)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def follow(world: World, name: str, **short: t.Any) -> Outcome:
    """The same command as the one that started a run: it follows that run."""
    done = world.play(variables={"train_name": name, "train_max_restarts": 0}, **short)
    assert done.rc != 0 and "Traceback (most" not in done.message, done.text
    return done


@pytest.fixture
def scarce() -> t.Iterator[t.Callable[[list[int]], None]]:
    """Processes that may take 300 MB more and no further: the kernel ends one of them. Only root may ask for it."""
    name = f"llmops-test-{os.getpid()}"
    first = Path("/sys/fs/cgroup")
    if (first / "cgroup.controllers").exists():
        (first / "cgroup.subtree_control").write_text("+memory")
        group, limit = first / name, "memory.max"
    else:
        group, limit = first / "memory" / name, "memory.limit_in_bytes"
    group.mkdir()
    (group / limit).write_text(str(300 * 10**6))

    def move(pids: list[int]) -> None:
        for pid in pids:
            (group / "cgroup.procs").write_text(str(pid))

    yield move
    wait_for(lambda: not (group / "cgroup.procs").read_text())
    group.rmdir()


def test_a_node_without_memory(world: World, begun: Begun, scarce: t.Callable[[list[int]], None]) -> None:
    """The second attempt begins with a supervisor that may have less of it than a trainer needs."""
    folder = begun("starved", 1, **UNSAVED)
    scarce(processes(folder.name))
    os.kill(rank_process(folder), signal.SIGKILL)
    done = follow(world, "starved", **UNSAVED)
    assert "the node's kernel ended processes for want of memory" in done.message, done.message
    assert "failed in attempt 2" in done.message and "dataloader_num_workers" in done.message
    told = world.play("llmops.finetune.explain", variables={"train_run_id": "starved-*"})
    text = " ".join(told.text.split())  # long lines are broken anywhere
    assert "the node's kernel ended processes for want of memory" in text, "of yesterday's run"


def test_a_full_disk(world: World, begun: Begun) -> None:
    fill(world, begun, "optimizer.pt")


def fill(world: World, begun: Begun, name: str) -> None:
    """A file of a save that takes no byte: what the kernel answers is what it answers on a full disk."""
    folder = begun("full", **LONG)
    save = folder / "output" / f"checkpoint-{(step(folder) // 20 + 3) * 20}"
    save.mkdir()
    save.chmod(0o777)
    (save / name).symlink_to("/dev/full")
    done = follow(world, "full", **LONG)
    assert "the disk or a quota is full" in done.message and "save_total_limit" in done.message, done.message


def test_a_package_that_does_not_fit(world: World, demo: Demo) -> None:
    broken = BASE / "broken"
    (broken / "peft").mkdir(parents=True, exist_ok=True)
    (broken / "peft" / "__init__.py").write_text("from torch import what_it_has_not\n")
    variables = {"train_name": "misfit", "train_max_restarts": 0}
    done = world.play(variables=variables, environment={"PYTHONPATH": str(broken)})
    assert done.rc != 0 and "A package is missing from the environment or does not fit." in done.message, done.text


def test_what_would_fail_again_is_not_tried_again(world: World, demo: Demo) -> None:
    once(world, "wrong", "The trainer refused its input", lr_scheduler_kwargs={"no_such": 1})
    again = world.play(variables={"train_name": "wrong"}, lr_scheduler_kwargs={"no_such": 1})
    assert again.rc != 0 and "failed in attempt 1" in again.message


def once(world: World, name: str, told: str, asked: dict[str, t.Any] | None = None, **short: t.Any) -> None:
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    done = world.play(variables={"train_name": name, **(asked or {})}, environment=nowhere, **short)
    assert done.rc != 0 and told in done.message and "change:" in done.message, done.text
    assert done.run["attempt"] == 1 and "train_retry=true" in done.message and "Traceback (most" not in done.message
