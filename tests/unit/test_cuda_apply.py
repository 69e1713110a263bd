# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node made as its plan says, with stand-ins for its tools, its files and its package manager."""

from __future__ import annotations

import os
import typing as t
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._changes import Changes
from ansible_collections.llmops.finetune.plugins.module_utils._cuda import (
    apply,
    extras,
    node,
    packages,
    place,
    plan,
    sets,
)
from ansible_collections.llmops.finetune.plugins.module_utils._cuda.facts import Package, Repository, Wish
from ansible_collections.llmops.finetune.plugins.module_utils._engine import files, lease
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.module_utils._gpu import tool
from ansible_collections.llmops.finetune.plugins.module_utils._gpu.card import Problem

from .cuda_hosts import A10G, H100, SILENT, cards, host
from .test_cuda_key import ONE, ONE_IS

DRIVER = "580.178.04"


class Node:
    """A node in a folder: what is installed changes as its package manager is called."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.facts = replace(host(A10G), boot="boot-1", month="2026-11")
        self.done: list[str] = []
        self.services: dict[str, str] = {}
        self.loads = True
        self.folder = folder
        self.leases = folder / "leases"
        monkeypatch.setattr(node, "look", lambda *_given: self.facts)
        monkeypatch.setattr(node, "RECORD", folder / "state" / "record.json")
        monkeypatch.setattr(node, "active", lambda name: self.services.get(name, "disabled inactive"))
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(packages, "of", lambda _release: self)
        monkeypatch.setattr(packages, "run", self.run)
        monkeypatch.setattr(tool, "find", lambda name: f"/usr/sbin/{name}" if name == "update-initramfs" else "")
        monkeypatch.setattr(place, "_fetch", lambda _address: ONE.encode())
        monkeypatch.setattr(plan, "sets", _Moved(folder))
        monkeypatch.setattr(extras, "sets", _Moved(folder))
        monkeypatch.setattr("time.sleep", lambda _seconds: None)

    def refresh(self) -> None:
        self.done.append("refresh")

    def install(self, wanted: t.Sequence[Package], change: str = "") -> None:
        assert lease.holders(["cpu"], self.leases), "no run may begin meanwhile"
        self.done.append("install " + " ".join(one.name for one in wanted))
        there = {one.name: one.version.replace("*", "1") for one in wanted}
        held = self.facts.held - set(there)  # as apt does with what is held and updated all the same
        self.facts = replace(self.facts, packages={**self.facts.packages, **there}, held=held)

    def hold(self, names: t.Sequence[str]) -> None:
        self.done.append(f"hold {len(names)}")
        self.facts = replace(self.facts, held=self.facts.held | set(names))

    def run(self, *command: str, **_rest: t.Any) -> str:
        self.done.append(" ".join(command))
        if command[0] == "modprobe":
            if not self.loads:
                raise FinetuneError("modprobe failed.", where="modprobe nvidia\n  FATAL: Module nvidia not found")
            self.load()
        if command[0] == "systemctl":
            on, now = self.services.get(command[-1], "disabled inactive").split()
            self.services[command[-1]] = f"enabled {now}" if command[1] == "enable" else f"{on} active"
        return ""

    def load(self, driver: str = DRIVER) -> None:
        loaded = cards(*[card.device for card in self.facts.cards], driver="nvidia")
        self.facts = replace(self.facts, driver=driver, loaded=driver, problems=(), cards=loaded)

    def reboot(self) -> None:
        self.facts = replace(self.facts, boot="boot-2")

    def apply(self, dry: bool = False, reboots: bool = True, **asked: t.Any) -> tuple[list[str], str]:
        self.facts = replace(self.facts, record=files.read_json(node.RECORD))
        changes = Changes(dry)
        self.changes = changes
        given = Wish(repository="https://mirror.example", pin=ONE_IS, **asked)
        answer = apply.present(given, apply.Asked(self.folder, 5, 0, self.leases, reboots), changes)
        return [f"{one['action']} {one['path'].rpartition('/')[2]}" for one in changes.made], answer.reboot


class _Moved:
    """Files of a node, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getattr__(self, name: str) -> t.Any:
        value = getattr(sets, name)
        if isinstance(value, str):
            return f"{self.folder}{value}"
        if name.endswith("repository"):
            return lambda *given: self._moved(value(*given))
        return value

    def _moved(self, one: Repository) -> Repository:
        return one._replace(path=f"{self.folder}{one.path}", key_path=f"{self.folder}{one.key_path}", pin=ONE_IS)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(tmp_path, monkeypatch)


CHANGES = [
    "create llmops-cuda.sources",
    "create llmops-cuda.conf",
    "create llmops-cuda",
    "install linux-headers-6.1.0-35-cloud-amd64",
    "install dkms",
    "install nvidia-driver-cuda 580.178.04",
    "install nvidia-kernel-open-dkms 580.178.04",
    "install nvidia-persistenced 580.178.04",
    "hold nvidia-driver-cuda",
    "hold nvidia-kernel-open-dkms",
    "hold nvidia-persistenced",
    "enable nvidia-persistenced.service",
]


def test_check_mode_predicts_and_leaves_nothing(machine: Node, tmp_path: Path) -> None:
    assert machine.apply(dry=True) == (CHANGES, "")
    assert machine.done == [] and not list(tmp_path.iterdir())


def test_a_driver_is_installed_and_loaded_without_a_reboot(machine: Node) -> None:
    assert machine.apply() == (CHANGES, "")
    assert machine.done == [
        "refresh",
        "install linux-headers-6.1.0-35-cloud-amd64 dkms",
        "install nvidia-driver-cuda nvidia-kernel-open-dkms nvidia-persistenced",
        "update-initramfs -u -k all",
        "hold 3",
        "systemctl enable nvidia-persistenced.service",
        "modprobe nvidia",
        "systemctl start nvidia-persistenced.service",
    ]
    assert files.read_json(node.RECORD)["source"] == "nvidia" and not lease.holders(["cpu"], machine.leases)
    machine.done.clear()
    assert machine.apply() == ([], "") and machine.done == []


def test_dracut_keeps_nouveau_out_where_it_makes_the_image(machine: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "find", lambda name: "/usr/bin/dracut" if name == "dracut" else "")
    machine.apply()
    assert "dracut --force --regenerate-all" in machine.done


def test_docker_is_restarted_once_for_the_container_toolkit(machine: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "find", lambda name: f"/usr/bin/{name}" if name in ("nvidia-ctk", "dockerd") else "")
    machine.apply(container_toolkit=True)
    there = [one for one in machine.done if "docker" in one]
    assert there == ["nvidia-ctk runtime configure --runtime=docker", "systemctl try-restart docker.service"]
    machine.done.clear()
    assert machine.apply(container_toolkit=True) == ([], "") and machine.done == []


def test_one_reboot_where_nouveau_holds_the_gpu(machine: Node) -> None:
    machine.facts = replace(machine.facts, cards=cards(A10G, driver="nouveau"))
    assert machine.apply(dry=True)[1] == "nouveau holds a GPU"
    assert machine.apply()[1] == "nouveau holds a GPU" and "modprobe nvidia" not in machine.done
    assert machine.apply(dry=True) == ([], "nouveau holds a GPU"), "still the same boot"
    machine.reboot()
    machine.load()
    machine.services["nvidia-persistenced.service"] = "enabled active"
    assert machine.apply() == ([], "")


def test_a_reboot_that_did_not_help_is_not_repeated(machine: Node) -> None:
    machine.loads = False
    assert machine.apply()[1] == "the kernel module does not load yet (FATAL: Module nvidia not found)"
    machine.reboot()
    assert machine.apply(dry=True) == (["load kernel module nvidia"], "")
    with pytest.raises(FinetuneError, match="was rebooted, and still the kernel module does not load") as error:
        machine.apply()
    assert "dkms status" in error.value.change


def test_the_host_of_the_play_is_not_rebooted(machine: Node) -> None:
    machine.loads = False
    machine.facts = replace(machine.facts, cards=cards(A10G, driver="nouveau"))
    assert machine.apply(dry=True, reboots=False) == (CHANGES, "nouveau holds a GPU"), "the plan goes on"
    for expected in (CHANGES, []):
        with pytest.raises(FinetuneError, match="this host has to be rebooted: nouveau") as error:
            machine.apply(reboots=False)
        assert len(machine.changes.made) == len(expected) and "goes on from there" in error.value.change
    machine.reboot()
    machine.load()
    machine.services["nvidia-persistenced.service"] = "enabled active"
    assert machine.apply(reboots=False) == ([], "")


def test_a_newer_kernel_is_built_for_and_booted(machine: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    running = machine.facts.kernel
    machine.facts = replace(machine.facts, kernels=(running, "6.1.0-37-cloud-amd64"))
    monkeypatch.setattr(tool, "find", lambda name: "/usr/sbin/dkms" if name == "dkms" else "")
    assert machine.apply()[1] == f"kernel 6.1.0-37-cloud-amd64 is installed, {running} runs"
    assert "dkms autoinstall -k 6.1.0-37-cloud-amd64" in machine.done


def test_headers_that_came_late_are_built_with(machine: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.apply()
    machine.facts = replace(machine.facts, kernel="6.1.0-37-cloud-amd64", driver="", loaded="", problems=(SILENT,))
    monkeypatch.setattr(tool, "find", lambda name: "/usr/sbin/dkms" if name == "dkms" else "")
    machine.done.clear()
    assert machine.apply() == (["install linux-headers-6.1.0-37-cloud-amd64"], "")
    assert machine.done[2:4] == ["dkms autoinstall -k 6.1.0-37-cloud-amd64", "modprobe nvidia"]


def test_what_comes_beside_a_driver_that_is_left_alone(machine: Node) -> None:
    machine.load()
    made, _reboot = machine.apply(container_toolkit=True)
    assert "enable nvidia-cdi-refresh.path" in made and not [one for one in machine.done if "nvidia-driver" in one]
    assert machine.apply(container_toolkit=True) == ([], "") and not node.RECORD.exists()


def test_another_version_replaces_the_loaded_one_by_a_reboot(machine: Node) -> None:
    machine.apply()
    made, reboot = machine.apply(version="580.200.01")
    assert "update nvidia-driver-cuda 580.200.01" in made
    assert reboot == "kernel module 580.178.04 is loaded, 580.200.01 is installed"
    assert machine.apply(dry=True, version="580.200.01") == ([], reboot), "though the old one answers"
    machine.reboot()
    machine.load("580.200.01")
    assert machine.apply(version="580.200.01") == ([], "")


@pytest.mark.parametrize("damage", ["package", "hold", "file", "service"])
def test_what_is_changed_by_others_is_put_right(machine: Node, damage: str) -> None:
    machine.apply()
    if damage == "package":
        there = {**machine.facts.packages, "nvidia-persistenced": "595.1-1"}
        machine.facts = replace(machine.facts, packages=there)
    elif damage == "hold":
        machine.facts = replace(machine.facts, held=frozenset(["nvidia-driver-cuda"]))
    elif damage == "file":
        Path(f"{machine.folder}{sets.MODPROBE}").write_text("", encoding="utf-8")
    else:
        machine.services["nvidia-persistenced.service"] = "disabled inactive"
    expected = {
        "package": ["update nvidia-persistenced 580.178.04"],
        "hold": ["hold nvidia-kernel-open-dkms", "hold nvidia-persistenced"],
        "file": ["update llmops-cuda.conf"],
        "service": ["enable nvidia-persistenced.service"],
    }[damage]
    assert machine.apply(dry=True)[0] == expected == machine.apply()[0]
    assert machine.apply() == ([], "")


@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize("name", ["cpu", "GPU-00000000-0000-4000-8000-000000000000"])
def test_nothing_is_changed_under_a_run(machine: Node, dry: bool, name: str) -> None:
    kept = lease.acquire([name], {"run": "demo-1", "user": "llmops", "pid": 7}, machine.leases)
    with pytest.raises(FinetuneError, match=r"A run is on this host: .* held by run demo-1") as error:
        machine.apply(dry=dry)
    assert "wait for it" in error.value.change and machine.done == []
    os.close(kept[0])
    assert machine.apply(dry=dry)[0] == CHANGES


def test_a_run_does_not_hinder_what_changes_nothing(machine: Node) -> None:
    machine.apply()
    kept = lease.acquire(["cpu"], {"run": "demo-1"}, machine.leases)
    assert machine.apply() == ([], "")
    os.close(kept[0])


def test_an_install_that_was_cut_goes_on(machine: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(_names: t.Sequence[str]) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as cut, pytest.raises(KeyboardInterrupt):
        cut.setattr(machine, "hold", killed)
        machine.apply()
    assert machine.apply() == (CHANGES[8:], "")


def test_switches_are_waited_for_and_told(machine: Node) -> None:
    machine.facts = replace(machine.facts, cards=cards(*[H100] * 8), switches=4)
    outside = Problem("GPU(s) 0 are not in the NVSwitch fabric (In Progress).", "start nvidia-fabricmanager")
    load = machine.load

    def loads(driver: str = DRIVER) -> None:
        load(driver)
        machine.facts = replace(machine.facts, problems=(outside,))

    machine.load = loads  # type: ignore[method-assign]
    with pytest.raises(FinetuneError, match=r"does not pass: GPU.* NVSwitch fabric"):
        machine.apply()
    assert "systemctl start nvidia-fabricmanager.service" in machine.done
    machine.facts = replace(machine.facts, problems=())
    assert machine.apply() == ([], "")


def test_a_gpu_that_fails_later_is_told_at_once(machine: Node) -> None:
    machine.apply()
    machine.facts = replace(machine.facts, problems=(Problem("GPU 0 does not answer.", "reset it", blocks=True),))
    with pytest.raises(FinetuneError, match="The driver does not pass: GPU 0"):
        machine.apply(dry=True)


def test_only_root_installs(machine: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(FinetuneError, match="Only root") as error:
        machine.apply()
    assert "cuda_become" in error.value.where and machine.done == []
    assert machine.apply(dry=True)[0] == CHANGES, "looking needs no root"
