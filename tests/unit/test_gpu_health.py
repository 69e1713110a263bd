# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with GPUs that answer: each finding has a sentence and a remedy."""

from __future__ import annotations

import typing as t
from dataclasses import replace

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._gpu import health, xid
from ansible_collections.llmops.finetune.plugins.module_utils._gpu.card import Ecc, Gpu, Power, Rows, Slice
from ansible_collections.llmops.finetune.plugins.module_utils._gpu.pci import Card

WELL = Gpu(0, "GPU-a", "NVIDIA H100 80GB HBM3", "0000:3b:00.0", memory=81559 << 20, mig=False, mig_pending=False)
SWITCH = Card("0000:05:00.0", "10de", "22a3", "0680", "nvidia")


def test_a_gpu_that_is_well_is_not_mentioned() -> None:
    assert health.problems([WELL], [Card("0000:3b:00.0", "10de", "2330", "0302", "nvidia"), SWITCH], (), "active") == []
    assert health.usable(WELL, [])


@pytest.mark.parametrize(
    ("changes", "what", "change", "usable"),
    [
        ({"lost": "Unknown Error"}, "does not answer: Unknown Error", "reset it", False),
        ({"uuid": ""}, "it has no UUID", "reset it", False),
        ({"mig": True, "mig_pending": True}, "in MIG mode and has no slices", "-mig 0", True),
        ({"mig": True, "mig_pending": True, "slices": [Slice(0)]}, "does not tell", "nvidia-smi -L", True),
        ({"mig_pending": True}, "is to enter MIG mode at its next reset", "--gpu-reset", True),
        ({"mig": True, "slices": [Slice(0, uuid="MIG-a")]}, "is to leave MIG mode", "--gpu-reset", True),
        ({"memory": None}, "does not tell its memory", "memory of the host", True),
        ({"rows": Rows(0, 1, True, False)}, "replaces a faulty row of memory", "--gpu-reset", True),
        ({"rows": Rows(0, 9, True, True)}, "could not be replaced", "exchanged", False),
        ({"ecc": Ecc(True, 5, 2, 5, 2)}, "had 2 memory error(s)", "--gpu-reset", True),
        ({"recovery": "Drain P2P"}, "asks for: Drain P2P", "before the next run", True),
        ({"xids": [13, 79]}, "has Xid 79", "power the host off", True),
        ({"compute_mode": "Prohibited"}, "refuses to compute", "nvidia-smi -c 0", False),
        ({"power": Power(70, 400, 700, 700)}, "held to 400 of 700 W", "-pl 700", True),
        ({"fabric": "In Progress"}, "not in the NVSwitch fabric (In Progress)", "nvidia-fabricmanager", True),
    ],
)  # fmt: skip
def test_findings(changes: dict[str, t.Any], what: str, change: str, usable: bool) -> None:
    gpu = replace(WELL, **changes)
    (problem,) = health.problems([gpu], [])
    assert what in problem.what and problem.what.endswith(".") and change in problem.change
    assert health.usable(gpu, [problem]) == usable


@pytest.mark.parametrize("changes", [{"ecc": Ecc(True, 9, 0, 9, 1)}, {"xids": [13, 31, 43]}, {"fabric": "Completed"}])
def test_what_a_gpu_got_over_is_not_mentioned(changes: dict[str, t.Any]) -> None:
    assert health.problems([replace(WELL, **changes)], []) == []


@pytest.mark.parametrize(("manager", "told"), [("", False), ("active", False), ("failed", True), ("inactive", True)])
def test_switches_that_nobody_set_up(manager: str, told: bool) -> None:
    found = health.problems([WELL], [SWITCH], (), manager)
    assert bool(found) == told
    assert not found or f"nvidia-fabricmanager is {manager}" in found[0].what


def test_what_nvidia_smi_says_besides_is_passed_on() -> None:
    (problem,) = health.problems([WELL], [], ["WARNING: infoROM is corrupted at gpu 0000:3B:00.0"])
    assert problem.what == "nvidia-smi says: WARNING: infoROM is corrupted at gpu 0000:3B:00.0"


def test_error_numbers_are_told_by_card() -> None:
    log = (
        "[ 12.5] NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.\n"
        "4,1,2,-;NVRM: Xid (PCI:0001:00:01.0): 63, Row remapper\n"
        "[ 13.5] NVRM: Xid (PCI:0000:3b:00): 154, GPU recovery action changed\n"
    )
    assert xid.parse(log) == {"0000:3b:00.0": [79, 154], "0001:00:01.0": [63]}
    assert xid.serious([31, 79, 48, 79]) == [79, 48]
