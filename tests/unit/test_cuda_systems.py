# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which packages a driver is on each operating system, and where they come from."""

from __future__ import annotations

import typing as t
from dataclasses import replace

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._cuda import sets, table
from ansible_collections.llmops.finetune.plugins.module_utils._cuda.facts import Facts

from .cuda_hosts import A10G, GB200, H100, L4, MIRROR, V100, decided, host, names, refused


@pytest.mark.parametrize(
    ("system", "kernel", "expected"),
    [
        ("ubuntu 22.04", "6.8.0-1021-aws", "linux-modules-nvidia-580-server-open-aws"),
        ("ubuntu 24.04", "6.8.0-60-generic", "linux-modules-nvidia-580-server-open-generic"),
        ("ubuntu 26.04", "7.0.0-1004-aws", "linux-modules-nvidia-580-server-open-aws"),
    ],
)
def test_ubuntu_gets_its_signed_modules(system: str, kernel: str, expected: str) -> None:
    made = decided(host(A10G, system=system, kernel=kernel))
    assert made.source == "distribution" and names(made)[0] == expected and not made.tools and not made.repositories
    assert names(made)[1:] == [
        "nvidia-headless-no-dkms-580-server-open",
        "nvidia-utils-580-server",
        "nvidia-compute-utils-580-server",
    ]
    assert made.driver == "" and {one.version for one in made.packages[1:]} == {"580.*"}, "its archive has the newest"


@pytest.mark.parametrize(
    ("kernel", "images", "expected"),
    [
        ("6.8.0-1021-aws", {"linux-image-aws": "6.8.0-1021.23"}, "aws"),
        ("6.8.0-1021-aws", {}, "aws"),
        ("6.8.0-1021-aws", {"linux-image-aws": "6.8.0-1021.23", "linux-image-aws-6.8": "6.8.0-1021.23"}, "aws"),
        ("5.15.0-1080-aws", {"linux-image-aws-lts-22.04": "5.15.0-1080.87"}, "aws-lts-22.04"),
        ("6.8.0-1021-aws-64k", {}, "aws-64k"),
        ("6.8.0-60-generic", {"linux-image-generic": "6.8.0-60.63"}, "generic"),
        ("6.17.0-40-generic", {"linux-image-generic-hwe-24.04": "6.17.0-40.40~24.04.1"}, "generic-hwe-24.04"),
        ("6.17.0-40-generic", {"linux-image-virtual-hwe-24.04": "6.17.0-40.40~24.04.1"}, "generic-hwe-24.04"),
        ("6.8.0-60-generic", {"linux-image-virtual": "6.8.0-60.63"}, "generic"),
        (
            "6.17.0-40-generic",
            {
                "linux-image-generic": "6.8.0-60.63",
                "linux-image-generic-hwe-24.04": "6.17.0-40.40~24.04.1",
                "linux-image-6.17.0-40-generic": "6.17.0-40.40~24.04.1",
            },
            "generic-hwe-24.04",
        ),
        ("6.18.44-fc", {}, "fc"),
        ("", {}, "generic"),
    ],
)
def test_signed_modules_are_those_of_the_package_that_brought_the_kernel(
    kernel: str, images: dict[str, str], expected: str
) -> None:
    made = decided(host(A10G, system="ubuntu 24.04", kernel=kernel, packages=images))
    assert names(made)[0] == f"linux-modules-nvidia-580-server-open-{expected}"


def test_signed_modules_are_found_while_a_newer_kernel_waits() -> None:
    waiting = ("6.17.0-40-generic", "6.17.0-41-generic")
    images = {"linux-image-generic-hwe-24.04": "6.17.0-41.41~24.04.1"}
    made = decided(host(A10G, system="ubuntu 24.04", kernel=waiting[0], kernels=waiting, packages=images))
    assert names(made)[0].endswith("-generic-hwe-24.04")


@pytest.mark.parametrize(
    ("system", "asked", "expected"),
    [
        (
            "ubuntu 24.04",
            {},
            [
                "linux-modules-nvidia-580-server-aws",
                "nvidia-headless-no-dkms-580-server",
                "nvidia-utils-580-server",
                "nvidia-compute-utils-580-server",
            ],
        ),
        (
            "ubuntu 22.04",
            {"source": "nvidia"},
            ["libnvidia-compute-580", "nvidia-dkms-580", "nvidia-utils-580", "nvidia-compute-utils-580"],
        ),
        ("debian 13", {}, ["nvidia-driver-cuda", "nvidia-kernel-dkms", "nvidia-persistenced"]),
        ("amzn 2023", {}, ["nvidia-driver-cuda", "kmod-nvidia-latest-dkms", "nvidia-persistenced"]),
        ("rhel 8.10", {}, ["nvidia-driver-cuda", "kmod-nvidia-latest-dkms", "nvidia-persistenced"]),
        ("rocky 10.1", {}, ["nvidia-driver-cuda", "kmod-nvidia-latest-dkms", "nvidia-persistenced"]),
    ],
)
def test_volta_gets_proprietary_packages(system: str, asked: dict[str, t.Any], expected: list[str]) -> None:
    assert names(decided(host(V100, system=system), **asked)) == expected


@pytest.mark.parametrize(
    ("branch", "expected"),
    [
        (580, ["libnvidia-compute-580", "nvidia-dkms-580-open", "nvidia-utils-580", "nvidia-compute-utils-580"]),
        (595, ["libnvidia-compute", "nvidia-dkms-open", "nvidia-persistenced"]),
    ],
)
@pytest.mark.parametrize("system", ["ubuntu 22.04", "ubuntu 24.04", "ubuntu 26.04"])
def test_nvidias_packages_on_ubuntu(system: str, branch: int, expected: list[str]) -> None:
    made = decided(host(A10G, system=system), source="nvidia", branch=branch)
    assert names(made) == expected
    assert made.files[sets.PREFERENCES].index("o=Ubuntu") < made.files[sets.PREFERENCES].index("Pin: version"), "first"
    assert made.repositories[0].text.startswith(
        f"Types: deb\nURIs: {table.CUDA_REPOSITORY}/{system.replace(' ', '').replace('.', '')}/x86_64\n"
    )


@pytest.mark.parametrize(("system", "key"), [("debian 12", "3bf863cc"), ("debian 13", "8793F200")])
def test_debian_gets_nvidias_packages(system: str, key: str) -> None:
    made = decided(host(A10G, system=system))
    assert names(made) == ["nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-persistenced"]
    assert {one.version for one in made.packages} == {"580.178.04-*"}
    assert made.files[sets.PREFERENCES].endswith("Pin: version 580.178.04-*\nPin-Priority: 1000\n")
    (repository,) = made.repositories
    assert repository.key.endswith(f"/{key}.pub") and repository.pin.endswith(key.upper())
    assert "Signed-By: /usr/share/keyrings/llmops-cuda.asc" in repository.text
    assert [one.name for one in made.tools] == ["linux-headers-6.1.0-35-cloud-amd64", "dkms"]


@pytest.mark.parametrize(("system", "branch", "suite"), [("debian 12", 535, "bookworm"), ("debian 13", 550, "trixie")])
def test_debian_has_no_fabric_manager_of_its_own(system: str, branch: int, suite: str) -> None:
    error = refused(host(*[H100] * 8, system=system, switches=4), source="distribution")
    assert "no fabric manager" in error.what and "cuda_source: nvidia" in error.change


@pytest.mark.parametrize(("system", "branch", "suite"), [("debian 12", 535, "bookworm"), ("debian 13", 550, "trixie")])
def test_debians_own_packages(system: str, branch: int, suite: str) -> None:
    made = decided(host(A10G, system=system, archive=MIRROR), source="distribution")
    assert names(made) == ["nvidia-open-kernel-dkms", "nvidia-smi", "libcuda1", "nvidia-persistenced"]
    there = f"URIs: {MIRROR}\nSuites: {suite}\nComponents: contrib non-free non-free-firmware\n"
    assert made.branch == branch and there in made.repositories[0].text
    older = decided(host(V100, system=system, archive=MIRROR), source="distribution")
    assert names(older)[0] == "nvidia-kernel-dkms"
    error = refused(host(A10G, system=system), source="distribution")
    assert f"main part of {suite}" in error.what and "cuda_source: nvidia" in error.change


DEBIAN, RPM = "EB693B3035CD5710E231E123A4B469963BF863CC", "610C7B14E068A878070DA4E99CD0A493D42D0685"


@pytest.mark.parametrize(
    ("system", "folder", "key", "pin"),
    [
        ("ubuntu 22.04", "ubuntu2204", "3bf863cc.pub", DEBIAN),
        ("ubuntu 24.04", "ubuntu2404", "3bf863cc.pub", DEBIAN),
        ("ubuntu 26.04", "ubuntu2604", "60DF8A40.pub", "14BAFBC7562AD710CA04E69905FBB6DA60DF8A40"),
        ("debian 12", "debian12", "3bf863cc.pub", DEBIAN),
        ("debian 13", "debian13", "8793F200.pub", "02182E60104FCDC26EAE1B8597A5D4CB8793F200"),
        ("amzn 2023", "amzn2023", "D42D0685.pub", RPM),
        ("rhel 8.10", "rhel8", "D42D0685.pub", RPM),
        ("centos 9", "rhel9", "D42D0685.pub", RPM),
        (
            "almalinux 10.1",
            "rhel10",
            "CDF6BA43.pub",
            "sha256:afbea87d3b979b3788ef34223aeeb323ade481128e2c133723ae99b8a51368bb",
        ),
    ],
)
def test_each_system_has_its_repository_and_its_key(system: str, folder: str, key: str, pin: str) -> None:
    (repository,) = decided(host(A10G, system=system), source="nvidia").repositories
    place = f"https://developer.download.nvidia.com/compute/cuda/repos/{folder}/x86_64"
    assert (repository.key, repository.pin) == (f"{place}/{key}", pin)
    assert f"{'baseurl=' if '.repo' in repository.path else 'URIs: '}{place}\n" in repository.text


@pytest.mark.parametrize(
    ("system", "repository", "epel"),
    [
        ("amzn 2023", "amzn2023", ""),
        ("rhel 8.10", "rhel8", "epel-release"),
        ("rocky 9.5", "rhel9", "epel-release"),
        ("almalinux 9.5", "rhel9", "epel-release"),
        ("centos 9", "rhel9", "epel-release"),
        ("ol 9.4", "rhel9", "oracle-epel-release-el9"),
    ],
)
def test_systems_with_module_streams(system: str, repository: str, epel: str) -> None:
    made = decided(host(H100, system=system))
    assert made.stream == "580-open" and f"/{repository}/x86_64\n" in made.repositories[0].text
    assert "gpgcheck=1" in made.repositories[0].text and made.repositories[0].key.endswith("D42D0685.pub")
    assert names(made) == ["nvidia-driver-cuda", "kmod-nvidia-open-dkms", "nvidia-persistenced"]
    assert [one.name for one in made.tools[:1] if "epel" in one.name] == ([epel] if epel else [])
    assert decided(host(V100, system=system)).stream == "580-dkms"
    assert "kmod-nvidia-latest-dkms" in names(decided(host(V100, system=system)))


def test_rhel_10_has_no_streams_and_rhel_takes_epel_from_its_address() -> None:
    made = decided(host(H100, system="rhel 10.1"))
    assert made.stream == "" and made.repositories[0].pin.startswith("sha256:")
    assert names(made) == ["nvidia-driver-cuda", "kmod-nvidia-open-dkms", "nvidia-persistenced"]
    assert {one.version for one in made.packages} == {"580.178.04-*"} and set(names(made)) <= set(made.hold)
    assert made.tools[0].place == "https://dl.fedoraproject.org/pub/epel/epel-release-latest-10.noarch.rpm"


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ("6.1.141-155.222.amzn2023.x86_64", "kernel-devel-6.1.141-155.222.amzn2023.x86_64"),
        ("6.12.40-64.114.amzn2023.x86_64", "kernel6.12-devel-6.12.40-64.114.amzn2023.x86_64"),
        ("6.18.2-1.2.amzn2023.x86_64", "kernel6.18-devel-6.18.2-1.2.amzn2023.x86_64"),
    ],
)
def test_amazon_linux_names_kernels_by_their_series(kernel: str, expected: str) -> None:
    made = decided(host(H100, system="amzn 2023", kernel=kernel))
    assert made.tools[0].name == expected and made.tools[2].name == expected.replace("devel", "modules-extra")


@pytest.mark.parametrize(
    ("system", "kernel", "first"),
    [
        ("amzn 2023", "6.12.40-64.114.amzn2023.x86_64", "kernel6.12"),
        ("rhel 9.5", "5.14.0-503.el9.x86_64", "kernel"),
        ("rhel 10.1", "6.12.0-55.el10.x86_64", "kernel"),
    ],
)
def test_what_dkms_builds_with(system: str, kernel: str, first: str) -> None:
    found = [one.name for one in decided(host(A10G, system=system, kernel=kernel)).tools if one.name != "epel-release"]
    headers = [f"{first}-{part}-{kernel}" for part in ("devel", "headers", "modules-extra")]
    assert found == [*headers, "dkms", "gcc", "make", "python3-dnf-plugin-versionlock"]


def test_arm_has_a_repository_of_its_own() -> None:
    assert "/debian12/sbsa\n" in decided(replace(host(GB200), machine="aarch64")).repositories[0].text


@pytest.mark.parametrize(
    ("facts", "asked", "what", "change"),
    [
        (host(L4, system="arch 1"), {}, "No driver is known for arch 1", "ubuntu 22.04"),
        (host(L4, system="ubuntu 20.04"), {}, "No driver is known for ubuntu 20.04", "ubuntu 22.04"),
        (replace(host(L4), machine="ppc64le"), {}, "processor ppc64le", "x86_64"),
        (host(L4, system="amzn 2023"), {"source": "distribution"}, "packs no driver of its own", "nvidia"),
        (host(L4, container=True), {}, "This host is a container", "on that machine"),
    ],
)
def test_systems_that_are_refused(facts: Facts, asked: dict[str, t.Any], what: str, change: str) -> None:
    error = refused(facts, **asked)
    assert what in error.what and change in error.change
