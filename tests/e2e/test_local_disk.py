# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A disk as a place for runs, for real: a loop device stands for it. Needs root."""

from __future__ import annotations

import subprocess
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _disks
from ansible_collections.llmops.finetune.plugins.module_utils._changes import Changes
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.modules import local_disk


@pytest.fixture
def disk(tmp_path: Path) -> t.Iterator[str]:
    with open(tmp_path / "disk", "wb") as file:
        file.truncate(64 << 20)
    made = subprocess.run(
        ["losetup", "--find", "--show", tmp_path / "disk"], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, f"a loop device is needed, and root: {made.stderr}"
    path = made.stdout.strip()
    yield path
    subprocess.run(["umount", path], check=False, capture_output=True)
    subprocess.run(["losetup", "--detach", path], check=True)


def test_a_blank_disk_is_made_once_and_mounted_again(
    disk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_disks, "FSTAB", tmp_path / "fstab")
    mount = tmp_path / "data"

    def apply() -> list[tuple[str, str]]:
        """In check mode, then for real; both tell the same."""
        dry, made = Changes(dry=True), Changes(dry=False)
        for changes in (dry, made):
            local_disk.apply([disk], mount, changes)
        assert dry.made == made.made
        return [(change["action"], change["path"]) for change in made.made]

    assert apply() == [("create", str(mount)), ("update", disk), ("update", str(tmp_path / "fstab"))]
    assert mount.is_mount() and oct(mount.stat().st_mode)[-4:] == "1777"
    (mount / "kept").touch()
    assert apply() == []
    subprocess.run(["umount", mount], check=True)
    assert apply() == [("update", disk)] and (mount / "kept").exists(), "what is on it is not made anew"
    subprocess.run(["umount", mount], check=True)
    (mount / "file").touch()
    with pytest.raises(FinetuneError, match="There are files in"):
        apply()


def test_a_disk_with_something_on_it_is_left_alone(disk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_disks, "FSTAB", tmp_path / "fstab")
    subprocess.run(["mkfs.ext4", "-q", "-L", "theirs", disk], check=True)
    with pytest.raises(FinetuneError, match=f"{disk}: ext4, label theirs"):
        local_disk.apply([disk], tmp_path / "data", Changes(dry=False))
    assert not (tmp_path / "data").exists() and not (tmp_path / "fstab").exists()
