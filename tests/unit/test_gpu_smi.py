# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What nvidia-smi says, read for the cards that people have."""

from __future__ import annotations

import typing as t
from dataclasses import replace

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._gpu import smi
from ansible_collections.llmops.finetune.plugins.module_utils._gpu.card import (
    Ecc,
    Heat,
    Link,
    Peer,
    Power,
    Process,
    Rows,
)

from . import smi_outputs as outputs

MIB = 2**20


def one(card: outputs.Card, **changes: str) -> t.Any:
    told = smi.parse(outputs.xml(replace(card, changes={**card.changes, **changes})))
    assert told and len(told.gpus) == 1
    return told.gpus[0]


@pytest.mark.parametrize("card", outputs.CARDS, ids=lambda card: card.name)
def test_a_card_is_read(card: outputs.Card) -> None:
    gpu = one(card)
    assert (gpu.index, gpu.uuid, gpu.name) == (0, outputs.uuid(0), card.name)
    assert (gpu.pci, gpu.architecture) == ("0000:10:00.0", card.architecture)
    assert (gpu.memory, gpu.memory_reserved, gpu.memory_used) == (card.total * MIB, card.reserved * MIB, MIB)
    assert (gpu.memory_free, gpu.memory_mib) == ((card.total - card.reserved - 1) * MIB, card.total)
    assert gpu.power == Power(27.22, card.watts, card.watts, card.watts)
    assert gpu.heat == Heat(45, None, None, 39)
    assert gpu.pcie == Link(1, 4, 8, 16)
    assert gpu.rows == Rows(0, 0, False, False)
    assert gpu.ecc == (Ecc(None, 0, 0, 0, 0) if "GeForce" in card.name else Ecc(True, 0, 0, 0, 0))
    assert (gpu.mig, gpu.slices) == ({"N/A": None, "Disabled": False}[card.mig], [])
    assert (gpu.fabric, gpu.lost, gpu.recovery, gpu.compute_mode) == (
        "Completed" if card.fabric != "N/A" else "",
        "",
        "",
        "",
    )


def test_a_host_is_read() -> None:
    told = smi.parse(outputs.xml(*[outputs.H100] * 8, driver="570.1", cuda="12.8"))
    assert told and (told.driver, told.cuda, told.noise) == ("570.1", "12.8", [])
    assert [gpu.index for gpu in told.gpus] == list(range(8))
    assert [gpu.uuid for gpu in told.gpus] == [outputs.uuid(number) for number in range(8)]


def test_slices_are_read_and_get_their_uuids_from_the_list() -> None:
    gpu = one(outputs.SLICED)
    assert gpu.mig is True
    assert [(part.index, part.memory, part.memory_free, part.uuid) for part in gpu.slices] == [
        (0, 19968 * MIB, 19955 * MIB, ""),
        (1, 9856 * MIB, 9843 * MIB, ""),
    ]
    names = smi.parse_list(outputs.listed(outputs.H100, outputs.SLICED))
    assert list(names) == [outputs.uuid(1)]
    whole = smi.with_uuids(gpu.slices, names[outputs.uuid(1)])
    assert [(part.profile, part.uuid, part.memory) for part in whole] == [
        ("3g.20gb", outputs.slice_uuid(1, 0), 19968 * MIB),
        ("2g.10gb", outputs.slice_uuid(1, 1), 9856 * MIB),
    ]


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"<total>23034 MiB": "<total>N/A"}, "memory", None),
        ({"<total>23034 MiB": "<total>[Not Supported]"}, "memory", None),
        ({"<total>23034 MiB": "<total>[Insufficient Permissions]"}, "memory", None),
        ({"<gpu_recovery_action>None": "<gpu_recovery_action>Reset"}, "recovery", "Reset"),
        (
            {
                "<gpu_recovery_action>None</gpu_recovery_action>": "<gpu_reset_status><reset_required>Yes"
                "</reset_required><drain_and_reset_recommended>N/A</drain_and_reset_recommended></gpu_reset_status>"
            },
            "recovery",
            "Reset",
        ),
        ({"<product_name>NVIDIA L4": "<product_name>[Unknown Error]"}, "name", ""),
        ({"<compute_mode>Default": "<compute_mode>Prohibited"}, "compute_mode", "Prohibited"),
        (
            {"gpu_power_readings": "power_readings", "current_power_limit": "enforced_power_limit"},
            "power",
            Power(27.22, 72, 72, 72),
        ),
        ({"27.22 W": "[Unknown Error]"}, "power", Power(None, 72, 72, 72)),
        ({"27.22 W": "[Unknown Error]"}, "lost", ""),
        ({"<total>23034 MiB": "<total>Unknown Error"}, "lost", "Unknown Error"),
        ({"27.22 W": "GPU requires reset"}, "lost", "GPU requires reset"),
        ({"<gpu_temp>45 C": "<gpu_temp>GPU is lost"}, "lost", "GPU is lost"),
        ({"<remapped_row_pending>No": "<remapped_row_pending>Yes"}, "rows", Rows(0, 0, True, False)),
        ({"<state>N/A": "<state>In Progress"}, "fabric", "In Progress"),
        ({"<dram_uncorrectable>0": "<dram_uncorrectable>2"}, "ecc", Ecc(True, 0, 2, 0, 2)),
        (
            {"<gpu_temp_tlimit>39 C": "<gpu_temp_slow_threshold>89 C</gpu_temp_slow_threshold><gpu_temp_tlimit>N/A"},
            "heat",
            Heat(45, 89, None, None),
        ),
    ],
)
def test_fields_that_are_not_as_usual(changes: dict[str, str], field: str, value: t.Any) -> None:
    assert getattr(one(outputs.L4, **changes), field) == value


def test_a_card_that_shares_the_hosts_memory() -> None:
    gpu = one(outputs.GB10)
    assert (gpu.memory, gpu.memory_free, gpu.memory_mib, gpu.lost) == (None, None, 0, "")


def test_processes_are_read_whatever_they_are_called() -> None:
    text = outputs.xml(outputs.L4).replace(
        "<processes>", "<processes>" + outputs.process(7, "python\x07 train.py") + outputs.process(8, "N/A", "N/A")
    )
    told = smi.parse(text)
    assert told and told.gpus[0].processes == [
        Process(7, "python train.py", "C", 9000 * MIB),
        Process(8, "", "C", None),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        outputs.BROKEN,
        outputs.MISMATCH,
        "0, GPU-a, X\n",
        "<nvidia_smi_log><gpu></nvidia_smi_log>",
        outputs.xml(outputs.T4)[:900],
    ],
)
def test_what_is_no_answer_is_none(text: str) -> None:
    assert smi.parse(text) is None


def test_what_stands_around_the_answer_is_kept() -> None:
    lost = "Unable to determine the device handle for GPU0000:11:00.0: Unknown Error"
    told = smi.parse(f"{lost}\n{outputs.xml(outputs.T4)}\n")
    assert told and told.noise == [lost] and len(told.gpus) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("No devices were found\n", []),
        (
            "0, GPU-aa, NVIDIA H200, 143771, 9.0, 570.1\n1, GPU-bb, Tesla T4, 15360, 7.5, 570.1\n",
            [
                (0, "GPU-aa", "NVIDIA H200", 143771 * 2**20, 9.0, "570.1"),
                (1, "GPU-bb", "Tesla T4", 15360 * 2**20, 7.5, "570.1"),
            ],
        ),
        ("0, GPU-cc, GB10, [N/A], 12.1, 580.2\n", [(0, "GPU-cc", "GB10", 0, 12.1, "580.2")]),
        ('0, GPU-dd, "A, B", 10, [N/A], 1\n', [(0, "GPU-dd", "A, B", 10 * 2**20, 0.0, "1")]),
        ("[Unknown Error], GPU-ee, X, 1, 9.0, 1\n", []),
    ],
)
def test_the_answer_to_a_query_is_read(text: str, expected: list[tuple[t.Any, ...]]) -> None:
    keys = ("index", "uuid", "name", "memory", "compute_capability", "driver")
    assert smi.parse_query(text) == [dict(zip(keys, gpu, strict=True)) for gpu in expected]


def test_links_of_eight_gpus_behind_switches() -> None:
    peers = smi.parse_links(outputs.links(*outputs.all_by("NV18", 8), nics=3))
    assert len(peers) == 28 and {(peer.way, peer.nvlinks) for peer in peers} == {("NV18", 18)}
    assert peers[0] == Peer(0, 1, "NV18") and peers[-1] == Peer(6, 7, "NV18")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (outputs.links(["X"]), []),
        (outputs.links(["X", "PHB"], ["PHB", "X"]), [Peer(0, 1, "PHB")]),
        (
            outputs.links(["X", "NV4", "SYS"], ["NV4", "X", "NODE"], ["SYS", "NODE", "X"], nics=1),
            [Peer(0, 1, "NV4"), Peer(0, 2, "SYS"), Peer(1, 2, "NODE")],
        ),
    ],
)
def test_links_over_the_bus(text: str, expected: list[Peer]) -> None:
    assert smi.parse_links(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("00000000:3B:00.0", "0000:3b:00.0"),
        ("0000:3b:00", "0000:3b:00.0"),
        ("3B:00.1", "0000:3b:00.1"),
        ("00010000:01:00.0", "10000:01:00.0"),
        ("N/A", ""),
    ],
)
def test_addresses_are_as_sysfs_writes_them(text: str, expected: str) -> None:
    assert smi.address(text) == expected
