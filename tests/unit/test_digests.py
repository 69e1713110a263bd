# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Digests that are remembered: right whatever happens to files, and no file is read twice."""

from __future__ import annotations

import hashlib
import os
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _digests


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(_digests, "FRESH_SECONDS", -1.0)
    return tmp_path / "cache"


def of(folder: Path, *names: str) -> list[str]:
    return _digests.sha256([str(folder / name) for name in names], _digests.of_account("data.jsonl"))


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_file_is_read_once(tmp_path: Path, read: list[str]) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name, encoding="utf-8")
    assert of(tmp_path, "a", "b") == [sha("a"), sha("b")]
    assert of(tmp_path, "b", "a") == [sha("b"), sha("a")]
    assert read == ["a", "b"]


def other_content(path: Path) -> None:
    path.write_text("B", encoding="utf-8")


def with_the_old_time(path: Path) -> None:
    before = path.stat()
    path.write_text("B", encoding="utf-8")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def another_file(path: Path) -> None:
    path.with_name("new").write_text("B", encoding="utf-8")
    os.replace(path.with_name("new"), path)


@pytest.mark.parametrize("change", [other_content, with_the_old_time, another_file])
def test_a_changed_file_is_read_again(tmp_path: Path, read: list[str], change: t.Callable[[Path], None]) -> None:
    path = tmp_path / "a"
    path.write_text("a", encoding="utf-8")
    assert of(tmp_path, "a") == [sha("a")]
    os.utime(path, (1, 1))
    assert of(tmp_path, "a") == [sha("a")]
    change(path)
    assert of(tmp_path, "a") == [sha("B")]
    assert read == ["a"] * 3


def test_a_file_that_was_just_written_is_not_remembered(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be written once more within the same tick of the clock."""
    monkeypatch.setattr(_digests, "FRESH_SECONDS", 60.0)
    (tmp_path / "a").write_text("a", encoding="utf-8")
    assert of(tmp_path, "a") == of(tmp_path, "a") == [sha("a")]
    assert read == ["a", "a"]


@pytest.mark.parametrize("harm", ["torn", "no dict", "other values", "a file where the folder is due"])
def test_without_a_memory_files_are_read(tmp_path: Path, cache: Path, read: list[str], harm: str) -> None:
    (tmp_path / "a").write_text("a", encoding="utf-8")
    if harm == "a file where the folder is due":
        cache.write_text("", encoding="utf-8")
    else:
        of(tmp_path, "a")
        (memory,) = (cache / "llmops.finetune").iterdir()
        assert memory.stat().st_mode & 0o077 == 0
        told = {"torn": '{"a', "no dict": "[]", "other values": f'{{"{tmp_path}/a": [1]}}'}[harm]
        memory.write_text(told, encoding="utf-8")
    read.clear()
    assert of(tmp_path, "a") == [sha("a")]
    assert read == ["a"]


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError) as gone:
        of(tmp_path, "none")
    assert gone.value.filename == str(tmp_path / "none")
