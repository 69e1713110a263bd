# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A GPU as estimates see it: its memory, and what CUDA takes of it before the first tensor."""

from __future__ import annotations

import re
import typing as t

from .._errors import FinetuneError
from .._gpu import catalogue

MIB, GIB = 1 << 20, 1 << 30


class Gpu(t.NamedTuple):
    name: str
    memory: int
    """Bytes."""
    capability: float
    """Compute capability."""

    @property
    def bf16(self) -> bool:
        return self.capability >= 8

    @property
    def workspace(self) -> int:
        """Bytes of one workspace of cuBLAS: 8.1 MiB, from Hopper on 32 MiB (PyTorch, CUDABlas.cpp)."""
        return 32 * MIB if self.capability >= 9 else 8_519_680

    @property
    def context(self) -> int:
        """Bytes of a CUDA context. 140.9 MiB is measured on a T4; the others are planned, not measured."""
        if self.capability < 8:
            return int(140.9 * MIB)
        return 640 * MIB if self.capability >= 9 else 448 * MIB


_AMOUNT = re.compile(r"(\d{1,9}(?:\.\d+)?)\s*(GiB|GB|MiB|MB)", re.IGNORECASE)
_UNITS = {"gib": GIB, "gb": 10**9, "mib": MIB, "mb": 10**6}


def amount(text: str, where: str) -> int:
    """Bytes of 24GiB, 1.5 GB, 800MiB. where: the option that it is in."""
    found = _AMOUNT.fullmatch(text.strip())
    if not found:
        raise FinetuneError(f"{text!r} is no amount of memory.", where=where, change="write it as 1.5GiB")
    return int(float(found.group(1)) * _UNITS[found.group(2).lower()])


def find(wanted: str) -> Gpu:
    """By a name as people or nvidia-smi write it (NVIDIA H100 80GB HBM3, h100), or by its memory (24GiB, 80GB)."""
    text = wanted.strip()
    if _AMOUNT.fullmatch(text):
        return Gpu(text, amount(text, "gpu"), 8.0)
    known = catalogue.find(text)
    if known is None:
        raise FinetuneError(
            f"{wanted!r} is no GPU that is known here.",
            where="gpu",
            change=f"use one of {', '.join(catalogue.names())}, or its memory, such as 24GiB",
        )
    return Gpu(known.name, known.memory * MIB, known.compute_capability)
