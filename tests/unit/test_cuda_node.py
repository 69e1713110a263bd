# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node is, by its files and its package manager."""

from __future__ import annotations

import typing as t
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._cuda import (
    node,
    packages,
)
from ansible_collections.llmops.finetune.plugins.module_utils._cuda.facts import Facts, Package
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.module_utils._gpu import tool

from . import smi_outputs as outputs
from .cuda_hosts import A10G, H100, SILENT, host


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (['ID="rocky"', 'VERSION_ID="9.5"'], ("rocky", "9.5")),
        (["ID=debian", 'VERSION_ID="12"', "PRETTY_NAME=a=b"], ("debian", "12")),
        ([], ("", "")),
    ],
)
def test_the_system(text: list[str], expected: tuple[str, str]) -> None:
    assert node.system(text) == expected


def test_newer_kernels_are_those_of_the_same_flavour() -> None:
    found = ["6.8.0-1009-aws", "6.8.0-60-generic", "6.8.0-1021-aws", "6.11.0-1004-aws"]
    assert node.kernels(found, "6.8.0-1021-aws") == ("6.8.0-1009-aws", "6.8.0-1021-aws", "6.11.0-1004-aws")
    assert replace(host(A10G), kernel="6.8.0-1021-aws", kernels=node.kernels(found, "6.8.0-1021-aws")).newer_kernel == (
        "6.11.0-1004-aws"
    )
    assert replace(host(A10G), kernel="6.18.44-fc", kernels=()).newer_kernel == ""
    assert replace(host(A10G), kernel="6.1.0-37-amd64", kernels=("6.1.0-35-amd64", "6.1.0-37-amd64")).newer_kernel == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Linux version 6.8.0-60-generic (b@h) (x86_64-linux-gnu-gcc-12 (Ubuntu 12.3.0-1) 12.3.0, GNU ld) #63",
            "gcc-12",
        ),
        ("Linux version 6.18.44 (root@a) (gcc (Debian 12.2.0-14) 12.2.0, GNU ld 2.40) #1", "gcc-12"),
        ("Linux version 6.1 (clang version 18)", ""),
    ],
)
def test_the_compiler_of_the_kernel(text: str, expected: str) -> None:
    assert node.compiler(text) == expected


def test_secure_boot(tmp_path: Path) -> None:
    assert node.secure_boot(tmp_path / "none") is False
    variable = tmp_path / "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    variable.write_bytes(b"\x06\0\0\0\x01")
    assert node.secure_boot(tmp_path) is True
    variable.write_bytes(b"\x06\0\0\0\0")
    assert node.secure_boot(tmp_path) is False


def test_what_dpkg_tells() -> None:
    there, held = packages.parse_dpkg("ii  a 1:2-3\nhi  b 4\nrc  c 5\niU  d 6\nun  e \n")
    assert there == {"a": "1:2-3", "b": "4"} and held == {"b"}


def test_where_the_system_has_its_packages_from() -> None:
    text = "http://a/security bookworm-security main\nhttp://a/debian bookworm contrib\nhttp://b/debian bookworm main\n"
    assert packages.parse_targets(text, "bookworm") == "http://b/debian"
    assert packages.parse_targets(text, "trixie") == packages.parse_targets("", "trixie") == ""


def test_what_rpm_tells() -> None:
    there = packages.parse_rpm("kernel-devel 5.14.0-503.el9 kernel-devel-5.14.0-503.el9.x86_64\n")
    assert Package("kernel-devel-5.14.0-503.el9.x86_64").is_in(there) and there["kernel-devel"] == "5.14.0-503.el9"


def test_what_versionlock_holds() -> None:
    text = (
        "# Added lock\nnvidia-driver-cuda-3:580.178.04-1.el9.*\nkernel-core-0:5.14.0-503.el9.*\n!kernel-devel-0:1-1.*\n"
    )
    known = ["nvidia-driver-cuda", "kernel-core", "kernel-devel", "nvidia-driver"]
    assert packages.locks(text, known) == {"nvidia-driver-cuda", "kernel-core"}


SIMULATED = """
Inst nvidia-utils-580-server (580.173.02-0ubuntu0.24.04.1 Ubuntu:24.04/noble-updates [amd64])
Inst nvidia-kernel-common-580-server (580.173.02-0ubuntu0.24.04.1 Ubuntu:24.04/noble-updates [amd64])
Inst nvidia-fabricmanager-580 [580.1-1] ({}-0ubuntu1 Ubuntu:24.04/noble-updates [amd64])
Inst nvidia-modprobe (570.86-1 Ubuntu:24.04/noble [amd64])
Conf nvidia-utils-580-server (580.173.02-0ubuntu0.24.04.1 Ubuntu:24.04/noble-updates [amd64])
"""


def test_a_set_has_one_version() -> None:
    assert list(packages.versions(SIMULATED.format("580.173.02"))) == ["580.173.02"]
    assert packages.versions(SIMULATED.format("580.159.03"))["580.159.03"] == ["nvidia-fabricmanager-580"]
    other = "Inst nvidia-fabricmanager-595 (595.71.05-0ubuntu1 Ubuntu:24.04 [amd64])\n"
    assert len(packages.versions(SIMULATED.format("580.173.02") + other)) == 2, (
        "an empty package led to the next branch"
    )


def test_what_apt_may_remove_for_a_driver() -> None:
    assert packages.removed("Remv nvidia-dkms-580 [580]\nRemv libcuda1 [535]\nRemv postgresql [15]\n") == ["postgresql"]


class Said:
    """A package manager's commands, as they come, and what they answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **answers: str) -> None:
        self.commands: list[str] = []
        self.answers = answers
        monkeypatch.setattr(packages, "run", self.run)

    def run(self, *command: str, **_rest: t.Any) -> str:
        self.commands.append(" ".join(command))
        return next((text for part, text in self.answers.items() if part in self.commands[-1]), "")


def test_apt_asks_before_it_installs(monkeypatch: pytest.MonkeyPatch) -> None:
    said = Said(monkeypatch, simulate="Remv nginx [1]\n")
    with pytest.raises(FinetuneError, match="would remove nginx"):
        packages.Apt().install([Package("nvidia-driver-cuda", "580.178.04-*"), Package("dkms")])
    (asked,) = said.commands
    assert "--simulate nvidia-driver-cuda=580.178.04-* dkms" in asked and "--no-install-recommends" in asked
    said.answers["simulate"] = SIMULATED.format("580.173.02")
    packages.Apt().install([Package("a")])
    assert said.commands[-1].endswith("--yes a")
    said.answers["simulate"] = SIMULATED.format("595.1")
    with pytest.raises(FinetuneError, match="no set of driver packages with one version"):
        packages.Apt().install([Package("a")])


def test_dnf_names_versions_and_frees_what_it_had_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    said = Said(monkeypatch)
    monkeypatch.setattr(packages.Dnf, "installed", lambda _self: ({}, frozenset(["kmod-nvidia-open-dkms"])))
    manager = packages.Dnf()
    manager.enable("580-open")
    manager.install(
        [Package("kmod-nvidia-open-dkms", "580.178.04-*"), Package("epel-release", place="https://a/e.rpm")]
    )
    manager.hold(["kmod-nvidia-open-dkms", "kernel-core"])
    assert said.commands == [
        "dnf -y -q module reset nvidia-driver",
        "dnf -y -q module enable nvidia-driver:580-open",
        "dnf -y -q versionlock delete kmod-nvidia-open-dkms",
        "dnf -y -q install --setopt=install_weak_deps=False --allowerasing kmod-nvidia-open-dkms-580.178.04 https://a/e.rpm",
        "dnf -y -q versionlock add kmod-nvidia-open-dkms kernel-core",
    ]


def test_a_command_that_fails_is_told_with_its_last_lines() -> None:
    with pytest.raises(FinetuneError) as error:
        packages.run("sh", "-c", "echo one; echo two >&2; exit 3", change="do so")
    assert error.value.what == "sh failed." and "two" in error.value.where and error.value.change == "do so"
    with pytest.raises(FinetuneError, match="no no-such-tool on this host"):
        packages.run("no-such-tool")


def test_a_recorded_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of sysfs a copy may be looked at."""
    sys = tmp_path / "sys"
    for number in range(8):
        outputs.on_bus(sys / "bus/pci/devices", number, H100, "")
    outputs.on_bus(sys / "bus/pci/devices", 8, "22a3", "", kind="0680")
    outputs.on_bus(sys / "bus/pci/devices", 9, "efa2", "", vendor="1d0f", kind="0200")
    outputs.on_bus(sys / "bus/pci/devices", 10, H100, "vfio-pci")
    (sys / "class/dmi/id").mkdir(parents=True)
    (sys / "class/dmi/id/product_name").write_text("p5.48xlarge\n", encoding="utf-8")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(tool, "PLACES", "")
    found: Facts = node.look(sys, 5)
    assert (len(found.cards), found.switches, found.efa, found.family) == (8, 1, 1, "p5")
    assert found.driver == "" and "no driver has it" in found.problems[0].what and not found.container
    assert SILENT.what.endswith("no driver has it.")
