# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""NVIDIA's error messages in the kernel's log. Pure but for `kernel_log`."""

from __future__ import annotations

import contextlib
import os
import re
import typing as t

from .smi import address

_XID = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+)")

SERIOUS: dict[int, tuple[str, str]] = {
    48: ("memory had an error that it could not correct", "reset the GPU"),
    64: ("a faulty row of memory could not be replaced", "reset the GPU, and have it exchanged where it comes again"),
    74: ("an NVLink failed", "reset the GPU; where it comes again, have bridge or board looked at"),
    79: ("it fell off the bus", "power the host off and on; where it comes again, have slot, power and card looked at"),
    95: ("memory had an error that reached other processes", "reset the GPU"),
    119: ("its firmware (GSP) stopped answering", "reset the GPU or reboot; newer drivers may help"),
    120: ("its firmware (GSP) failed", "reset the GPU or reboot; newer drivers may help"),
    140: ("its memory has an error that was not corrected", "reset the GPU"),
    143: ("it could not be brought up", "power the host off and on"),
}
"""Those that the card does not get over by itself. What others mean (13, 31, 43, 45, 94 …) is mostly a fault of the
program that ran. From NVIDIA's table of Xid errors."""


def kernel_log(path: str = "/dev/kmsg") -> str | None:
    """The kernel's log since the boot, as far as it is kept; None where this account may not read it."""
    lines: list[bytes] = []
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    with open(descriptor, "rb", buffering=0) as log, contextlib.suppress(BlockingIOError, PermissionError):
        while len(lines) < 1_000_000:
            try:
                line = os.read(log.fileno(), 8192)
            except BrokenPipeError:  # overwritten while it was read: the next one is there
                continue
            if not line:
                break
            lines.append(line)
    return b"".join(lines).decode(errors="replace")


def parse(log: str) -> dict[str, list[int]]:
    """The numbers by PCI address of the card, oldest first."""
    found: dict[str, list[int]] = {}
    for match in _XID.finditer(log):
        found.setdefault(address(match.group(1)), []).append(int(match.group(2)))
    return found


def serious(numbers: t.Iterable[int]) -> list[int]:
    return [number for number in dict.fromkeys(numbers) if number in SERIOUS]
