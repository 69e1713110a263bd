# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An estimate of memory as a person reads it."""

from __future__ import annotations

from .estimate import Estimate, Verdict, gib

MEANING = {
    "replayed": "checked against measured peaks, or the real classes on tensors without content",
    "formula": "derived from code and published numbers of its parts",
    "unverified": "read from code, checked against nothing yet",
}


def lines(found: Estimate, verdict: Verdict | None, ranks: int) -> list[str]:
    each = f" on each of {ranks} ranks" if ranks > 1 else ""
    told = [
        f"Memory of the GPU{each}: {gib(found.process)}, taken for at most {gib(found.bound)}",
        f"  for       {_step(found)}",
        f"  weights   {_count(found.parameters)} parameters, {_count(found.trainable)} of them trained",
        f"  resident  {gib(found.resident)} between steps",
        f"  peak      {gib(found.tensors)} tensors, {gib(found.allocated)} allocated, {gib(found.reserved)} reserved",
    ]
    for name, size in found.moments.items():
        mark = "  <- decides" if name == found.binding else ""
        told.append(f"            {name:<24}{gib(size):>10}{mark}")
    told += [
        f"  context   {gib(found.context)} outside of PyTorch",
        f"  host      {gib(found.host)} of memory; a checkpoint takes {gib(found.checkpoint)} of disk",
        f"  trust     {found.tag}: {MEANING[found.tag]}",
    ]
    told += [f"            because of {reason}" for reason in found.reasons]
    if verdict is not None:
        told.append(f"  verdict   {'fits' if verdict.fits else 'does not fit'}: {verdict.why}")
    return told


def _step(found: Estimate) -> str:
    """What both peaks grow with."""
    held_out = f"; evaluation in batches of {found.evaluated}" if found.evaluated else ""
    return f"a micro-batch of {found.batch}, sequences of {found.length} tokens{held_out}"


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e8 else f"{number / 1e6:.1f} M"
