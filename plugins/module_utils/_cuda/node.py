# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node is, for decisions about its driver. Reads, never writes; no root is needed."""

from __future__ import annotations

import os
import platform
import re
import time
import typing as t
from pathlib import Path

from .. import _host
from .._engine import files
from .._gpu import detect, pci, tool
from . import packages, table
from .facts import Facts

RECORD = Path("/var/lib/llmops-cuda/record.json")
"""What this role did here: the driver that is its own, and the boot in which one was asked for."""
_CONTAINER = ("/run/.containerenv", "/.dockerenv", "/run/systemd/container")
_EFA_IDS = ("efa0", "efa1", "efa2", "efa3", "efa4")
_AMAZON = "1d0f"


def look(sys: Path, seconds: float) -> Facts:
    """sys: where sysfs is, or a recorded copy of it."""
    bus = sys / "bus/pci/devices"
    cards = pci.cards(bus)
    release = system(_host.lines("/etc/os-release"))
    tools = packages.of(release)
    installed, held = tools.installed()
    gpus = tuple(card for card in pci.gpus(cards) if card.driver != "vfio-pci")
    report = detect.look(seconds, bus) if gpus else detect.Report()
    kernel = platform.release()
    known = table.system(*release)
    return Facts(
        release[0],
        release[1],
        platform.machine(),
        kernel,
        kernels(os.listdir("/lib/modules") if os.path.isdir("/lib/modules") else (), kernel),
        compiler(_first("/proc/version")),
        gpus,
        len(pci.switches(cards)),
        _first(str(sys / "class/dmi/id/product_name")),
        secure_boot(sys / "firmware/efi/efivars"),
        sys == Path("/sys") and any(map(os.path.exists, _CONTAINER)),
        installed,
        held,
        tools.stream(),
        _first(str(sys / "module/nvidia/version")),
        report.driver,
        tuple(report.problems),
        tools.sources("/compute/cuda/repos/"),
        tools.archive(known.codename) if gpus and known and known.own else "",
        efa(bus),
        _efa_installed(),
        tuple(gpu.uuid for gpu in report.gpus if gpu.uuid),
        _first("/proc/sys/kernel/random/boot_id"),
        time.strftime("%Y-%m"),
        files.read_json(RECORD),
    )


def system(lines: t.Iterable[str]) -> t.Tuple[str, str]:
    """ID and VERSION_ID of os-release."""
    told = dict(line.split("=", 1) for line in lines if "=" in line)
    return told.get("ID", "").strip("\"'"), told.get("VERSION_ID", "").strip("\"'")


def kernels(found: t.Iterable[str], running: str) -> t.Tuple[str, ...]:
    """Those of the same flavour as the running one, oldest first: `aws` is not followed by `generic`."""
    flavour = re.sub(r"[\d.~+_-]+", " ", running).split()
    same = [name for name in found if re.sub(r"[\d.~+_-]+", " ", name).split() == flavour]
    return tuple(sorted(same, key=lambda name: [int(part) for part in re.findall(r"\d+", name)]))


def compiler(version: str) -> str:
    """The package of the compiler that made the kernel, by what /proc/version says."""
    found = re.search(r"gcc-(\d+)\b", version) or re.search(r"gcc \(.*?\) (\d+)\.", version)
    return f"gcc-{found.group(1)}" if found else ""


def secure_boot(variables: Path) -> bool:
    """The firmware's variable has four bytes of attributes before its value."""
    for path in sorted(variables.glob("SecureBoot-*")) if variables.is_dir() else ():
        try:
            return path.read_bytes()[4:5] == b"\x01"
        except OSError:
            continue
    return False


def efa(bus: Path) -> int:
    """Amazon's devices for RDMA, with or without their driver."""
    found = 0
    for folder in sorted(bus.iterdir()) if bus.is_dir() else ():
        found += _first(str(folder / "vendor"))[2:] == _AMAZON and _first(str(folder / "device"))[2:] in _EFA_IDS
    return found


def _efa_installed() -> str:
    lines = _host.lines("/opt/amazon/efa_installed_packages")
    told = [line for line in lines if "EFA installer version" in line]
    return told[0].rpartition(":")[2].strip() if told else ""


def _first(path: str) -> str:
    return (_host.lines(path) or [""])[0].strip()


def active(service: str) -> str:
    """`enabled active`, or what lacks of it, as systemd says."""
    systemctl = tool.find("systemctl")
    if not systemctl:
        return ""
    told = tool.ask({"on": [systemctl, "is-enabled", service], "now": [systemctl, "is-active", service]}, 20)
    return f"{told['on'].said.strip()} {told['now'].said.strip()}"
