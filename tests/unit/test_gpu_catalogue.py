# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""GPUs that are known by name: names are understood as people write them, and figures are possible ones."""

from __future__ import annotations

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._gpu import catalogue

from . import smi_outputs as outputs


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3"),
        ("h100", "NVIDIA H100 80GB HBM3"),
        ("H100-PCIe", "NVIDIA H100 PCIe"),
        ("H100 NVL", "NVIDIA H100 NVL"),
        ("A100", "NVIDIA A100-SXM4-80GB"),
        ("A100-40GB", "NVIDIA A100-SXM4-40GB"),
        ("a10g", "NVIDIA A10G"),
        ("A10", "NVIDIA A10"),
        ("RTX 4090", "NVIDIA GeForce RTX 4090"),
        ("rtx4090", "NVIDIA GeForce RTX 4090"),
        ("4090", "NVIDIA GeForce RTX 4090"),
        ("T4", "Tesla T4"),
        ("L40", "NVIDIA L40"),
        ("l40s", "NVIDIA L40S"),
        ("b300", "NVIDIA B300 SXM6 AC"),
        ("RTX PRO 6000", "NVIDIA RTX PRO 6000 Blackwell Server Edition"),
    ],
)
def test_names_are_understood(name: str, expected: str) -> None:
    known = catalogue.find(name)
    assert known and known.name == expected


@pytest.mark.parametrize("name", ["", "nvidia", "rtx", "H1000", "100", "MI300X", "H100 80GB HBM3 MIG 1g.10gb"])
def test_other_names_are_not_guessed_at(name: str) -> None:
    assert catalogue.find(name) is None


@pytest.mark.parametrize(
    ("text", "count", "name"),
    [
        ("8xH100", 8, "NVIDIA H100 80GB HBM3"),
        (" 4 x A10G ", 4, "NVIDIA A10G"),
        ("2×RTX 4090", 2, "NVIDIA GeForce RTX 4090"),
        ("L4", 1, "NVIDIA L4"),
    ],
)
def test_so_many_of_one_kind_can_be_assumed(text: str, count: int, name: str) -> None:
    found = catalogue.assumed(text)
    assert found and (found[0], found[1].name) == (count, name)


@pytest.mark.parametrize("text", ["", "8x", "0xL4", "8xMI300X", "x", "-1xL4"])
def test_what_cannot_be_assumed_is_none(text: str) -> None:
    assert catalogue.assumed(text) is None


def test_no_name_means_two() -> None:
    names = [(catalogue._plain(name), known.name) for known in catalogue.KNOWN for name in (known.name, *known.also)]
    meant: dict[str, set[str]] = {}
    for plain, name in names:
        meant.setdefault(plain, set()).add(name)
    assert not {plain: found for plain, found in meant.items() if len(found) > 1}
    assert [catalogue.find(name) for name in catalogue.names()] == list(catalogue.KNOWN)
    assert not any(set(name) & set(" '\"") for name in catalogue.names()), "as a command line takes them"
    devices = [device for known in catalogue.KNOWN for device in known.pci]
    assert len(set(devices)) == len(devices) and all(catalogue.by_pci(device.upper()) for device in devices)


@pytest.mark.parametrize("known", catalogue.KNOWN, ids=lambda known: known.name)
def test_figures_are_possible_ones(known: catalogue.Known) -> None:
    generations = {"Volta": (7.0, 7.0), "Turing": (7.5, 7.5), "Ampere": (8.0, 8.6), "Ada Lovelace": (8.9, 8.9)}
    generations |= {"Hopper": (9.0, 9.0), "Blackwell": (10.0, 12.1)}
    least, most = generations[known.generation]
    assert least <= known.compute_capability <= most and known.bf16 == (known.compute_capability >= 8)
    assert 10_000 < known.memory < 300_000 and 60 <= known.peak <= 2500 and 60 < known.power < 1500
    assert 2 < known.peak * 1000 / known.bandwidth < 500, "operations per byte"


@pytest.mark.parametrize("card", outputs.CARDS, ids=lambda card: card.name)
def test_the_cards_of_the_other_tests_are_the_same(card: outputs.Card) -> None:
    known = catalogue.find(card.name)
    assert known and known.name == card.name and known.memory == card.total
    assert (str(known.compute_capability), known.generation) == (card.capability, card.architecture)
    assert card.device.lower() in known.pci
