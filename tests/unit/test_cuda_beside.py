# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes with a driver: kernels, fabric, firmware, toolkits, EFA."""

from __future__ import annotations

import typing as t
from dataclasses import replace

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._cuda import sets, table
from ansible_collections.llmops.finetune.plugins.module_utils._cuda.facts import Facts, Package

from .cuda_hosts import (
    A10G,
    A100,
    B200,
    B300,
    GB10,
    GB200,
    GB300,
    H100,
    H200,
    L40S,
    MIRROR,
    RTX,
    decided,
    host,
    names,
    refused,
)


def test_a_host_without_gpus_is_left_alone() -> None:
    made = decided(Facts("arch", "1"), toolkit="12.8")
    assert (made.state, made.lines, made.packages, made.extras) == ("none", ["no NVIDIA GPU: nothing to do"], [], [])


@pytest.mark.parametrize("product", ["g4dn.xlarge", "g5.xlarge", "g5g.xlarge"])
def test_the_system_processor_is_off_where_it_is_asked_for(product: str) -> None:
    facts = host(A10G, product=product)
    assert "cuda_gsp: false does so" in decided(facts).notes[0]
    made = decided(facts, gsp=False)
    assert made.flavour == "proprietary" and not made.notes
    assert "options nvidia NVreg_EnableGpuFirmware=0\n" in made.files[sets.MODPROBE]
    assert decided(host(A10G, product="g6.xlarge")).notes == []
    assert decided(facts, flavour="proprietary").flavour == "proprietary", "AWS's modules, with the processor on"


@pytest.mark.parametrize("product", ["g6f.large", "gr6f.4xlarge"])
def test_parts_of_gpus_are_refused(product: str) -> None:
    assert "GRID" in refused(replace(Facts("ubuntu", "24.04"), product=product)).what


def test_headers_are_those_of_the_running_and_of_the_next_kernel() -> None:
    facts = host(A10G, kernels=("6.1.0-35-cloud-amd64", "6.1.0-37-cloud-amd64"))
    assert [one.name for one in decided(facts).tools][:2] == [
        "linux-headers-6.1.0-35-cloud-amd64",
        "linux-headers-6.1.0-37-cloud-amd64",
    ]


def test_the_compiler_is_that_of_the_kernel() -> None:
    facts = host(A10G, system="ubuntu 22.04", compiler="gcc-12")
    assert "gcc-12" in [one.name for one in decided(facts, source="nvidia").tools]
    assert decided(facts).tools == [], "nothing is built"


def test_nouveau_is_put_aside_early() -> None:
    made = decided(host(A10G))
    assert made.files[sets.MODPROBE] == "blacklist nouveau\noptions nouveau modeset=0\n"
    assert made.early == [sets.MODPROBE]


@pytest.mark.parametrize(
    ("system", "asked", "change"),
    [
        ("debian 12", {}, "turn Secure Boot off"),
        ("ubuntu 24.04", {"source": "nvidia"}, "cuda_source: distribution"),
        ("amzn 2023", {}, "cuda_key_enrolled"),
    ],
)
def test_secure_boot_wants_signed_modules(system: str, asked: dict[str, t.Any], change: str) -> None:
    facts = host(A10G, system=system, secure_boot=True)
    error = refused(facts, **asked)
    assert "Secure Boot is on" in error.what and change in error.change
    assert decided(facts, key_enrolled=True, **asked).state == "managed"


def test_debians_own_modules_are_signed_by_nobody() -> None:
    error = refused(host(A10G, archive=MIRROR, secure_boot=True), source="distribution")
    assert "Secure Boot is on" in error.what and "distribution" not in error.change


def test_signed_modules_pass_secure_boot() -> None:
    assert decided(host(A10G, system="ubuntu 24.04", secure_boot=True)).state == "managed"


def test_driver_and_kernel_are_held_as_one_set() -> None:
    there = {"linux-image-cloud-amd64": "6.1", "linux-headers-cloud-amd64": "6.1", "linux-base": "4", "bash": "5"}
    facts = host(*[A100] * 8, switches=6, packages=there)
    made = decided(facts)
    assert made.hold == [*names(made), "linux-headers-cloud-amd64", "linux-image-cloud-amd64"]
    assert "nvidia-fabricmanager-580" in made.hold
    assert decided(facts, hold="driver").hold == names(made) and decided(facts, hold="nothing").hold == []


@pytest.mark.parametrize(
    ("system", "there", "held"),
    [
        (
            "ubuntu 22.04",
            [
                "linux-aws",
                "linux-image-aws",
                "linux-headers-aws-lts-22.04",
                "linux-image-6.8.0-1021-aws",
                "linux-libc-dev",
            ],
            ["linux-aws", "linux-headers-aws-lts-22.04", "linux-image-aws"],
        ),
        (
            "ubuntu 24.04",
            ["linux-generic-hwe-24.04", "linux-image-generic-hwe-24.04-edge", "linux-image-aws-64k", "linux-firmware"],
            ["linux-generic-hwe-24.04", "linux-image-aws-64k", "linux-image-generic-hwe-24.04-edge"],
        ),
        (
            "ubuntu 24.04",
            ["linux-image-virtual", "linux-modules-extra-aws", "linux-image-nvidia-64k", "linux-image-nvidia-6.17"],
            ["linux-image-nvidia-6.17", "linux-image-nvidia-64k", "linux-image-virtual", "linux-modules-extra-aws"],
        ),
        (
            "debian 13",
            ["linux-image-amd64", "linux-headers-cloud-arm64"],
            ["linux-headers-cloud-arm64", "linux-image-amd64"],
        ),
        (
            "amzn 2023",
            ["kernel6.12", "kernel6.12-devel", "kernel6.12-modules-extra", "kernel-tools", "kernel-libbpf"],
            ["kernel6.12", "kernel6.12-devel", "kernel6.12-modules-extra"],
        ),
        (
            "rhel 9.5",
            ["kernel", "kernel-core", "kernel-modules", "kernel-modules-core", "kernel-headers", "kernel-srpm-macros"],
            ["kernel", "kernel-core", "kernel-headers", "kernel-modules", "kernel-modules-core"],
        ),
    ],
)
def test_kernels_that_are_held(system: str, there: list[str], held: list[str]) -> None:
    made = decided(host(*[H100] * 8, system=system, switches=4, packages=dict.fromkeys(there, "1")))
    assert made.hold == [*names(made), *held] and [name for name in made.hold if "fabric" in name]


@pytest.mark.parametrize(
    ("system", "asked", "expected"),
    [
        ("amzn 2023", {"branch": 535, "version": "535.261.03"}, "nvidia-fabric-manager"),
        ("amzn 2023", {"branch": 550, "version": "550.163.01"}, "nvidia-fabric-manager"),
        ("amzn 2023", {}, "nvidia-fabricmanager"),
        ("ubuntu 24.04", {}, "nvidia-fabricmanager-580"),
        ("ubuntu 24.04", {"source": "nvidia"}, "nvidia-fabricmanager-580"),
        ("ubuntu 24.04", {"source": "nvidia", "branch": 595}, "nvidia-fabricmanager"),
        ("debian 12", {}, "nvidia-fabricmanager-580"),
        ("debian 12", {"branch": 595}, "nvidia-fabricmanager"),
        ("rhel 10.1", {}, "nvidia-fabricmanager"),
    ],
)
def test_names_of_the_fabric_manager(system: str, asked: dict[str, t.Any], expected: str) -> None:
    made = decided(host(*[H100] * 8, system=system, switches=4), **asked)
    assert expected in names(made) and "nvidia-fabricmanager.service" in made.services
    assert len({one.version for one in made.packages if one.version}) == 1, "the very version of the driver"


def test_without_switches_there_is_no_fabric_manager() -> None:
    made = decided(host(*[L40S] * 8))
    assert not [name for name in names(made) if "fabric" in name] and made.services == ["nvidia-persistenced.service"]


@pytest.mark.parametrize("device", [B200, B300])
@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ("ubuntu 24.04", {"nvlsm", "libibumad3", "linux-modules-extra-6.8.0-1021-aws"}),
        ("debian 12", {"nvlsm", "libibumad3", "infiniband-diags"}),
        ("amzn 2023", {"nvlsm", "libibumad", "infiniband-diags"}),
    ],
)
def test_hgx_of_blackwell_wants_its_subnet_manager(device: str, system: str, expected: set[str]) -> None:
    made = decided(host(*[device] * 8, system=system))
    assert expected <= {one.name for one in made.tools} and made.source == "nvidia", "which alone has NVLSM"
    assert made.files[sets.MODULES_LOAD] == "ib_umad\nmlx5_ib\n" and "nvidia-fabricmanager.service" in made.services
    extra = [one.name for one in made.tools if one.name.startswith("linux-modules-extra")]
    assert bool(extra) is system.startswith("ubuntu"), "elsewhere the kernel's own package has them"


def test_only_hgx_of_blackwell_wants_nvlsm_and_only_racks_want_imex() -> None:
    for device in (A100, H100, H200, RTX, GB10):
        made = decided(host(*[device] * 8, switches=4))
        told = " ".join([*names(made), *(one.name for one in made.tools), *made.services, *made.files])
        assert "nvlsm" not in told and "imex" not in told and sets.MODULES_LOAD not in told
        assert "ImexChannel" not in made.files[sets.MODPROBE]


@pytest.mark.parametrize("device", [GB200, GB300])
@pytest.mark.parametrize(
    ("system", "asked", "expected"),
    [
        ("ubuntu 24.04", {}, "nvidia-imex-580"),
        ("ubuntu 24.04", {"source": "nvidia"}, "nvidia-imex"),
        ("debian 12", {}, "nvidia-imex"),
        ("amzn 2023", {}, "nvidia-imex"),
    ],
)
def test_racks_of_blackwell_want_imex(device: str, system: str, asked: dict[str, t.Any], expected: str) -> None:
    made = decided(replace(host(*[device] * 4, system=system), machine="aarch64"), **asked)
    assert expected in names(made) and "nvidia-imex.service" in made.services
    assert len({one.version for one in made.packages if one.version}) == 1, "the very version of the driver"
    assert "NVreg_CreateImexChannel0=1" in made.files[sets.MODPROBE]
    assert "nvidia-fabricmanager.service" not in made.services


def test_the_toolkit_is_no_newer_than_the_driver() -> None:
    made = decided(host(A10G), toolkit="12.8")
    assert made.extras == [Package("cuda-toolkit-12-8")] and len(made.repositories) == 1
    assert decided(host(A10G), toolkit="13.0").extras == [Package("cuda-toolkit-13-0")]
    error = refused(host(A10G, archive=MIRROR), toolkit="13.0", source="distribution")
    assert "newer than driver 535" in error.what and "CUDA 12" in error.change
    assert "name a release" in refused(host(A10G), toolkit="latest").change


@pytest.mark.parametrize(
    ("branch", "toolkit", "told"),
    [
        (580, "11.8", ""),
        (580, "12.9", ""),
        (580, "13.0", ""),
        (580, "13.2", "take cuda_toolkit: 13.0"),
        (595, "13.2", ""),
        (595, "13.3", "take cuda_toolkit: 13.2"),
        (610, "13.3", ""),
    ],
)
def test_what_a_toolkit_compiles_for_a_driver_of_before(branch: int, toolkit: str, told: str) -> None:
    """Minor versions of CUDA run on one driver, but for PTX."""
    notes = " ".join(decided(host(A10G), branch=branch, toolkit=toolkit).notes)
    assert told in notes and ("loads no PTX" in notes) is bool(told)


def test_ubuntus_driver_and_nvidias_toolkit_do_not_mix() -> None:
    made = decided(host(A10G, system="ubuntu 24.04"), toolkit="12.8")
    first, second = made.files[sets.PREFERENCES].split("\n\n")
    assert "*-12-8" in first and "Package: *\n" in second and second.endswith("Pin-Priority: -1\n")


def test_the_container_toolkit_is_locked() -> None:
    made = decided(host(A10G), container_toolkit=True)
    assert [one.name for one in made.extras][-1] == "nvidia-container-toolkit" and set(table.CONTAINER_PACKAGES) <= set(
        made.hold
    )
    assert {one.version for one in made.extras} == {"1.20.1-*"} and "nvidia-cdi-refresh.path" in made.services
    assert made.repositories[1].key == "https://nvidia.github.io/libnvidia-container/gpgkey"


def test_efa_is_installed_where_there_is_some() -> None:
    assert decided(host(H100, efa=32), efa=True).efa == table.EFA_VERSION
    assert decided(host(H100, efa=32, efa_installed=table.EFA_VERSION), efa=True).efa == ""
    none = decided(host(H100), efa=True)
    assert none.efa == "" and "no EFA device" in none.notes[0]
    assert "cuda_efa_digest" in refused(host(H100, efa=32), efa=True, efa_version="9.9").change


def test_gdrcopy_comes_where_it_is_asked_for() -> None:
    assert [one.name for one in decided(host(H100), gdrcopy=True).extras] == ["gdrdrv-dkms", "libgdrapi"]
    assert decided(host(H100, system="amzn 2023"), gdrcopy=True).extras[0].name == "gdrcopy"


def test_a_repository_that_is_there_is_not_added_again() -> None:
    made = decided(host(A10G, sources=("/etc/apt/sources.list.d/cuda.list",)), toolkit="12.8")
    assert made.repositories == [] and "cuda.list has it" in made.notes[0]


def test_a_mirror_stands_for_nvidias_repository() -> None:
    made = decided(host(A10G), repository="https://mirror.example/cuda", pin="AB" * 20)
    assert "URIs: https://mirror.example/cuda/debian12/x86_64\n" in made.repositories[0].text
    assert made.repositories[0].pin == "AB" * 20
