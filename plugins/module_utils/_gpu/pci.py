# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Accelerators by what the PCI bus says of them: they are there without any driver too."""

from __future__ import annotations

import contextlib
import os
import typing as t
from dataclasses import dataclass
from pathlib import Path

DEVICES = Path("/sys/bus/pci/devices")
NVIDIA, AMD, HUAWEI = "10de", "1002", "19e5"
_DISPLAY, _COMPUTE, _BRIDGE = "03", "12", "0680"


@dataclass(frozen=True)
class Card:
    """A device on the bus. driver: the kernel's that has it, empty for none."""

    address: str
    vendor: str
    device: str
    kind: str
    """Class and subclass, four hex digits."""
    driver: str = ""
    numa_node: int | None = None


def cards(place: Path = DEVICES) -> list[Card]:
    """All devices that may be accelerators, or NVIDIA's bridges between them, in the order of their addresses."""
    found = []
    with contextlib.suppress(OSError):
        for folder in sorted(place.iterdir()):
            kind, vendor = _word(folder / "class")[2:6], _word(folder / "vendor")[2:]
            if kind[:2] in (_DISPLAY, _COMPUTE) or (vendor == NVIDIA and kind == _BRIDGE):
                driver = folder / "driver"
                node = _word(folder / "numa_node")
                found.append(
                    Card(
                        folder.name,
                        vendor,
                        _word(folder / "device")[2:],
                        kind,
                        os.path.basename(os.readlink(driver)) if driver.is_symlink() else "",
                        int(node) if node.isdigit() else None,
                    )
                )
    return found


def gpus(found: t.Iterable[Card]) -> list[Card]:
    """Those that NVIDIA's driver is for."""
    return [card for card in found if card.vendor == NVIDIA and card.kind[:2] == _DISPLAY]


def switches(found: t.Iterable[Card]) -> list[Card]:
    """NVSwitches. Those of the Blackwell generation do not show."""
    return [card for card in found if card.vendor == NVIDIA and card.kind == _BRIDGE]


def others(found: t.Iterable[Card], vendor: str) -> list[Card]:
    """Accelerators of another maker; what only drives a screen (0300) does not count."""
    return [card for card in found if card.vendor == vendor and card.kind != "0300"]


def _word(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
