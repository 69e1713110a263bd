# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host is besides its GPUs: networks, disks, the storage that it shares."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _host


def test_interfaces_are_those_that_have_an_address() -> None:
    found = {one["name"]: one for one in _host.interfaces()}
    assert found["lo"] == {"name": "lo", "address": "127.0.0.1", "prefix": 8, "speed": 0, "default": False}
    for one in found.values():
        assert socket.inet_aton(one["address"]) and 0 <= one["prefix"] <= 32


MOUNTS = [
    "/dev/vda1 / ext4 rw 0 0",
    "10.0.0.9:/export/team /mnt/shared nfs4 rw 0 0",
    "10.0.0.9:/export/other /mnt/shared/other\\040one nfs4 rw 0 0",
    "/dev/nvme1 /mnt/shared/fast xfs rw 0 0",
]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/home/me/llmops", ""),
        ("/mnt/sharedby/llmops", ""),
        ("/mnt/shared", "10.0.0.9:/export/team"),
        ("/mnt/shared/llmops", "10.0.0.9:/export/team/llmops"),
        ("/mnt/shared/other one/llmops", "10.0.0.9:/export/other/llmops"),
        ("/mnt/shared/fast/llmops", ""),
    ],
)
def test_storage_of_a_network_is_told_by_what_all_hosts_see(path: str, expected: str) -> None:
    assert _host.storage(path, MOUNTS) == expected


def test_the_mount_of_a_path_that_is_still_to_be_made(tmp_path: Path) -> None:
    told = _host.mount(str(tmp_path / "not/yet"))
    assert told["point"] in [str(tmp_path), *map(str, tmp_path.parents)] and 0 < told["free"] <= told["size"]
    assert _host.mount_of("/mnt/shared/fast/x", MOUNTS) == ("/dev/nvme1", "/mnt/shared/fast/", "xfs")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="ascii")


def test_devices_for_rdma_tell_which_are_efa(tmp_path: Path) -> None:
    for name, driver, rate, state in (
        ("mlx5_0", "mlx5_core", "400 Gb/sec (4X NDR)", "4: ACTIVE"),
        ("rdmap16s27", "efa", "100 Gb/sec (4X EDR)", "4: ACTIVE"),
        ("rdmap16s28", "efa", "", "1: DOWN"),
    ):
        write(tmp_path / "class" / name / "ports/1/rate", f"{rate}\n")
        write(tmp_path / "class" / name / "ports/1/state", f"{state}\n")
        (tmp_path / "drivers" / driver).mkdir(parents=True, exist_ok=True)
        (tmp_path / "class" / name / "device").mkdir()
        (tmp_path / "class" / name / "device/driver").symlink_to(tmp_path / "drivers" / driver)
    found = [(one["name"], one["efa"], one["speed"], one["active"]) for one in _host.rdma(tmp_path / "class")]
    assert found == [
        ("mlx5_0", False, 400_000, True),
        ("rdmap16s27", True, 100_000, True),
        ("rdmap16s28", True, 0, False),
    ]
    assert _host.rdma(tmp_path / "nowhere") == []


def test_disks_are_those_that_can_hold_something(tmp_path: Path) -> None:
    for name, size in (("nvme0n1", 7_500_000_000), ("loop0", 100), ("sdb", 0), ("dm-0", 5)):
        write(tmp_path / name / "size", f"{size}\n")
        write(tmp_path / name / "queue/rotational", "0\n")
        write(tmp_path / name / "device/model", "Amazon  EC2 NVMe Instance Storage \n")
    assert _host.disks(tmp_path) == [
        {
            "name": "nvme0n1",
            "model": "Amazon EC2 NVMe Instance Storage",
            "size": 7_500_000_000 * 512,
            "rotational": False,
        }
    ]


def test_a_host_tells_all_of_it(tmp_path: Path) -> None:
    told = _host.facts(str(tmp_path))
    assert told["kernel"] and told["cpus"] >= 1 and 0 < told["memory_free"] <= told["memory"]
    assert told["mount"]["path"] == str(tmp_path) and told["efa"] == sum(one["efa"] for one in told["rdma"])
