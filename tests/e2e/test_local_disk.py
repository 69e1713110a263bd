# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks as a place for runs, for real, by the module and by the role: loop devices stand for them. Needs root."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _disks
from ansible_collections.llmops.finetune.plugins.module_utils._changes import Changes
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.modules import local_disk

REPOSITORY = Path(__file__).parents[2]


def loop(folder: Path, name: str) -> t.Iterator[str]:
    with open(folder / name, "wb") as file:
        file.truncate(64 << 20)
    made = subprocess.run(["losetup", "--find", "--show", folder / name], capture_output=True, text=True, check=False)
    assert made.returncode == 0, f"a loop device is needed, and root: {made.stderr}"
    path = made.stdout.strip()
    yield path
    subprocess.run(["umount", path], check=False, capture_output=True)
    subprocess.run(["losetup", "--detach", path], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> t.Iterator[str]:
    yield from loop(tmp_path, "disk")


@pytest.fixture
def other(tmp_path: Path) -> t.Iterator[str]:
    yield from loop(tmp_path, "other")


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


class Host:
    """This machine with mounts and an /etc of its own, which are gone when it ends."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.etc = folder, folder / "etc"
        for name in ("etc", "work"):
            (folder / name).mkdir()
        self.process = subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sleep", "900"])
        mine = os.readlink("/proc/self/ns/mnt")
        while os.readlink(f"/proc/{self.process.pid}/ns/mnt") == mine:
            time.sleep(0.05)
        layers = f"lowerdir=/etc,upperdir={self.etc},workdir={folder / 'work'}"
        self.run("mount", "-t", "overlay", "overlay", "-o", layers, "/etc")

    def run(self, *command: str | Path) -> str:
        inside = ["nsenter", "--mount", f"--target={self.process.pid}", *command]
        done = subprocess.run(inside, capture_output=True, text=True, check=True)
        return done.stdout

    def apply(self, *arguments: str, **variables: t.Any) -> tuple[int, int, str]:
        """The role, as in a play: status, how many tasks changed something, and what was said."""
        play = self.folder / "play.yml"
        play.write_text(
            "- hosts: localhost\n  connection: local\n  gather_facts: false\n"
            "  roles: [{role: llmops.finetune.storage}]\n",
            encoding="utf-8",
        )
        extra = json.dumps({**variables, "ansible_python_interpreter": sys.executable})
        command = [str(Path(sys.executable).with_name("ansible-playbook")), str(play), "-e", extra, *arguments]
        done = subprocess.run(
            ["nsenter", "--mount", f"--target={self.process.pid}", f"--wd={REPOSITORY}", *command],
            capture_output=True,
            text=True,
            check=False,
        )
        text = done.stdout + done.stderr
        return done.returncode, sum(map(int, re.findall(r"changed=(\d+)", text))), text

    def mounted(self) -> dict[str, str]:
        rows = [line.split() for line in self.run("cat", "/proc/self/mounts").splitlines()]
        return {place: device for device, place, *_rest in rows if place.startswith(str(self.folder))}


@pytest.fixture
def host(tmp_path: Path) -> t.Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.process.kill()
    made.process.wait()


def test_the_role_has_disks_and_what_is_mounted_by_name(disk: str, other: str, host: Host) -> None:
    subprocess.run(["mkfs.ext4", "-q", "-L", "theirs", other], check=True)
    (host.folder / "by-id").symlink_to(disk)
    data, team = host.folder / "data", host.folder / "team"
    wanted = {
        "storage_disks_at": str(data),
        "storage_disks": [str(host.folder / "by-id")],
        "storage_mounts": [{"src": other, "path": str(team), "fstype": "ext4", "opts": "noatime,nofail"}],
    }
    status, changed, text = host.apply()
    assert (status, changed) == (0, 0), text
    status, changed, text = host.apply("--check", **wanted)
    assert (status, changed) == (0, 2) and not data.exists() and not team.exists(), text
    assert host.mounted() == {} and not (host.etc / "fstab").exists()

    status, changed, text = host.apply(**wanted)
    assert (status, changed) == (0, 2), text
    assert host.mounted() == {str(data): disk, str(team): other}
    table = (host.etc / "fstab").read_text(encoding="utf-8").splitlines()
    assert [line.split()[:4] for line in table if str(host.folder) in line] == [
        ["LABEL=llmops", str(data), "ext4", "defaults,noatime,nofail,x-systemd.device-timeout=30s"],
        [other, str(team), "ext4", "noatime,nofail"],
    ]
    status, changed, text = host.apply(**wanted)
    assert (status, changed) == (0, 0), text

    for place in (data, team):  # the host was stopped: its own disk is blank
        host.run("umount", place)
    with open(disk, "wb") as blank:
        blank.write(bytes(64 << 20))
    status, changed, text = host.apply(**wanted)
    assert (status, changed) == (0, 2) and host.mounted() == {str(data): disk, str(team): other}, text


def test_what_is_in_the_way_is_told_by_the_role(disk: str, other: str, host: Host) -> None:
    subprocess.run(["mkfs.ext4", "-q", "-L", "theirs", other], check=True)
    status, _changed, text = host.apply(storage_disks_at=str(host.folder / "data"), storage_disks=[other])
    assert status != 0 and f"{other}: ext4, label theirs" in text, text
    status, _changed, text = host.apply(storage_disks_at=str(host.folder / "data"))
    assert status != 0 and "no disk of the instance's own" in text, text
    assert host.mounted() == {}
