# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""GPUs that are known without one at hand: for plans that assume some, and for names of cards without a driver. Pure.

Memory is what nvidia-smi reports (driver 550 and later, ECC as the card comes), read off published outputs of it; it is
less than the label says. Bandwidth and peak are NVIDIA's data sheets', the peak for 16-bit tensors without sparsity:
bf16, on Volta and Turing fp16. Nothing of it was measured by this project.
"""

from __future__ import annotations

import re
import typing as t


class Known(t.NamedTuple):
    """memory in MiB, bandwidth in GB/s, peak in TFLOPS, power in watts. pci: device ids of NVIDIA's."""

    name: str
    memory: int
    compute_capability: float
    generation: str
    bandwidth: int
    peak: float
    power: int
    pci: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    """Short names by which people mean this one."""

    @property
    def bf16(self) -> bool:
        return self.compute_capability >= 8.0


KNOWN: tuple[Known, ...] = (
    Known("Tesla V100-SXM2-16GB", 16384, 7.0, "Volta", 900, 125, 300, ("1db1",), ("V100", "V100 16GB")),
    Known("Tesla V100-SXM2-32GB", 32768, 7.0, "Volta", 900, 125, 300, ("1db5",), ("V100 32GB",)),
    Known("Tesla T4", 15360, 7.5, "Turing", 320, 65, 70, ("1eb8",), ("T4",)),
    Known("NVIDIA A100-SXM4-40GB", 40960, 8.0, "Ampere", 1555, 312, 400, ("20b0",), ("A100 40GB",)),
    Known("NVIDIA A100-SXM4-80GB", 81920, 8.0, "Ampere", 2039, 312, 400, ("20b2",), ("A100", "A100 80GB")),
    Known("NVIDIA A100-PCIE-40GB", 40960, 8.0, "Ampere", 1555, 312, 250, ("20f1",)),
    Known("NVIDIA A100 80GB PCIe", 81920, 8.0, "Ampere", 1935, 312, 300, ("20b5",), ("A100 PCIe",)),
    Known("NVIDIA A10", 23028, 8.6, "Ampere", 600, 125, 150, ("2236",)),
    Known("NVIDIA A10G", 23028, 8.6, "Ampere", 600, 70, 300, ("2237",)),
    Known("NVIDIA A40", 46068, 8.6, "Ampere", 696, 149.7, 300, ("2235",)),
    Known("NVIDIA RTX A6000", 49140, 8.6, "Ampere", 768, 154.8, 300, ("2230",), ("A6000",)),
    Known("NVIDIA GeForce RTX 3090", 24576, 8.6, "Ampere", 936, 71, 350, ("2204",)),
    Known("NVIDIA L4", 23034, 8.9, "Ada Lovelace", 300, 121, 72, ("27b8",)),
    Known("NVIDIA L40", 46068, 8.9, "Ada Lovelace", 864, 181, 300, ("26b5",)),
    Known("NVIDIA L40S", 46068, 8.9, "Ada Lovelace", 864, 362, 350, ("26b9",)),
    Known("NVIDIA RTX 6000 Ada Generation", 49140, 8.9, "Ada Lovelace", 960, 364, 300, ("26b1",), ("RTX 6000 Ada",)),
    Known("NVIDIA GeForce RTX 4090", 24564, 8.9, "Ada Lovelace", 1008, 165.2, 450, ("2684",)),
    Known("NVIDIA H100 PCIe", 81559, 9.0, "Hopper", 2039, 756, 350, ("2331",)),
    Known("NVIDIA H100 NVL", 95830, 9.0, "Hopper", 3938, 835, 400, ("2321",)),
    Known("NVIDIA H100 80GB HBM3", 81559, 9.0, "Hopper", 3350, 989, 700, ("2330",), ("H100", "H100 SXM", "H100 80GB")),
    Known("NVIDIA H20", 97871, 9.0, "Hopper", 4000, 148, 500, ("2329",)),
    Known("NVIDIA H200", 143771, 9.0, "Hopper", 4800, 989, 700, ("2335",), ("H200 SXM",)),
    Known("NVIDIA H200 NVL", 143771, 9.0, "Hopper", 4800, 836, 600, ("233b",)),
    Known("NVIDIA B200", 183359, 10.0, "Blackwell", 8000, 2250, 1000, ("2901",)),
    Known("NVIDIA GB200", 189471, 10.0, "Blackwell", 8000, 2500, 1200, ("2941",)),
    Known("NVIDIA B300 SXM6 AC", 275040, 10.3, "Blackwell", 8000, 2250, 1100, ("3182",), ("B300",)),
    Known("NVIDIA GB300", 284208, 10.3, "Blackwell", 8000, 2500, 1400, ("31c2", "31c3")),
    Known("NVIDIA GeForce RTX 5090", 32607, 12.0, "Blackwell", 1792, 209.5, 575, ("2b85",)),
    Known(
        "NVIDIA RTX PRO 6000 Blackwell Server Edition",
        97887,
        12.0,
        "Blackwell",
        1597,
        503.8,
        600,
        ("2bb5",),
        ("RTX PRO 6000", "RTX PRO 6000 Server"),
    ),
    Known("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 97887, 12.0, "Blackwell", 1792, 503.8, 600, ("2bb1",)),
)


def find(name: str) -> Known | None:
    """The GPU that a name means: as nvidia-smi writes it, or short as people do (h100, RTX 4090, A100-80GB)."""
    return _BY_NAME.get(_plain(name))


def by_pci(device: str) -> Known | None:
    return next((known for known in KNOWN if device.lower() in known.pci), None)


def assumed(text: str) -> tuple[int, Known] | None:
    """`8xH100`, `4 x A10G` or `L4` as a number of GPUs and which; None where no such one is known."""
    found = re.fullmatch(r"\s*(?:(\d{1,9})\s*[xX*×]\s*)?(\S.*?)\s*", text)
    known = find(found.group(2)) if found else None
    count = int(found.group(1) or 1) if found else 0
    return (count, known) if known and count else None


def names() -> list[str]:
    """The shortest name of each, to be told where another one was not understood; without blanks, at which Ansible
    divides what is written on a command line."""
    plain = (known.name.removeprefix("NVIDIA ").removeprefix("GeForce ") for known in KNOWN)
    return [min((name, *known.also), key=len).replace(" ", "-") for name, known in zip(plain, KNOWN)]


_MAKERS = ("nvidia", "geforce", "tesla")


def _plain(name: str) -> str:
    """Letters and digits alone, without the words that say no more than the maker."""
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word not in _MAKERS]
    return "".join(words)


_BY_NAME = {
    plain: known
    for known in KNOWN
    for name in (known.name, *known.also)
    for plain in (_plain(name), _plain(name).removeprefix("rtx"))
}
