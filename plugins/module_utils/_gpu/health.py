# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with the GPUs that a driver lists, and with those that it should list. Pure."""

from __future__ import annotations

import re
import typing as t

from . import pci, xid
from .card import Gpu, Problem

_RESET = "end what uses it, then reset it (nvidia-smi --gpu-reset) or reboot the host"
_LINE = re.compile(r"(?:[0-9A-Fa-f]{4,8}:)?[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7]")


def problems(
    gpus: t.Sequence[Gpu], cards: t.Sequence[pci.Card], noise: t.Sequence[str] = (), manager: str = ""
) -> list[Problem]:
    """Of a driver that answers. cards: on the bus. noise: what nvidia-smi said beside its answer. manager: state of the
    fabric manager's service, empty where there is none."""
    found = [problem for gpu in gpus for problem in _one(gpu)]
    found += _absent(gpus, cards, noise)
    found += _fabric(gpus, bool(pci.switches(cards)), manager)
    return found


def usable(gpu: Gpu, found: t.Iterable[Problem]) -> bool:
    """Whether runs may have it."""
    return bool(gpu.uuid) and not any(problem.blocks and problem.device == gpu.pci for problem in found if gpu.pci)


def _one(gpu: Gpu) -> t.Iterator[Problem]:
    def told(what: str, change: str, *, blocks: bool = False) -> Problem:
        return Problem(f"GPU {gpu.index}{f' ({gpu.name})' if gpu.name else ''} {what}.", change, gpu.pci, blocks)

    if gpu.lost or not gpu.uuid:
        yield told(
            f"does not answer: {gpu.lost or 'it has no UUID'}",
            "reset it or reboot the host; where it comes again, see the kernel's log (NVRM, Xid)",
            blocks=True,
        )
        return
    if gpu.mig and not gpu.slices:
        yield told(
            "is in MIG mode and has no slices, so that nothing can compute on it",
            "make slices (nvidia-smi mig -cgi … -C), or end the mode (nvidia-smi -mig 0) and reset it",
        )
    elif gpu.mig and not any(one.uuid for one in gpu.slices):
        yield told("has MIG slices whose UUIDs the driver does not tell", "see whether nvidia-smi -L lists them")
    if gpu.mig_pending is not None and gpu.mig is not None and gpu.mig_pending != gpu.mig:
        yield told(f"is to {'enter' if gpu.mig_pending else 'leave'} MIG mode at its next reset", _RESET)
    if gpu.memory is None:
        yield told(
            "does not tell its memory, as GPUs that share it with the processor",
            "count on less than the memory of the host",
        )
    if gpu.rows.failed:
        yield told("has a faulty row of memory that could not be replaced", "have the card exchanged", blocks=True)
    elif gpu.rows.pending:
        yield told("replaces a faulty row of memory at its next reset", _RESET)
    if gpu.ecc.uncorrected:
        yield told(
            f"had {gpu.ecc.uncorrected} memory error(s) that were not corrected since the driver started", _RESET
        )
    if gpu.recovery:
        yield told(f"asks for: {gpu.recovery}", "do so before the next run; " + _RESET)
    for number in xid.serious(gpu.xids):
        what, change = xid.SERIOUS[number]
        yield told(f"has Xid {number} in the kernel's log: {what}", change)
    if gpu.compute_mode == "Prohibited":
        yield told("refuses to compute: its compute mode is Prohibited", "nvidia-smi -c 0 allows it", blocks=True)
    if gpu.power.limit and gpu.power.default and gpu.power.limit < 0.9 * gpu.power.default:
        yield told(
            f"is held to {gpu.power.limit:g} of {gpu.power.default:g} W, which makes it slower",
            f"nvidia-smi -pl {gpu.power.default:g} lifts that, where it was not meant",
        )


def _absent(gpus: t.Sequence[Gpu], cards: t.Sequence[pci.Card], noise: t.Sequence[str]) -> t.Iterator[Problem]:
    """Cards that the driver has and does not list, and what nvidia-smi says of them."""
    listed = {gpu.pci for gpu in gpus}
    told = {card.address: "" for card in pci.gpus(cards) if card.driver == "nvidia" and card.address not in listed}
    rest = []
    for line in noise:
        named = [
            place for place in told if any(place.endswith(hit.group().lower()[-12:]) for hit in _LINE.finditer(line))
        ]
        if named:
            told[named[0]] = line
        else:
            rest.append(line)
    for place, line in told.items():
        yield Problem(
            f"The GPU at {place} is on the bus, and its driver does not list it{f': {line}' if line else ''}.",
            "see the kernel's log (NVRM, Xid 79 is one fallen off the bus); power the host off and on",
            place,
            blocks=True,
        )
    for line in rest:
        yield Problem(f"nvidia-smi says: {line}", "run nvidia-smi on the host, and see the kernel's log (NVRM)")


def _fabric(gpus: t.Sequence[Gpu], switches: bool, manager: str) -> t.Iterator[Problem]:
    """Behind NVSwitches a GPU computes only once the fabric manager has brought it in: CUDA fails with error 802."""
    outside = [gpu for gpu in gpus if gpu.fabric and gpu.fabric != "Completed"]
    silent = switches and not any(gpu.fabric for gpu in gpus) and manager not in ("", "active")
    if outside or silent:
        names = ", ".join(str(gpu.index) for gpu in outside)
        state = (
            f"GPU(s) {names} are not in the NVSwitch fabric ({outside[0].fabric})"
            if outside
            else ("There are NVSwitches, and nobody has set them up")
        )
        service = f"; nvidia-fabricmanager is {manager}" if manager else ""
        yield Problem(
            f"{state}, so that CUDA fails there (error 802){service}.",
            "start nvidia-fabricmanager, of the driver's very version, and wait until nvidia-smi -q says Completed; "
            "HGX B200 and later also need NVLSM and the modules ib_umad and mlx5_ib",
        )
