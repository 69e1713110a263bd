# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""GPUs by name: their memory, and what CUDA takes of it before the first tensor.

Memory is what nvidia-smi tells as total. Where it comes from, docs/vram.md says.
"""

from __future__ import annotations

import re
import typing as t

from .._errors import FinetuneError

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


_TOTALS: dict[str, tuple[int, float]] = {
    "V100-SXM2-16GB": (16_384, 7.0),
    "V100-SXM2-32GB": (32_768, 7.0),
    "T4": (15_360, 7.5),
    "A100-40GB": (40_960, 8.0),
    "A100-80GB": (81_920, 8.0),
    "A10G": (23_028, 8.6),
    "A10": (23_028, 8.6),
    "A6000": (49_140, 8.6),
    "RTX 3090": (24_576, 8.6),
    "RTX 4090": (24_564, 8.9),
    "L4": (23_034, 8.9),
    "L40S": (46_068, 8.9),
    "H100": (81_559, 9.0),
    "H200": (143_771, 9.0),
    "B200": (183_359, 10.0),
}
"""MiB and compute capability."""
_DEFAULTS = {"A100": "A100-80GB", "V100": "V100-SXM2-16GB"}


_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*(GiB|GB|MiB|MB)", re.IGNORECASE)
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
    words = _words(text)
    for name in sorted((*_TOTALS, *_DEFAULTS), key=len, reverse=True):
        if _words(name) <= words:
            known = _DEFAULTS.get(name, name)
            return Gpu(known, _TOTALS[known][0] * MIB, _TOTALS[known][1])
    raise FinetuneError(
        f"{wanted!r} is no GPU that is known here.",
        where="gpu",
        change=f"use one of {', '.join(sorted(_TOTALS))}, or its memory, such as 24GiB",
    )


def _words(text: str) -> set[str]:
    return set(re.findall("[a-z0-9]+", re.sub(r"(rtx|gb)(?=\d)", r"\1 ", text.lower())))
