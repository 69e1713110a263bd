# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which disks become a place, and by which commands; what holds anything is left alone."""

from __future__ import annotations

import json
import typing as t

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _disks
from ansible_collections.llmops.finetune.plugins.module_utils._disks import ARRAY, Disk
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

NVME, EBS = "Amazon EC2 NVMe Instance Storage", "Amazon Elastic Block Store"
LSBLK = {
    "blockdevices": [
        {
            "path": "/dev/nvme0n1",
            "size": 8589934592,
            "model": f"{EBS}              ",
            "mountpoints": [None],
            "ro": False,
        }
        | {"children": [{"path": "/dev/nvme0n1p1", "size": 1, "model": None, "mountpoints": ["/"], "ro": False}]},
        {"path": "/dev/nvme1n1", "size": 100, "model": NVME, "mountpoints": [None], "ro": False},
    ]
}
"""As util-linux 2.39 prints it."""


def disk(number: int, kind: str = "", label: str = "", *mounts: str, model: str = NVME, **more: t.Any) -> Disk:
    return Disk(f"/dev/nvme{number}n1", model, 100, kind, label, mounts, False, ())._replace(**more)


ROOT = Disk(
    "/dev/nvme0n1", EBS, 100, "", "", (), False, (Disk("/dev/nvme0n1p1", "", 99, "ext4", "root", ("/",), False, ()),)
)
DATA = disk(5, model=EBS)


def members(count: int, *mounts: str, made: bool = True, **array: t.Any) -> list[Disk]:
    """Disks of our array. made: it is put together."""
    below = Disk("/dev/md127", "", 200, "ext4", "llmops", mounts, False, ())._replace(**array)
    more: dict[str, t.Any] = {"below": (below,)} if made else {}
    return [disk(number, "linux_raid_member", "host:llmops", **more) for number in range(1, count + 1)]


MOUNT = ("mount", "-o", "noatime")
MAKE = ("mkfs.ext4", "-q", "-m", "0", "-L", "llmops")
CREATE = ("mdadm", "--create", ARRAY, "--run", "--level=0", "--raid-devices=2", "--name=llmops")
TWO = ("/dev/nvme1n1", "/dev/nvme2n1")

PLANS: list[tuple[list[Disk], list[str], str, list[tuple[str, ...]]]] = [
    # disks, devices, what is mounted, commands
    ([ROOT, disk(1)], [], TWO[0], [(*MAKE, TWO[0]), (*MOUNT, TWO[0], "/data")]),
    ([ROOT, disk(2), disk(1), DATA], [], ARRAY, [(*CREATE, *TWO), (*MAKE, ARRAY), (*MOUNT, ARRAY, "/data")]),
    ([ROOT, disk(1, "ext4", "llmops")], [], TWO[0], [(*MOUNT, TWO[0], "/data")]),
    ([ROOT, disk(1, "ext4", "llmops", "/data")], [], TWO[0], []),
    ([ROOT, *members(2)], [], "/dev/md127", [(*MOUNT, "/dev/md127", "/data")]),
    ([ROOT, *members(2, "/data")], [], "/dev/md127", []),
    ([ROOT, *members(2, made=False)], [], ARRAY, [("mdadm", "--assemble", ARRAY, *TWO), (*MOUNT, ARRAY, "/data")]),
    ([ROOT, disk(1), DATA], [DATA.path], DATA.path, [(*MAKE, DATA.path), (*MOUNT, DATA.path, "/data")]),
    ([ROOT, disk(1), DATA], [DATA.path, TWO[0]], ARRAY, [(*CREATE, TWO[0], DATA.path), (*MAKE, ARRAY)]),
]


@pytest.mark.parametrize(("disks", "devices", "volume", "commands"), PLANS)
def test_disks_become_a_place(
    disks: list[Disk], devices: list[str], volume: str, commands: list[tuple[str, ...]]
) -> None:
    plan = _disks.plan(disks, devices or [_disks.INSTANCE_STORE], "/data", occupied=False)
    assert plan.volume == volume and list(plan.commands)[: len(commands)] == commands
    assert bool(plan.commands) == bool(commands)


REFUSED: list[tuple[list[Disk], list[str], str]] = [
    ([ROOT, DATA], [], "has no disk of the instance's own"),
    ([ROOT], ["/dev/sdz"], "no /dev/sdz"),
    ([ROOT, disk(1)], ["/dev/nvme0n1p1"], "no /dev/nvme0n1p1"),
    ([ROOT, disk(1)], ["/dev/nvme0n1"], r"/dev/nvme0n1: /dev/nvme0n1p1 \(ext4, label root, at /\)"),
    ([ROOT, disk(1, "xfs", "theirs")], [], "/dev/nvme1n1: xfs, label theirs"),
    ([ROOT, disk(1, "LVM2_member")], [], "LVM2_member"),
    ([ROOT, disk(1, "ext4", "other")], [], "ext4, label other"),
    ([ROOT, disk(1), disk(2, "ext4", "llmops")], [], "/dev/nvme2n1: ext4, label llmops"),
    ([ROOT, disk(3), *members(2, made=False)], [], "/dev/nvme3n1: blank"),
    ([ROOT, *members(1, made=False)], [], "linux_raid_member, label host:llmops"),
    ([ROOT, *members(2, kind="xfs")], [], "xfs"),
    ([ROOT, disk(1, "linux_raid_member", "host:0"), disk(2, "linux_raid_member", "host:0")], [], "label host:0"),
    ([ROOT, disk(1, "ext4", "llmops", "/mnt")], [], "is mounted at /mnt already"),
    ([ROOT, disk(1), disk(7, "ext4", "x", "/data", model="")], [], "/dev/nvme7n1 is mounted at /data"),
    ([ROOT, disk(1, read_only=True)], [], "can only be read"),
]


@pytest.mark.parametrize(("disks", "devices", "said"), REFUSED)
def test_what_holds_anything_is_left_alone(disks: list[Disk], devices: list[str], said: str) -> None:
    with pytest.raises(FinetuneError, match=said):
        _disks.plan(disks, devices or [_disks.INSTANCE_STORE], "/data", occupied=False)


def test_files_are_not_hidden() -> None:
    with pytest.raises(FinetuneError, match="There are files in /data"):
        _disks.plan([ROOT, disk(1)], [_disks.INSTANCE_STORE], "/data", occupied=True)
    mounted = [ROOT, disk(1, "ext4", "llmops", "/data")]
    assert not _disks.plan(mounted, [_disks.INSTANCE_STORE], "/data", occupied=False).commands


def test_disks_are_read_from_lsblk() -> None:
    on = {"/dev/nvme0n1": ("gpt, PMBR", ""), "/dev/nvme0n1p1": ("ext4", "root"), "/dev/nvme1n1": ("", "")}
    root, store = _disks.read(json.dumps(LSBLK), on.__getitem__)
    assert (root.model, root.kind, root.below[0].mounts, root.below[0].label, root.mounts) == (
        EBS,
        "gpt, PMBR",
        ("/",),
        "root",
        (),
    )
    assert store == Disk("/dev/nvme1n1", NVME, 100, "", "", (), False, ())


def test_what_is_on_a_device_is_read_from_itself() -> None:
    assert _disks.signatures("") == ("", "")
    assert _disks.signatures('{"signatures": [{"type": "ext4", "label": "llmops"}]}') == ("ext4", "llmops")
    two = '{"signatures": [{"type": "gpt", "label": null}, {"type": "PMBR", "label": null}]}'
    assert _disks.signatures(two) == ("gpt, PMBR", "")


def test_fstab_has_one_line_of_ours() -> None:
    theirs = "UUID=1 / ext4 defaults 0 1\n"
    once = _disks.fstab(theirs, "/data")
    assert once.startswith(theirs) and "LABEL=llmops /data ext4 defaults,noatime,nofail" in once
    assert _disks.fstab(once, "/data") == once
    assert _disks.fstab(once, "/other disk").count("LABEL=llmops") == 1
    assert "/other\\040disk" in _disks.fstab(once, "/other disk")
