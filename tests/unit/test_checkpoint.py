# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checkpoints: whole only with their mark and every file in its size; what is torn goes before an attempt."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._engine import checkpoint

FILES = (
    "adapter_model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "global_step5/mp_rank_00_model_states.pt",
)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test can see what fsync does; it costs seconds here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def save(output: Path, step: int, whole: bool = True) -> Path:
    folder = output / f"checkpoint-{step}"
    for name in FILES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"content of " + name.encode())
    if whole:
        checkpoint.mark(folder)
    return folder


def test_a_marked_checkpoint_is_whole(tmp_path: Path) -> None:
    folder = save(tmp_path, 5)
    assert checkpoint.is_complete(folder)
    mark = json.loads((folder / checkpoint.MARK).read_text(encoding="utf-8"))
    assert (mark["step"], set(mark["files"])) == (5, set(FILES))


def test_an_unmarked_checkpoint_is_not_whole(tmp_path: Path) -> None:
    assert not checkpoint.is_complete(save(tmp_path, 5, whole=False))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "short", "long", "empty"])
def test_any_file_that_is_missing_or_has_another_size_tears_it(tmp_path: Path, name: str, damage: str) -> None:
    older, folder = save(tmp_path, 3), save(tmp_path, 5)
    path = folder / name
    if damage == "missing":
        path.unlink()
    else:
        size = path.stat().st_size
        os.truncate(path, {"short": size - 1, "long": size + 1, "empty": 0}[damage])
    assert not checkpoint.is_complete(folder)
    assert checkpoint.newest_complete(tmp_path) == older


@pytest.mark.parametrize(
    "mark", ["", "{", "[]", "{}", '{"files": []}', '{"files": {}}', '{"files": {"optimizer.pt": 23}}']
)
def test_a_mark_that_does_not_list_the_trainer_state_is_none(tmp_path: Path, mark: str) -> None:
    folder = save(tmp_path, 5)
    (folder / checkpoint.MARK).write_text(mark, encoding="utf-8")
    assert not checkpoint.is_complete(folder)


@pytest.mark.parametrize("count", range(len(FILES) + 1))
def test_a_save_that_was_cut_short_after_any_file_is_never_used(tmp_path: Path, count: int) -> None:
    whole = save(tmp_path, 5)
    torn = save(tmp_path, 10, whole=False)
    for name in FILES[count:]:
        (torn / name).unlink()
    assert checkpoint.prepare(tmp_path) == whole
    assert not torn.exists()
    assert checkpoint.is_complete(whole)


def test_found_goes_by_number_and_sees_only_checkpoints(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file", encoding="utf-8")
    assert [checkpoint.step_of(path) for path in checkpoint.found(tmp_path)] == [9, 10, 100]
    assert checkpoint.newest_complete(tmp_path) == tmp_path / "checkpoint-100"
    assert checkpoint.found(tmp_path / "nowhere") == []
    assert checkpoint.step_of(tmp_path / "checkpoint-best") == -1


def test_prune_keeps_the_newest_whole_ones_and_leaves_torn_ones_alone(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        save(tmp_path, step, whole=step != 10)
    checkpoint.prune(tmp_path, 2)
    assert [path.name for path in checkpoint.found(tmp_path)] == ["checkpoint-10", "checkpoint-15", "checkpoint-20"]


def test_a_removal_cut_short_leaves_nothing_that_looks_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path, 5)

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.remove(folder)
    assert folder.is_dir()
    assert not checkpoint.is_complete(folder)


def test_prepare_removes_what_an_unfinished_end_left_and_cuts_the_log(tmp_path: Path) -> None:
    whole = [save(tmp_path, 3), save(tmp_path, 5)]
    save(tmp_path, 8, whole=False)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"half")
    (tmp_path / "runs").mkdir()
    log = tmp_path / "trainer_log.jsonl"
    lines = [json.dumps({"current_steps": step, "loss": 1.0}) for step in (1, 3, 5, 6, 8)]
    log.write_text("\n".join([*lines[:2], "torn {", "[]", '{"loss": 1}', *lines[2:], '{"current_st']), encoding="utf-8")
    assert checkpoint.prepare(tmp_path) == whole[-1]
    assert sorted(tmp_path.iterdir()) == sorted([*whole, log])
    assert log.read_text(encoding="utf-8").splitlines() == lines[:3]
    before = log.read_text(encoding="utf-8")
    assert checkpoint.prepare(tmp_path) == whole[-1], "a second time changes nothing"
    assert log.read_text(encoding="utf-8") == before


def test_without_a_whole_checkpoint_a_run_begins_from_nothing(tmp_path: Path) -> None:
    output = tmp_path / "output"
    assert checkpoint.prepare(output) is None
    save(output, 5, whole=False)
    (output / "trainer_log.jsonl").write_text('{"current_steps": 1}\n', encoding="utf-8")
    assert checkpoint.prepare(output) is None
    assert (output / "trainer_log.jsonl").read_text(encoding="utf-8") == ""
    assert [path.name for path in output.iterdir()] == ["trainer_log.jsonl"]


def test_prepare_does_not_follow_links(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    output = tmp_path / "output"
    output.mkdir()
    (output / "link").symlink_to(elsewhere)
    checkpoint.prepare(output)
    assert (elsewhere / "kept").exists()
    assert not (output / "link").is_symlink()


def test_a_stage_that_cannot_resume_begins_with_nothing(tmp_path: Path) -> None:
    output = tmp_path / "output"
    save(output, 20)
    (output / "trainer_log.jsonl").write_text('{"current_steps": 10}\n', encoding="utf-8")
    assert checkpoint.prepare(output, resumes=False) is None
    assert [path.name for path in output.iterdir()] == ["trainer_log.jsonl"]
    assert (output / "trainer_log.jsonl").read_text(encoding="utf-8") == ""
