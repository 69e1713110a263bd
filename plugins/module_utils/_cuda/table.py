# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Branches of the driver, GPUs, systems and their packages: all that is no decision. Pure.

Sources, all read in November 2026: NVIDIA's driver installation guide (releases 590 to 620) and data centre driver
documentation; the pages of its repositories; the package archives of Debian and Ubuntu; AWS's image definitions for EKS
and its Deep Learning AMIs; PyTorch's build scripts. Nothing of it was tried on a GPU by this project.
"""

from __future__ import annotations

import typing as t

OPEN, PROPRIETARY = "open", "proprietary"


class Branch(t.NamedTuple):
    """ends: the month in which its support ends. version: the one that is locked; empty where the project knows none.
    least: the lowest compute capability; the other end is with the GPUs."""

    number: int
    kind: str
    ends: str
    version: str
    flavours: t.Tuple[str, ...]
    least: float
    source: str


_BOTH = (OPEN, PROPRIETARY)
BRANCHES = (
    Branch(535, "LTS", "2026-06", "", _BOTH, 5.0, "data centre drivers, table of 615"),
    Branch(550, "production", "2025-06", "", _BOTH, 5.0, "data centre drivers; Debian 13 has it"),
    Branch(580, "LTS", "2028-06", "580.178.04", _BOTH, 5.0, "data centre drivers, table of 620; EKS AMI 2026-09"),
    Branch(595, "production", "2027-03", "595.91.07", _BOTH, 7.5, "Deep Learning AMI of October 2026"),
    Branch(610, "new feature", "2026-08", "610.57.04", _BOTH, 7.5, "installation guide 610"),
    Branch(615, "new feature", "", "615.71.09", _BOTH, 7.5, "installation guide 615; repository ubuntu2604"),
    Branch(620, "LTS", "2029-09", "", (OPEN,), 7.5, "installation guide 620: proprietary modules removed"),
)
DEFAULT_BRANCH = 580
"""The LTS that drives every GPU from Maxwell to Blackwell and runs CUDA 12 and 13."""


COMPUTE_ONLY = 560
"""The first branch that NVIDIA packs for Debian without its displays (installation guide)."""


class Generation(t.NamedTuple):
    """GPUs by their PCI device ids, first and last. driver: the least branch."""

    first: int
    last: int
    name: str
    capability: float
    flavours: t.Tuple[str, ...]
    driver: int


GENERATIONS = (
    Generation(0x15F0, 0x15FF, "Pascal", 6.0, (PROPRIETARY,), 0),
    Generation(0x1340, 0x17FF, "Maxwell", 5.0, (PROPRIETARY,), 0),
    Generation(0x1B00, 0x1D7F, "Pascal", 6.1, (PROPRIETARY,), 0),
    Generation(0x1D80, 0x1DFF, "Volta", 7.0, (PROPRIETARY,), 0),
    Generation(0x1E00, 0x1FFF, "Turing", 7.5, _BOTH, 0),
    Generation(0x2080, 0x20FF, "Ampere", 8.0, _BOTH, 0),
    Generation(0x2180, 0x21FF, "Turing", 7.5, _BOTH, 0),
    Generation(0x2200, 0x22FF, "Ampere", 8.6, _BOTH, 0),
    Generation(0x2335, 0x233F, "Hopper", 9.0, _BOTH, 535),  # H200
    Generation(0x2300, 0x23FF, "Hopper", 9.0, _BOTH, 525),
    Generation(0x2400, 0x25FF, "Ampere", 8.6, _BOTH, 0),
    Generation(0x2600, 0x28FF, "Ada Lovelace", 8.9, _BOTH, 525),
    Generation(0x2940, 0x297F, "Blackwell", 10.0, (OPEN,), 580),  # GB200
    Generation(0x2900, 0x29FF, "Blackwell", 10.0, (OPEN,), 570),
    Generation(0x2E00, 0x2EFF, "Blackwell", 12.1, (OPEN,), 580),  # GB10
    Generation(0x2B00, 0x2FFF, "Blackwell", 12.0, (OPEN,), 570),
    Generation(0x3180, 0x31FF, "Blackwell", 10.3, (OPEN,), 580),  # B300, GB300
)
"""The first that fits counts: the open modules drive Turing and later, Blackwell needs them."""
SUBNET_MANAGED = ("2901", "3182")
"""HGX B200 and B300, whose NVSwitches do not show on the bus and want NVLSM."""
RACK = ("2941", "31c2", "31c3")
"""GB200 and GB300, which reach each other through IMEX; their switches are not the node's."""

GSP_OFF = ("g4dn", "g5", "g5g")
"""Instance families on which AWS turns the GPU's system processor off, with proprietary modules (EKS AMI)."""
FRACTIONS = ("g6f", "gr6f")
"""Families with a part of a GPU, which only NVIDIA's GRID driver knows."""

LEAST_DRIVER = {11: (450, 80, 2), 12: (525, 60, 13), 13: (580, 0, 0)}
"""By the major version of CUDA: what its minor versions run on (release notes of CUDA)."""
OWN_BRANCH = {
    (12, 0): 525,
    (12, 1): 530,
    (12, 2): 535,
    (12, 3): 545,
    (12, 4): 550,
    (12, 5): 555,
    (12, 6): 560,
    (12, 8): 570,
    (12, 9): 575,
    (13, 0): 580,
    (13, 1): 590,
    (13, 2): 595,
    (13, 3): 610,
}
"""The branch that came with a release of CUDA: an older one runs its code, and loads no PTX of it (the same notes)."""


class Torch(t.NamedTuple):
    """A build of torch: its CUDA and the compute capabilities it has code for. torch: `until` is the last release that
    comes so, empty where it is still made. strange: capabilities that its code runs on and its compiler, the ptxas
    beside Triton, does not know."""

    name: str
    cuda: int
    least: float
    most: float
    until: str = ""
    strange: t.Tuple[float, ...] = ()


TORCH = (
    Torch("cu132", 13, 7.5, 12.1),
    Torch("cu130", 13, 7.5, 12.1),
    Torch("cu128", 12, 7.0, 12.1, "2.10", strange=(10.3, 12.1)),
    Torch("cu126", 12, 5.0, 9.0),
)
"""CUDA 12.9 was the first to compile for 10.3 and 12.1 (CUDA Features Archive); of 12.8 is what torch 2.8 has."""
TORCH_ON_ARM = 8.0
"""The least that any build has code for on aarch64 (PyTorch's build scripts for it): T4g is below."""
LOCKED_TORCH, LOCKED_MACHINE = "cu128", "x86_64"
"""What the wheels of requirements/node-*.txt are: torch 2.8 of the package index, which has no CUDA elsewhere."""


class System(t.NamedTuple):
    """An operating system. repository: NVIDIA's for it. key: its file there; pin: fingerprint of the key, or `sha256:`
    of its text without lines of `Version`. own: branch that the distribution itself packs, 0 for several or none.
    modular: module streams choose the branch. epel: the package that brings DKMS. codename: of its own archive."""

    ids: t.Tuple[str, ...]
    version: str
    family: str
    repository: str
    key: str
    pin: str
    sources: t.Tuple[str, ...] = ("nvidia",)
    own: int = 0
    modular: bool = False
    codename: str = ""


APT, DNF = "apt", "dnf"
_DEBIAN_KEY = "EB693B3035CD5710E231E123A4B469963BF863CC"
_RPM_KEY = "610C7B14E068A878070DA4E99CD0A493D42D0685"
_UBUNTU = ("distribution", "nvidia")
_OWN_TOO = ("nvidia", "distribution")
_RHEL = ("rhel", "rocky", "almalinux", "ol", "centos")
SYSTEMS = (
    System(("ubuntu",), "22.04", APT, "ubuntu2204", "3bf863cc.pub", _DEBIAN_KEY, _UBUNTU, codename="jammy"),
    System(("ubuntu",), "24.04", APT, "ubuntu2404", "3bf863cc.pub", _DEBIAN_KEY, _UBUNTU, codename="noble"),
    System(
        ("ubuntu",),
        "26.04",
        APT,
        "ubuntu2604",
        "60DF8A40.pub",
        "14BAFBC7562AD710CA04E69905FBB6DA60DF8A40",
        _UBUNTU,
        codename="resolute",
    ),
    System(("debian",), "12", APT, "debian12", "3bf863cc.pub", _DEBIAN_KEY, _OWN_TOO, own=535, codename="bookworm"),
    System(
        ("debian",),
        "13",
        APT,
        "debian13",
        "8793F200.pub",
        "02182E60104FCDC26EAE1B8597A5D4CB8793F200",
        _OWN_TOO,
        own=550,
        codename="trixie",
    ),
    System(("amzn",), "2023", DNF, "amzn2023", "D42D0685.pub", _RPM_KEY, modular=True),
    System(_RHEL, "8", DNF, "rhel8", "D42D0685.pub", _RPM_KEY, modular=True),
    System(_RHEL, "9", DNF, "rhel9", "D42D0685.pub", _RPM_KEY, modular=True),
    System(
        _RHEL,
        "10",
        DNF,
        "rhel10",
        "CDF6BA43.pub",
        "sha256:afbea87d3b979b3788ef34223aeeb323ade481128e2c133723ae99b8a51368bb",
    ),
)
"""The first of `sources` is what is taken unless told otherwise."""
MACHINES = {"x86_64": "x86_64", "aarch64": "sbsa"}
"""What NVIDIA's repositories call them."""
EPEL = {
    "rocky": "epel-release",
    "almalinux": "epel-release",
    "centos": "epel-release",
    "ol": "oracle-epel-release-el{0}",
    "rhel": "https://dl.fedoraproject.org/pub/epel/epel-release-latest-{0}.noarch.rpm",
}
"""DKMS is there; Amazon Linux has it in NVIDIA's repository."""

CUDA_REPOSITORY = "https://developer.download.nvidia.com/compute/cuda/repos"
CONTAINER_REPOSITORY = "https://nvidia.github.io/libnvidia-container"
CONTAINER_PIN = "C95B321B61E88C1809C4F759DDCAE044F796ECB0"
CONTAINER_VERSION = "1.20.1"
"""From 1.18 on it writes CDI descriptions (Deep Learning AMI of October 2026)."""
CONTAINER_PACKAGES = (
    "libnvidia-container1",
    "libnvidia-container-tools",
    "nvidia-container-toolkit-base",
    "nvidia-container-toolkit",
)
EFA_VERSION = "1.50.0"
EFA_URL = "https://efa-installer.amazonaws.com/aws-efa-installer-{0}.tar.gz"
EFA_DIGESTS = {"1.50.0": "fa6dff8593d866866c13cb4640d9059835cd4efa427971f100ab40c97bef2841"}


def branch(number: int) -> Branch | None:
    return next((one for one in BRANCHES if one.number == number), None)


def generation(device: str) -> Generation | None:
    """By a PCI device id, four hex digits; None for one that is in no known range."""
    number = int(device, 16)
    return next((one for one in GENERATIONS if one.first <= number <= one.last), None)


def system(name: str, version: str) -> System | None:
    """By ID and VERSION_ID of os-release."""
    for one in SYSTEMS:
        if name in one.ids and (version == one.version or version.startswith(f"{one.version}.")):
            return one
    return None


def torch(name: str) -> Torch:
    return next(one for one in TORCH if one.name == name)
