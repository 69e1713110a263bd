# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where DeepSpeed builds: what a killed build left goes, what another run is at stays."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.llmops.finetune.plugins.module_utils._engine import builds


def left(folder: Path) -> Path:
    lock = folder / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()
    return lock


def test_the_lock_of_a_killed_build_is_removed(tmp_path: Path) -> None:
    lock = left(tmp_path / "builds")
    with builds.shared(str(tmp_path / "builds")):
        assert not lock.exists()


def test_a_build_of_a_living_run_is_left_alone_and_both_go_on(tmp_path: Path) -> None:
    with builds.shared(str(tmp_path)):
        lock = left(tmp_path)
        with builds.shared(str(tmp_path)):
            assert lock.exists()
        with builds.shared(str(tmp_path)):
            assert lock.exists()


def test_the_folder_is_made(tmp_path: Path) -> None:
    with builds.shared(str(tmp_path / "cache/builds/digest")):
        assert (tmp_path / "cache/builds/digest").is_dir()


def test_where_nothing_is_built_nothing_is_made(tmp_path: Path) -> None:
    with builds.shared(""):
        assert not list(tmp_path.iterdir())
