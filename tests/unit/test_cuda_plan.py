# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which driver a node gets: branches, GPUs, systems, and what goes with a driver."""

from __future__ import annotations

import typing as t
from dataclasses import replace

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._cuda import plan, sets, table
from ansible_collections.llmops.finetune.plugins.module_utils._cuda.facts import Facts, Package, Plan, Wish
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.module_utils._gpu.card import Problem
from ansible_collections.llmops.finetune.plugins.module_utils._gpu.pci import Card

M60, P40, P100, V100, T4, T4G = "13f2", "1b38", "15f8", "1db1", "1eb8", "1eb4"
A100, A10G, L4, L40S, H100, H200 = "20b2", "2237", "27b8", "26b9", "2330", "2335"
B200, B300, RTX, RTX_4500, GB200, GB300, GB10 = "2901", "3182", "2bb5", "2c31", "2941", "31c2", "2e12"
MIRROR = "http://mirror.example/debian"
SILENT = Problem("8 GPUs are there, and no driver has it.", "install NVIDIA's driver", blocks=True)
KERNELS = {"ubuntu": "6.8.0-1021-aws", "debian": "6.1.0-35-cloud-amd64", "amzn": "6.12.40-64.114.amzn2023.x86_64"}


def cards(*devices: str, driver: str = "") -> tuple[Card, ...]:
    return tuple(Card(f"0000:{16 + number:x}:00.0", "10de", one, "0302", driver) for number, one in enumerate(devices))


def host(*devices: str, system: str = "debian 12", switches: int = 0, **known: t.Any) -> Facts:
    name, version = system.split()
    kernel = known.pop("kernel", KERNELS.get(name, "5.14.0-503.el9.x86_64"))
    return Facts(name, version, kernel=kernel, cards=cards(*devices), switches=switches, problems=(SILENT,), **known)


def decided(facts: Facts, **asked: t.Any) -> Plan:
    return plan.decide(facts, Wish(**asked))


def names(made: Plan) -> list[str]:
    return [package.name for package in made.packages]


def refused(facts: Facts, **asked: t.Any) -> FinetuneError:
    with pytest.raises(FinetuneError) as error:
        decided(facts, **asked)
    return error.value


# 6.1 branches


@pytest.mark.parametrize(
    ("branch", "kind", "ends", "version", "flavours", "oldest"),
    [
        (535, "LTS", "2026-06", "", 2, 5.0),
        (580, "LTS", "2028-06", "580.178.04", 2, 5.0),
        (595, "production", "2027-03", "595.91.07", 2, 7.5),
        (610, "new feature", "2026-08", "610.57.04", 2, 7.5),
        (615, "new feature", "", "615.71.09", 2, 7.5),
        (620, "LTS", "2029-09", "", 1, 7.5),
    ],
)
def test_branches(branch: int, kind: str, ends: str, version: str, flavours: int, oldest: float) -> None:
    known = table.branch(branch)
    assert known and (known.kind, known.ends, known.version) == (kind, ends, version) and known.source
    assert (len(known.flavours), known.least) == (flavours, oldest) and known.flavours[0] == "open"


def test_what_each_cuda_needs() -> None:
    assert table.LEAST_DRIVER == {11: (450, 80, 2), 12: (525, 60, 13), 13: (580, 0, 0)}


@pytest.mark.parametrize("branch", [580, 595, 610, 615])
def test_proprietary_modules_are_there_up_to_615(branch: int) -> None:
    made = decided(host(T4), branch=branch, flavour="proprietary")
    assert (made.flavour, names(made)[1]) == ("proprietary", "nvidia-kernel-dkms")
    assert decided(host(T4), branch=branch).flavour == "open"
    assert decided(host(T4), branch=620, version="620.10.1").flavour == "open"


@pytest.mark.parametrize("device", [M60, P100, P40, V100])
@pytest.mark.parametrize("branch", [595, 610, 615, 620])
def test_580_is_the_last_branch_for_what_is_older_than_turing(device: str, branch: int) -> None:
    error = refused(host(device), branch=branch, version=f"{branch}.10.1")
    assert f"too old for driver branch {branch}" in error.what and error.change == "use 580"


def test_the_default_is_a_branch_that_drives_every_gpu_and_has_a_version() -> None:
    known = table.branch(table.DEFAULT_BRANCH)
    assert known and known.kind == "LTS" and known.version.startswith("580.") and known.least == 5
    assert all(one.driver <= known.number for one in table.GENERATIONS)
    assert all(one.ends > known.ends for one in table.BRANCHES if one.kind == "LTS" and one.number > known.number)


@pytest.mark.parametrize(
    ("devices", "asked", "what", "change"),
    [
        ([V100], {"branch": 595}, "too old for driver branch 595: 580 was the last", "use 580"),
        ([B200], {"branch": 535, "version": "535.261.03"}, "535 is too old for GPUs of Blackwell", "use 580 or later"),
        (
            [T4],
            {"branch": 620, "version": "620.10.1", "flavour": "proprietary"},
            "no proprietary kernel modules",
            "580",
        ),
        ([T4], {"branch": 620, "version": "620.10.1", "gsp": False}, "no proprietary kernel modules", "leave cuda_gsp"),
        ([A10G], {"branch": 620}, "No version of driver branch 620 is locked", "cuda_version"),
        ([A10G], {"branch": 42}, "branch 42 is not known", "use one of 535, 550, 580"),
        ([A10G], {"branch": 580, "version": "595.91.07"}, "cuda_version 595.91.07 is not of cuda_branch 580", "leave"),
        ([RTX], {"source": "distribution"}, "535 is too old for GPUs of Blackwell", "cuda_source: nvidia"),
        ([L4], {"branch": 550, "version": "550.163.01"}, "for computing alone from branch 560 on", "distribution"),
        ([L4], {"source": "distribution", "branch": 580}, "packs branch 535, not 580", "cuda_source: nvidia"),
    ],
)
def test_a_branch_that_cannot_be(devices: list[str], asked: dict[str, t.Any], what: str, change: str) -> None:
    error = refused(host(*devices), **asked)
    assert what in error.what and change in error.change


def test_the_end_of_a_branch_is_told() -> None:
    assert "ended in 2026-08" in " ".join(decided(host(L4, month="2026-11"), branch=610).notes)
    assert decided(host(L4, month="2026-11")).notes == []


# 6.2 GPUs


@pytest.mark.parametrize(
    ("device", "capability", "flavour", "least"),
    [
        (M60, 5.0, "proprietary", 0),
        (P40, 6.1, "proprietary", 0),
        (P100, 6.0, "proprietary", 0),
        (V100, 7.0, "proprietary", 0),
        (T4, 7.5, "open", 0),
        (T4G, 7.5, "open", 0),
        (A100, 8.0, "open", 0),
        (A10G, 8.6, "open", 0),
        (L4, 8.9, "open", 525),
        (L40S, 8.9, "open", 525),
        (H100, 9.0, "open", 525),
        (H200, 9.0, "open", 535),
        (B200, 10.0, "open", 570),
        (B300, 10.3, "open", 580),
        (RTX, 12.0, "open", 570),
        (RTX_4500, 12.0, "open", 570),
        (GB200, 10.0, "open", 580),
        (GB300, 10.3, "open", 580),
        (GB10, 12.1, "open", 580),
    ],
)
def test_gpus(device: str, capability: float, flavour: str, least: int) -> None:
    known = table.generation(device)
    assert known and (known.capability, known.driver) == (capability, least)
    made = decided(host(device))
    assert (made.branch, made.flavour, made.driver) == (580, flavour, "580.178.04")
    # the other modules: none before Turing, a choice up to Hopper, none from Blackwell on
    other = "open" if flavour == "proprietary" else "proprietary"
    if 7.5 <= capability < 10:
        assert decided(host(device), flavour=other).flavour == other
    else:
        assert f"{other} kernel modules do not drive" in refused(host(device), flavour=other).what


@pytest.mark.parametrize(
    ("device", "driver", "passes"),
    [
        (V100, "525.60.13", True),
        (V100, "580.178.04", True),
        (L4, "525.60.13", True),
        (H200, "535.54.03", True),
        (H200, "525.147.05", False),
        (B200, "570.86.10", True),
        (B200, "565.57.01", False),
        (RTX, "565.57.01", False),
        (B300, "575.57.08", False),
        (GB200, "575.57.08", False),
        (GB300, "575.57.08", False),
        (GB10, "575.57.08", False),
        (GB10, "580.95.05", True),
        (A100, "470.256.02", False),
    ],
)
def test_a_driver_that_is_there_has_to_be_new_enough(device: str, driver: str, passes: bool) -> None:
    there = replace(host(device), driver=driver, loaded=driver, problems=(), cards=cards(device, driver="nvidia"))
    assert plan.faults(there) == [] if passes else "is below" in plan.faults(there)[0][0]


def test_the_ranges_agree_with_the_catalogue() -> None:
    from ansible_collections.llmops.finetune.plugins.module_utils._gpu import catalogue

    for card in catalogue.KNOWN:
        for device in card.pci:
            known = table.generation(device)
            assert known and (known.name, known.capability) == (card.generation, card.compute_capability), card.name


@pytest.mark.parametrize(
    ("devices", "asked", "what", "change"),
    [
        ([V100], {"flavour": "open"}, "open kernel modules do not drive", "say proprietary"),
        ([RTX], {"flavour": "proprietary"}, "proprietary kernel modules do not drive", "say open"),
        ([V100, B200], {}, "need different kernel modules", "take one kind out"),
        ([B200], {"gsp": False}, "do not run without the GPU's system processor", "leave it at true"),
        ([A10G], {"gsp": False, "flavour": "open"}, "do not run without", "cuda_flavour: proprietary"),
    ],
)
def test_modules_that_do_not_drive_a_gpu(devices: list[str], asked: dict[str, t.Any], what: str, change: str) -> None:
    error = refused(host(*devices), **asked)
    assert what in error.what and change in error.change


def test_a_gpu_that_nobody_knows_gets_open_modules_and_a_word() -> None:
    made = decided(host("ffff"))
    assert made.flavour == "open" and "of no generation that is known" in made.notes[0]


# 6.3 systems


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


# 6.4 what goes with a driver


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
