# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checkpoints in one folder for all nodes: rank 0 alone changes it, the others wait until they see what it did.

A node that sees late has a copy of the folder here, which is brought up to date while it waits.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._engine import checkpoint, peers, shared

from .test_exchange import Memory


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(shared, "PATIENCE_SECONDS", 0.4)
    monkeypatch.setattr(shared, "POLL_SECONDS", 0.01)


def save(output: Path, step: int, *, whole: bool = True) -> Path:
    path = output / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text("{}")
    for rank in range(2):
        (path / f"rank_{rank}").write_text("shard")
    if whole:
        checkpoint.mark(path)
    return path


def at_once(*work: t.Callable[[], t.Any]) -> list[t.Any]:
    """What each comes to, or the error it ends with."""
    found: dict[int, t.Any] = {}

    def do(number: int) -> None:
        try:
            found[number] = work[number]()
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=do, args=(number,), daemon=True) for number in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    return [found.get(number, "waits") for number in range(len(work))]


def restored(first: Path, second: Path, resumes: bool = True) -> list[t.Any]:
    """What two nodes go on from. The paths: the folder as each of them sees it."""
    store = Memory()
    nodes = [peers.Node(node, 0, node, 2, 2) for node in range(2)]
    return at_once(
        lambda: shared.restore(first, nodes[0], store, resumes=resumes),
        lambda: shared.restore(second, nodes[1], store, resumes=resumes),
    )


def test_all_go_on_from_the_newest_whole_checkpoint_and_what_is_torn_is_gone(tmp_path: Path) -> None:
    save(tmp_path, 4)
    save(tmp_path, 8)
    save(tmp_path, 12, whole=False)
    (tmp_path / ".node-0-abc").touch()
    log = "".join(json.dumps({"current_steps": step}) + "\n" for step in (4, 8, 9))
    (tmp_path / "trainer_log.jsonl").write_text(log)
    assert restored(tmp_path, tmp_path) == [str(tmp_path / "checkpoint-8")] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-4", "checkpoint-8", "trainer_log.jsonl"]
    assert json.loads((tmp_path / "trainer_log.jsonl").read_text().splitlines()[-1]) == {"current_steps": 8}


@pytest.mark.parametrize("resumes", [True, False])
def test_from_the_start_there_is_no_checkpoint_at_all(tmp_path: Path, resumes: bool) -> None:
    """LLaMA-Factory would take the torn one."""
    save(tmp_path, 8, whole=not resumes)
    assert restored(tmp_path, tmp_path, resumes) == [None, None]
    assert checkpoint.found(tmp_path) == []


def test_nobody_begins_before_all_see_what_rank_0_did(tmp_path: Path) -> None:
    first, late = tmp_path / "first", tmp_path / "late"
    save(first, 8)
    shutil.copytree(first, late)
    (late / "checkpoint-8" / checkpoint.MARK).unlink()
    ways = restored(first, late)
    assert ways[0] == "waits" and isinstance(ways[1], shared.NotSeen), ways
    assert str(late) in str(ways[1]) and "step 8" in str(ways[1])


@pytest.mark.parametrize("late", ["a checkpoint", "a removal", "the mount"])
def test_what_is_seen_late_is_waited_for(tmp_path: Path, late: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "PATIENCE_SECONDS", 5)
    first, second = tmp_path / "first", tmp_path / "second"
    save(first, 8)
    if late == "a removal":
        shutil.copytree(first, second)
        save(second, 12, whole=False)
    elif late == "a checkpoint":
        second.mkdir()

    def change() -> None:
        if late == "a removal":
            shutil.rmtree(second / "checkpoint-12")
        else:
            shutil.copytree(first, second, dirs_exist_ok=True)

    timer = threading.Timer(0.2, change)
    timer.start()
    assert restored(first, second) == [str(first / "checkpoint-8"), str(second / "checkpoint-8")]
    assert [path.name for path in checkpoint.found(second)] == ["checkpoint-8"], "by then"
    timer.join()


class Together(shared.SharedNodes):
    """The group of first ranks without torch."""

    def __init__(self, node: int, told: dict[int, t.Any], met: threading.Barrier) -> None:
        self.here = peers.Node(node, 0, node, 2, 2)
        self.told, self.met = told, met

    def gather(self, seen: t.Any) -> list[t.Any]:
        self.told[self.here.node] = seen
        self.met.wait(5)
        return [self.told[node] for node in range(2)]


def completed(first: Path, second: Path) -> list[t.Any]:
    told: dict[int, t.Any] = {}
    nodes = [Together(node, told, threading.Barrier(1)) for node in range(2)]
    nodes[0].met = nodes[1].met = threading.Barrier(2)
    return at_once(lambda: nodes[0].complete(first), lambda: nodes[1].complete(second))


def test_a_checkpoint_is_marked_once(tmp_path: Path) -> None:
    path = save(tmp_path, 8, whole=False)
    assert completed(path, path) == [None, None]
    assert checkpoint.is_complete(path) and "nodes" not in checkpoint.read_mark(path)
    assert set(checkpoint.read_mark(path)["files"]) == {"trainer_state.json", "rank_0", "rank_1"}


def test_what_rank_0_does_not_see_of_another_node_leaves_the_checkpoint_unmarked(tmp_path: Path) -> None:
    first, second = save(tmp_path / "a", 8, whole=False), save(tmp_path / "b", 8, whole=False)
    (first / "rank_1").write_text("sha")
    failed, other = completed(first, second)
    assert isinstance(failed, shared.NotSeen) and other is None
    assert not (first / checkpoint.MARK).exists() and not (second / checkpoint.MARK).exists()
    (first / "rank_1").unlink()
    assert isinstance(completed(first, second)[0], shared.NotSeen)


def test_a_node_that_sees_less_does_not_make_files_smaller() -> None:
    assert shared.union([{"a": 3, "b": 0}, {"b": 5}, {}]) == {"a": 3, "b": 5}
