# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""States: what a run is, what it is as a whole, what comes next, and damage to its results that is seen."""

from __future__ import annotations

import os
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _state
from ansible_collections.llmops.finetune.plugins.module_utils._engine import files, state


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test can see what fsync does; it costs seconds here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


# --- decisions ---


@pytest.mark.parametrize(
    ("alive", "written", "expected"),
    [
        (True, "", "running"),
        (True, "running", "running"),
        (True, "failed", "running"),
        (True, "finished", "running"),
        (False, "", "staged"),
        (False, "running", "interrupted"),
        (False, "interrupted", "interrupted"),
        (False, "what?", "interrupted"),
        (False, "finished", "finished"),
        (False, "failed", "failed"),
        (False, "stopped", "stopped"),
    ],
)
def test_a_run_is_what_lives_and_what_was_written(alive: bool, written: str, expected: str) -> None:
    assert state.decide(alive=alive, written=written) == expected


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["running"], "running"),
        (["finished", "finished"], "finished"),
        (["running", "finished"], "running"),
        (["running", "failed"], "failed"),
        (["running", "interrupted"], "running"),
        (["running", "absent"], "running"),
        (["interrupted", "stopped"], "interrupted"),
        (["finished", "interrupted"], "interrupted"),
        (["finished", "stopped"], "stopped"),
        (["finished", "failed"], "failed"),
        (["finished", "staged"], "interrupted"),
        (["finished", "absent"], "interrupted"),
        (["staged", "absent"], "absent"),
        (["staged", "staged"], "staged"),
    ],
)
def test_a_run_as_a_whole(states: list[state.State], expected: str) -> None:
    assert _state.aggregate(states) == expected
    assert _state.aggregate(states[::-1]) == expected


@pytest.mark.parametrize(
    ("now", "step", "step_with_retry"),
    [
        ("absent", "start", "start"),
        ("staged", "start", "start"),
        ("running", "watch", "watch"),
        ("interrupted", "start", "start"),
        ("failed", "refuse", "start"),
        ("stopped", "nothing", "start"),
        ("finished", "nothing", "nothing"),
    ],
)
def test_what_an_apply_does_next(now: state.State, step: str, step_with_retry: str) -> None:
    assert _state.next_step(now, retry=False) == step
    assert _state.next_step(now, retry=True) == step_with_retry


# --- a folder ---


@pytest.fixture
def run(tmp_path: Path) -> state.Run:
    made = state.Run(tmp_path / "x-00000000")
    made.output.mkdir(parents=True)
    return made


def test_a_run_is_observed_from_its_files(run: state.Run) -> None:
    assert run.id == "x-00000000"
    assert state.observe(run) == "absent"
    files.write_json(run.record, {"run": run.id})
    assert state.observe(run) == "staged"
    files.write_json(run.state, {"state": "running"})
    assert state.observe(run) == "interrupted"
    held = files.lock(run.lock)
    assert held is not None
    assert state.observe(run) == "running"
    os.close(held)
    run.state.write_text('{"state": "fini', encoding="utf-8")
    assert state.observe(run) == "interrupted", "it began, and a torn file does not tell its end"
    run.state.unlink()
    assert state.observe(run) == "staged"
    run.logs.mkdir()
    run.log(1).touch()
    assert state.observe(run) == "interrupted"


RESULTS = {"adapter_model.safetensors": b"weights" * 100, "adapter_config.json": b"{}", "nested/tokenizer.json": b"[]"}


@pytest.fixture
def finished(run: state.Run) -> state.Run:
    for name, content in {**RESULTS, "checkpoint-5/model.safetensors": b"x"}.items():
        path = run.output / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    files.write_json(run.artefacts, state.inventory(run))
    return run


def test_whole_results_have_no_damage_and_checkpoints_are_not_results(finished: state.Run) -> None:
    assert set(files.read_json(finished.artefacts)) == {f"output/{name}" for name in RESULTS}
    assert state.damaged(finished) == state.damaged(finished, full=True) == []
    (finished.output / "checkpoint-5/model.safetensors").unlink()
    assert state.damaged(finished) == []


def test_touched_or_copied_back_results_are_whole(finished: state.Run) -> None:
    weights = finished.output / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content)
    os.utime(weights, (1, 1))
    assert state.damaged(finished) == []


def delete(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def flip_a_byte_and_restore_the_times(path: Path) -> None:
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def replace_by_another_of_the_same_size(path: Path) -> None:
    before = path.stat()
    new = path.with_name("new")
    new.write_bytes(b"W" * before.st_size)
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(new, path)


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", sorted(RESULTS))
@pytest.mark.parametrize(
    ("tamper", "says"),
    [
        (delete, "is gone"),
        (truncate, "bytes, the run left"),
        (append, "bytes, the run left"),
        (flip_a_byte_and_restore_the_times, "has other content"),
        (replace_by_another_of_the_same_size, "has other content"),
        (replace_by_a_folder, "is gone"),
    ],
)
def test_damage_is_named(finished: state.Run, name: str, tamper: t.Callable[[Path], None], says: str) -> None:
    tamper(finished.output / name)
    for full in (False, True):
        (fault,) = state.damaged(finished, full=full)
        assert fault.startswith(f"output/{name} ")
        assert says in fault


@pytest.mark.parametrize("text", ["", "{", "[]", None])
def test_results_without_their_digests_are_not_trusted(finished: state.Run, text: str | None) -> None:
    if text is None:
        finished.artefacts.unlink()
    else:
        finished.artefacts.write_text(text, encoding="utf-8")
    assert state.damaged(finished) == ["artefacts.json is gone or unreadable"]


# --- JSON files ---


def test_a_json_file_is_replaced_at_once_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    inode = path.stat().st_ino
    files.write_json(path, {"a": 2}, mode=0o600)
    assert files.read_json(path) == {"a": 2}
    assert path.stat().st_ino != inode
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_value_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    assert files.read_json(path) == {"a": 1}


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["absent", "staged"], "start"),
        (["running", "running"], "watch"),
        (["running", "interrupted"], "start"),
        (["running", "staged"], "start"),
        (["running", "finished"], "watch"),
        (["finished", "finished"], "nothing"),
        (["finished", "interrupted"], "start"),
        (["stopped", "stopped"], "nothing"),
        (["running", "failed"], "refuse"),
    ],
)
def test_all_nodes_take_the_next_step_together(states: list[state.State], expected: str) -> None:
    assert _state.joint_step(states, retry=False) == expected
