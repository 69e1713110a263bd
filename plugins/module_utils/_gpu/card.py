# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A GPU and what is known of it. Sizes in bytes, None where nobody says."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field


class Problem(t.NamedTuple):
    """What a person should know of the GPUs of a node, and what to do about it. `device`: the GPU's PCI address; empty
    for the node as a whole. `blocks`: nothing can be trained on it."""

    what: str
    change: str
    device: str = ""
    blocks: bool = False


@dataclass(frozen=True)
class Process:
    pid: int
    name: str
    kind: str
    """C computes, G draws, C+G does both."""
    memory: int | None = None


@dataclass(frozen=True)
class Slice:
    """A MIG slice that can be computed on. Its UUID is empty where only the XML form of nvidia-smi was read."""

    index: int
    memory: int | None = None
    memory_free: int | None = None
    profile: str = ""
    uuid: str = ""
    gpu_instance: int | None = None
    compute_instance: int | None = None


@dataclass(frozen=True)
class Ecc:
    """Errors that memory corrected and did not: since the driver was loaded, and in the card's life."""

    enabled: bool | None = None
    corrected: int | None = None
    uncorrected: int | None = None
    corrected_ever: int | None = None
    uncorrected_ever: int | None = None


@dataclass(frozen=True)
class Rows:
    """Rows of memory that spare ones stand in for."""

    corrected: int | None = None
    uncorrected: int | None = None
    pending: bool | None = None
    failed: bool | None = None


@dataclass(frozen=True)
class Power:
    """In watts."""

    draw: float | None = None
    limit: float | None = None
    default: float | None = None
    most: float | None = None


@dataclass(frozen=True)
class Heat:
    """In degrees Celsius. `margin`: how far it is from slowing down, on cards that tell that instead of limits."""

    now: float | None = None
    slows_at: float | None = None
    stops_at: float | None = None
    margin: float | None = None


@dataclass(frozen=True)
class Link:
    """The PCIe slot: generation and lanes, now and at best."""

    generation: int | None = None
    best_generation: int | None = None
    lanes: int | None = None
    best_lanes: int | None = None


@dataclass
class Gpu:
    """One card of NVIDIA's that its driver lists."""

    index: int
    uuid: str = ""
    name: str = ""
    pci: str = ""
    architecture: str = ""
    compute_capability: float = 0.0
    memory: int | None = None
    memory_free: int | None = None
    memory_used: int | None = None
    memory_reserved: int | None = None
    mig: bool | None = None
    mig_pending: bool | None = None
    slices: list[Slice] = field(default_factory=list)
    ecc: Ecc = field(default_factory=Ecc)
    rows: Rows = field(default_factory=Rows)
    power: Power = field(default_factory=Power)
    heat: Heat = field(default_factory=Heat)
    pcie: Link = field(default_factory=Link)
    numa_node: int | None = None
    compute_mode: str = ""
    recovery: str = ""
    """What the driver asks for: reset, reboot …; empty for nothing."""
    fabric: str = ""
    """State of its way into the NVLink switches; empty where there are none."""
    processes: list[Process] = field(default_factory=list)
    xids: list[int] = field(default_factory=list)
    """Numbers of the driver's error messages in the kernel's log, oldest first."""
    lost: str = ""
    """What the driver says instead of values; empty for a card that answers."""

    @property
    def memory_mib(self) -> int:
        """As nvidia-smi shows it."""
        return (self.memory or 0) >> 20


@dataclass(frozen=True)
class Other:
    """An accelerator of another maker."""

    vendor: str
    index: int
    name: str
    memory: int | None = None
    pci: str = ""


@dataclass(frozen=True)
class Peer:
    """How two GPUs, by index, reach each other. `way` as in `nvidia-smi topo -m`: NV4 is 4 NVLinks, PIX one PCIe
    switch, SYS the way between two processors …"""

    one: int
    two: int
    way: str

    @property
    def nvlinks(self) -> int:
        return int(self.way[2:]) if self.way.startswith("NV") and self.way[2:].isdigit() else 0


def label(device: t.Mapping[str, t.Any]) -> str:
    """What people and train_gpus call a GPU or slice: `0`, or `0:1` for slice 1 of GPU 0."""
    return f"{device['index']}:{device['slice']}" if "slice" in device else str(device["index"])
