# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host is besides its GPUs: processors, memory, disks, networks. Reads, never writes."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import socket
import struct
import typing as t
from pathlib import Path

from ._env import RANKS_PATH

_SIOCGIFADDR, _SIOCGIFNETMASK = 0x8915, 0x891B


def compilers() -> list[str]:
    """What of c++ and nvcc ranks would find to build with."""
    toolkit = Path("/usr/local/cuda/bin")  # where torch looks besides
    return [name for name in ("c++", "nvcc") if shutil.which(name, path=f"{RANKS_PATH}:{toolkit}")]


def cpu_flags(cpuinfo: t.Iterable[str]) -> list[str]:
    """What of AVX2, AVX-512 and AMX the first CPU has."""
    flags = next((line for line in cpuinfo if line.startswith("flags")), "").split()
    return [flag for flag in ("avx2", "avx512f", "amx_tile") if flag in flags]


def interfaces() -> list[dict[str, t.Any]]:
    """Interfaces that are up and have an IPv4 address: name, address, prefix, speed in Mbit/s (0 where unknown), and
    whether the default route leaves by it."""
    found = []
    routes = lines("/proc/net/route")
    by_default = {fields[0] for fields in map(str.split, routes) if len(fields) > 1 and fields[1] == "00000000"}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for name in (pair[1] for pair in socket.if_nameindex()):
            request = struct.pack("256s", name.encode()[:15])
            try:
                address, mask = (
                    socket.inet_ntoa(fcntl.ioctl(probe, call, request)[20:24])
                    for call in (_SIOCGIFADDR, _SIOCGIFNETMASK)
                )
            except OSError:
                continue
            speed = (lines(f"/sys/class/net/{name}/speed") or ["0"])[0]
            found.append(
                {
                    "name": name,
                    "address": address,
                    "prefix": sum(bin(int(part)).count("1") for part in mask.split(".")),
                    "speed": max(0, int(_float(speed))),
                    "default": name in by_default,
                }
            )
    return found


_NETWORKED = ("nfs", "cifs", "smb", "lustre", "ceph", "gluster", "fuse.", "gpfs", "beegfs", "9p", "virtiofs", "afs")


def mount_of(path: str, mounts: t.Sequence[str]) -> tuple[str, str, str]:
    """Source, mount point (with / at its end) and kind of the file system that `path` is or will be in. mounts: the
    lines of /proc/mounts."""
    found = ("", "", "")
    for line in mounts:
        source, point, kind = [field.replace("\\040", " ") for field in line.split()[:3]]
        inside = point.rstrip("/") + "/"
        if f"{path}/".startswith(inside) and len(inside) >= len(found[1]):
            found = (source, inside, kind)
    return found


def storage(path: str, mounts: t.Sequence[str]) -> str:
    """Where in a network's storage `path` is, as `source/folder`: the same on every host that has it. Empty where the
    disk is the host's own. mounts: the lines of /proc/mounts."""
    source, inside, kind = mount_of(path, mounts)
    return f"{source.rstrip('/')}/{path[len(inside) :]}".rstrip("/") if kind.startswith(_NETWORKED) else ""


def disk_free(path: str) -> int:
    """Free bytes where `path` is or will be."""
    return shutil.disk_usage(_there(path)).free


def mount(path: str) -> dict[str, t.Any]:
    """The file system that `path` is or will be in; sizes in bytes."""
    source, point, kind = mount_of(path, lines("/proc/self/mounts"))
    usage = shutil.disk_usage(_there(path))
    return {
        "path": path,
        "source": source,
        "point": point.rstrip("/") or "/",
        "kind": kind,
        "size": usage.total,
        "free": usage.free,
        "networked": kind.startswith(_NETWORKED),
    }


def _there(path: str) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = Path(path)
    while not folder.exists():
        folder = folder.parent
    return folder


_NO_DISKS = re.compile(r"loop|ram|zram|sr|fd|dm-|md")


def disks(place: Path = Path("/sys/block")) -> list[dict[str, t.Any]]:
    """Disks with their size in bytes and whether they turn."""
    found = []
    for folder in sorted(place.iterdir()) if place.is_dir() else ():
        size = _number(folder / "size") * 512  # whatever the disk's own sectors are
        if size and not _NO_DISKS.match(folder.name):
            model = " ".join((lines(str(folder / "device/model")) or [""])[0].split())
            turns = bool(_number(folder / "queue/rotational"))
            found.append({"name": folder.name, "model": model, "size": size, "rotational": turns})
    return found


_RATE = re.compile(r"([\d.]+) Gb/sec")


def rdma(place: Path = Path("/sys/class/infiniband")) -> list[dict[str, t.Any]]:
    """Devices by which NCCL goes past the kernel: InfiniBand, RoCE, and Amazon's EFA, most of which have no interface.
    speed in Mbit/s, 0 where unknown."""
    found = []
    for folder in sorted(place.iterdir()) if place.is_dir() else ():
        driver = folder / "device/driver"
        name = os.path.basename(os.readlink(driver)) if driver.is_symlink() else ""
        port = folder / "ports/1"
        rate = _RATE.match((lines(str(port / "rate")) or [""])[0])
        state = (lines(str(port / "state")) or [""])[0].partition(":")[2].strip()
        found.append(
            {
                "name": folder.name,
                "driver": name,
                "efa": name == "efa",
                "speed": int(float(rate.group(1)) * 1000) if rate else 0,
                "active": state == "ACTIVE",
            }
        )
    return found


def facts(root: str) -> dict[str, t.Any]:
    """Everything; root: where runs are or will be."""
    info = lines("/proc/cpuinfo")
    memory = dict(line.split(":", 1) for line in lines("/proc/meminfo") if ":" in line)
    system = dict(line.split("=", 1) for line in lines("/etc/os-release") if "=" in line)
    devices = rdma()
    return {
        "hostname": socket.gethostname(),
        "system": system.get("PRETTY_NAME", "").strip('"'),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), ""),
        "cpus": len(os.sched_getaffinity(0)),
        "cpu_flags": cpu_flags(info),
        "numa_nodes": max(1, len(list(Path("/sys/devices/system/node").glob("node[0-9]*")))),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "memory_free": int(_float((memory.get("MemAvailable") or "0").split()[0]) * 1024),
        "disks": disks(),
        "mount": mount(root),
        "interfaces": interfaces(),
        "rdma": devices,
        "efa": sum(device["efa"] for device in devices),
    }


def lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _number(path: Path) -> int:
    return int(_float((lines(str(path)) or ["0"])[0]))


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
