# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A driver that does not answer: what it means and what helps. Pure."""

from __future__ import annotations

import typing as t

from .card import Problem
from .pci import Card
from .tool import Answer

_LOG = "see the kernel's log (dmesg, NVRM)"
_SAYINGS: tuple[tuple[str, str, str], ...] = (
    (
        "Driver/library version mismatch",
        "NVIDIA's driver was updated while its old kernel module is loaded.",
        "reboot; or end all that uses the GPUs, then unload and load the nvidia modules",
    ),
    (
        "couldn't communicate with the NVIDIA driver",
        "NVIDIA's driver is installed, its kernel module is not loaded.",
        "try modprobe nvidia, which says why; after a new kernel reboot, or build the module for it (dkms status, "
        "headers of the running kernel); under Secure Boot it must be signed",
    ),
    (
        "Insufficient Permissions",
        "This account may not open the GPUs.",
        "see who may open /dev/nvidiactl and /dev/nvidia0, and add the account to their group",
    ),
    (
        "Failed to initialize NVML: Unknown Error",
        "NVIDIA's driver refuses this process, as in a container that lost its devices.",
        "start the container again with its GPUs; outside of one, " + _LOG,
    ),
    (
        "libnvidia-ml.so",
        "nvidia-smi is there without the library of its driver.",
        "install the driver's libraries of the same version; in a container, start it with NVIDIA's runtime",
    ),
    (
        "No devices were found",
        "NVIDIA's driver is loaded and finds no GPU that it can drive.",
        "Turing and newer want the open kernel modules, which Blackwell needs and Volta and older cannot use; " + _LOG,
    ),
    (
        "has fallen off the bus",
        "A GPU has fallen off the bus.",
        "power the host off and on; where it comes again, have slot, power and card looked at; " + _LOG,
    ),
    ("GPU is lost", "A GPU is lost to its driver.", "reset it or reboot the host; " + _LOG),
)
"""What nvidia-smi says, what it means, what to do."""

_HELD_BY = {
    "": (
        "there, and no driver has it",
        "install NVIDIA's driver, 580 or later for torch of CUDA 13, 525 or later for that of CUDA 12",
    ),
    "nouveau": (
        "held by nouveau, which cannot compute",
        "install NVIDIA's driver, which puts nouveau aside, and reboot",
    ),
    "vfio-pci": ("kept for a virtual machine (vfio-pci)", "train in that machine, or give the card back to nvidia"),
    "nvidia": (
        "held by NVIDIA's driver, and nvidia-smi is not installed",
        "install nvidia-utils of the driver's version; in a container, start it with NVIDIA's runtime",
    ),
}
"""Without nvidia-smi: the kernel driver of a card, what that means, what to do."""


def silent(answer: Answer, seconds: float) -> Problem:
    """Why nvidia-smi lists nothing."""
    if answer.hung:
        what = f"nvidia-smi gave no answer in {seconds:g} s and was ended."
        if answer.stuck:
            what = (
                f"nvidia-smi gave no answer in {seconds:g} s and cannot be ended: process "
                f"{', '.join(map(str, answer.stuck))} waits in the kernel."
            )
        return Problem(what, f"{_LOG}; reset the GPU or reboot the host", blocks=True)
    for saying, what, change in _SAYINGS:
        if saying in answer.text:
            return Problem(what, change, blocks=True)
    if answer.code == 0:
        return Problem("nvidia-smi lists no GPU.", f"run nvidia-smi -L on the host; {_LOG}", blocks=True)
    said = (answer.text.splitlines() or [f"exit status {answer.code}"])[0]
    return Problem(f"nvidia-smi failed: {said}", f"run nvidia-smi on the host; {_LOG}", blocks=True)


def undriven(cards: t.Sequence[Card], name: t.Callable[[str], str]) -> list[Problem]:
    """Of GPUs on the bus that no nvidia-smi can be asked about: one sentence per kind. name: of a PCI device id."""
    found: dict[tuple[str, str], list[Card]] = {}
    for card in cards:
        found.setdefault((card.driver, card.device), []).append(card)
    problems = []
    for (driver, device), same in found.items():
        state, change = _HELD_BY.get(driver, (f"held by driver {driver}", "give it to NVIDIA's driver"))
        called = name(device) or f"NVIDIA GPU 10de:{device}"
        count = f"{len(same)} × {called} are" if len(same) > 1 else f"{called} is"
        where = same[0].address if len(same) == 1 else ""
        problems.append(Problem(f"{count} {state}.", change, where, blocks=True))
    return problems
