# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packages, repositories and files of a driver, by system and source. Pure."""

from __future__ import annotations

import re
import typing as t

from . import table
from .facts import Facts, Package, Repository, Wish, fits

PREFERENCES = "/etc/apt/preferences.d/llmops-cuda"
MODPROBE = "/etc/modprobe.d/llmops-cuda.conf"
MODULES_LOAD = "/etc/modules-load.d/llmops-cuda.conf"
_APT_SOURCES, _APT_KEYS = "/etc/apt/sources.list.d", "/usr/share/keyrings"
_DNF_SOURCES, _DNF_KEYS = "/etc/yum.repos.d", "/etc/pki/rpm-gpg"
_KERNEL_APT = re.compile(
    r"linux-(?:image-|headers-|modules-extra-)?(?:aws|generic|virtual|lowlatency|kvm|gcp|gke|azure|oracle|ibm|nvidia"
    r"|(?:cloud-|rt-)?(?:amd64|arm64))(?:-64k)?(?:-hwe-\d\d\.\d\d|-lts-\d\d\.\d\d|-\d+\.\d+)?(?:-edge)?"
)
_KERNEL_DNF = re.compile(r"kernel(?:\d\.\d+)?(?:-core|-modules|-modules-core|-modules-extra|-devel|-headers)?")
_ABI = re.compile(r"(\d+\.\d+\.\d+-\d+)-")
_IMAGE = "linux-image-"
DRIVERS = re.compile(
    r"nvidia-(?:driver|open|kernel|dkms|headless|utils|smi|tesla)\b.*|kmod-nvidia\b.*|cuda-drivers\b.*"
    r"|linux-modules-nvidia\b.*|libnvidia-compute\b.*|libcuda1|dkms-nvidia"
)
"""Names of packages that are a driver, whoever made them."""


class Hardware(t.NamedTuple):
    """What the GPUs of a node ask for besides a driver."""

    manager: bool
    subnet: bool
    rack: bool


def hardware(facts: Facts) -> Hardware:
    devices = [card.device.lower() for card in facts.cards]
    subnet = any(device in table.SUBNET_MANAGED for device in devices)
    return Hardware(bool(facts.switches) or subnet, subnet, any(device in table.RACK for device in devices))


def kernel_flavour(facts: Facts) -> str:
    """`aws` of 6.8.0-1021-aws; `generic-hwe-24.04` where that package brought the kernel: `generic` is for an older one
    then. `virtual` has the kernel of `generic`."""
    flavour = _ABI.sub("", facts.kernel, count=1) if _ABI.match(facts.kernel) else facts.kernel.rpartition("-")[2]
    numbers = [found.group(1) for found in map(_ABI.match, (facts.kernel, facts.newer_kernel)) if found]
    brought = [
        name[len(_IMAGE) :].replace("virtual", "generic")
        for name, version in sorted(facts.packages.items())
        if name.startswith(_IMAGE) and any(fits(version, f"{number}.*") for number in numbers)
    ]
    longer = [name for name in brought if name.startswith(f"{flavour}-")]
    return longer[0] if longer and flavour not in brought else flavour or "generic"


def driver(system: table.System, source: str, branch: int, flavour: str, version: str, facts: Facts) -> t.List[Package]:
    """The set that has one version: kernel modules, libraries, tools, and the services that the hardware asks for."""
    asked, opened = hardware(facts), flavour == table.OPEN
    if system.family == table.DNF:
        names = ["nvidia-driver-cuda", "kmod-nvidia-open-dkms" if opened else "kmod-nvidia-latest-dkms"]
        names += ["nvidia-persistenced"]
        names += ["nvidia-fabricmanager" if branch >= 580 else "nvidia-fabric-manager"] if asked.manager else []
        names += ["nvidia-imex"] if asked.rack else []
        return [Package(name, f"{version}-*") for name in names]
    if source == "distribution" and "ubuntu" in system.ids:
        ending = f"-{branch}-server{'-open' if opened else ''}"
        names = [f"nvidia-headless-no-dkms{ending}", f"nvidia-utils-{branch}-server"]
        names += [f"nvidia-compute-utils-{branch}-server"]
        names += [f"nvidia-fabricmanager-{branch}"] if asked.manager else []
        names += [f"nvidia-imex-{branch}"] if asked.rack else []
        modules = Package(f"linux-modules-nvidia{ending}-{kernel_flavour(facts)}")
        return [modules, *(Package(name, f"{version}-*" if version else f"{branch}.*") for name in names)]
    if source == "distribution":
        modules_name = "nvidia-open-kernel-dkms" if opened else "nvidia-kernel-dkms"
        names = [modules_name, "nvidia-smi", "libcuda1"]
        pattern = f"{version}-*" if version else f"{branch}.*"
        return [*(Package(name, pattern) for name in names), Package("nvidia-persistenced", f"{branch}.*")]
    if "ubuntu" in system.ids:
        suffix = f"-{branch}" if branch < 590 else ""
        names = [f"libnvidia-compute{suffix}", f"nvidia-dkms{suffix}{'-open' if opened else ''}"]
        names += [f"nvidia-utils{suffix}", f"nvidia-compute-utils{suffix}"] if suffix else ["nvidia-persistenced"]
    else:
        suffix = f"-{branch}" if branch < 590 else ""
        names = ["nvidia-driver-cuda", "nvidia-kernel-open-dkms" if opened else "nvidia-kernel-dkms"]
        names += ["nvidia-persistenced"]
    names += [f"nvidia-fabricmanager{suffix}"] if asked.manager else []
    names += ["nvidia-imex"] if asked.rack else []
    return [Package(name, f"{version}-*") for name in names]


def tools(system: table.System, source: str, facts: Facts) -> t.List[Package]:
    """What has to be there before: headers of the kernels, DKMS and a compiler; what NVLink 5 is managed with."""
    asked = hardware(facts)
    kernels = [kernel for kernel in (facts.kernel, facts.newer_kernel) if kernel]
    if system.family == table.DNF:
        names = []
        for kernel in kernels:
            series = ".".join(kernel.split(".")[:2])
            prefix = f"kernel{series}" if facts.system == "amzn" and series != "6.1" else "kernel"
            names += [f"{prefix}-{part}-{kernel}" for part in ("devel", "headers", "modules-extra")]
        names += ["dkms", "gcc", "make", "python3-dnf-plugin-versionlock"]
        names += ["nvlsm", "libibumad", "infiniband-diags"] if asked.subnet else []
        return [*_epel(system, facts), *(Package(name) for name in names)]
    built = not (source == "distribution" and "ubuntu" in system.ids)
    names = [f"linux-headers-{kernel}" for kernel in kernels] + ["dkms"] if built else []
    names += [facts.compiler] if built and facts.compiler and "ubuntu" in system.ids else []
    names += [f"linux-modules-extra-{kernel}" for kernel in kernels if asked.subnet and "ubuntu" in system.ids]
    names += ["nvlsm", "libibumad3", "infiniband-diags"] if asked.subnet else []
    return [Package(name) for name in names]


def _epel(system: table.System, facts: Facts) -> t.List[Package]:
    place = table.EPEL.get(facts.system, "").format(system.version)
    name = place if place and "://" not in place else "epel-release"
    return [Package(name, place=place if name != place else "")] if place else []


def kernels(family: str, packages: t.Iterable[str]) -> t.List[str]:
    """Installed packages that bring newer kernels."""
    form = _KERNEL_APT if family == table.APT else _KERNEL_DNF
    return sorted(name for name in packages if form.fullmatch(name))


def repository(system: table.System, machine: str, wish: Wish) -> Repository:
    """NVIDIA's, for the driver and the CUDA toolkit."""
    place = f"{wish.repository or table.CUDA_REPOSITORY}/{system.repository}/{table.MACHINES[machine]}"
    return _repository(system.family, "llmops-cuda", place, f"{place}/{system.key}", wish.pin or system.pin)


def container_repository(system: table.System, machine: str, wish: Wish) -> Repository:
    root = wish.container_repository or table.CONTAINER_REPOSITORY
    kind = f"deb/{'amd64' if machine == 'x86_64' else 'arm64'}" if system.family == table.APT else f"rpm/{machine}"
    place = f"{root}/stable/{kind}"
    return _repository(system.family, "llmops-nvidia-container", place, f"{root}/gpgkey", table.CONTAINER_PIN)


def own_repository(system: table.System, archive: str) -> Repository:
    """Debian's parts that hold its driver, from where the host has the rest of Debian; the system has their key."""
    path = f"{_APT_SOURCES}/llmops-cuda-debian.sources"
    text = _deb822(
        archive,
        system.codename,
        "contrib non-free non-free-firmware",
        f"{_APT_KEYS}/debian-archive-keyring.gpg",
    )
    return Repository(path, text, "", "", "")


def _repository(family: str, name: str, place: str, key: str, pin: str) -> Repository:
    if family == table.APT:
        key_path = f"{_APT_KEYS}/{name}.asc"
        return Repository(f"{_APT_SOURCES}/{name}.sources", _deb822(place, "/", "", key_path), key, key_path, pin)
    key_path = f"{_DNF_KEYS}/RPM-GPG-KEY-{name}"
    text = f"[{name}]\nname={name}\nbaseurl={place}\nenabled=1\ngpgcheck=1\ngpgkey=file://{key_path}\n"
    return Repository(f"{_DNF_SOURCES}/{name}.repo", text, key, key_path, pin)


def _deb822(place: str, suite: str, components: str, key_path: str) -> str:
    parts = f"Components: {components}\n" if components else ""
    return f"Types: deb\nURIs: {place}\nSuites: {suite}\n{parts}Signed-By: {key_path}\n"


def preferences(system: table.System, source: str, version: str, toolkit: str) -> str:
    """Version and origin that apt keeps to: what one package depends on is chosen by this too, not by the newest. Of
    records that fit, apt takes the first."""
    if source == "nvidia":
        names = "*nvidia* libcuda1 libcudadebugger1 libnvcuvid1 libxnvctrl*"
        other = f"Package: {names}\nPin: release o=Ubuntu\nPin-Priority: -1\n\n" if "ubuntu" in system.ids else ""
        return f"{other}Package: {names}\nPin: version {version}-*\nPin-Priority: 1000\n"
    if not toolkit:
        return ""
    series = toolkit.replace(".", "-")
    names = f"*-{series} *-{series}-* *-config-common nsight-* gds-tools-*"
    return (
        f"Package: {names}\nPin: release l=NVIDIA CUDA\nPin-Priority: 500\n\n"
        "Package: *\nPin: release l=NVIDIA CUDA\nPin-Priority: -1\n"
    )


def modprobe(*, gsp: bool, rack: bool) -> str:
    options = [] if gsp else ["NVreg_EnableGpuFirmware=0"]
    options += ["NVreg_CreateImexChannel0=1"] if rack else []
    lines = ["blacklist nouveau", "options nouveau modeset=0"]
    lines += [f"options nvidia {' '.join(options)}"] if options else []
    return "".join(f"{line}\n" for line in lines)
