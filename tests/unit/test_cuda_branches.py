# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which branch and which modules drive a GPU."""

from __future__ import annotations

import typing as t
from dataclasses import replace

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._cuda import plan, table

from .cuda_hosts import (
    A10G,
    A100,
    B200,
    B300,
    GB10,
    GB200,
    GB300,
    H100,
    H200,
    L4,
    L40S,
    M60,
    P40,
    P100,
    RTX,
    RTX_4500,
    T4,
    T4G,
    V100,
    cards,
    decided,
    host,
    names,
    refused,
)


@pytest.mark.parametrize(
    ("branch", "kind", "ends", "version", "flavours", "oldest"),
    [
        (535, "LTS", "2026-06", "", 2, 5.0),
        (580, "LTS", "2028-06", "580.178.04", 2, 5.0),
        (595, "production", "2027-03", "595.91.07", 2, 7.5),
        (610, "new feature", "2026-08", "610.57.04", 2, 7.5),
        (615, "new feature", "", "615.71.09", 2, 7.5),
        (620, "LTS", "2029-09", "", 1, 7.5),
    ],
)
def test_branches(branch: int, kind: str, ends: str, version: str, flavours: int, oldest: float) -> None:
    known = table.branch(branch)
    assert known and (known.kind, known.ends, known.version) == (kind, ends, version) and known.source
    assert (len(known.flavours), known.least) == (flavours, oldest) and known.flavours[0] == "open"


def test_what_each_cuda_needs() -> None:
    assert table.LEAST_DRIVER == {11: (450, 80, 2), 12: (525, 60, 13), 13: (580, 0, 0)}


@pytest.mark.parametrize("branch", [580, 595, 610, 615])
def test_proprietary_modules_are_there_up_to_615(branch: int) -> None:
    made = decided(host(T4), branch=branch, flavour="proprietary")
    assert (made.flavour, names(made)[1]) == ("proprietary", "nvidia-kernel-dkms")
    assert decided(host(T4), branch=branch).flavour == "open"
    assert decided(host(T4), branch=620, version="620.10.1").flavour == "open"


@pytest.mark.parametrize("device", [M60, P100, P40, V100])
@pytest.mark.parametrize("branch", [595, 610, 615, 620])
def test_580_is_the_last_branch_for_what_is_older_than_turing(device: str, branch: int) -> None:
    error = refused(host(device), branch=branch, version=f"{branch}.10.1")
    assert f"too old for driver branch {branch}" in error.what and error.change == "use 580"


def test_the_default_is_a_branch_that_drives_every_gpu_and_has_a_version() -> None:
    known = table.branch(table.DEFAULT_BRANCH)
    assert known and known.kind == "LTS" and known.version.startswith("580.") and known.least == 5
    assert all(one.driver <= known.number for one in table.GENERATIONS)
    assert all(one.ends > known.ends for one in table.BRANCHES if one.kind == "LTS" and one.number > known.number)


@pytest.mark.parametrize(
    ("devices", "asked", "what", "change"),
    [
        ([V100], {"branch": 595}, "too old for driver branch 595: 580 was the last", "use 580"),
        ([B200], {"branch": 535, "version": "535.261.03"}, "535 is too old for GPUs of Blackwell", "use 580 or later"),
        (
            [T4],
            {"branch": 620, "version": "620.10.1", "flavour": "proprietary"},
            "no proprietary kernel modules",
            "580",
        ),
        ([T4], {"branch": 620, "version": "620.10.1", "gsp": False}, "no proprietary kernel modules", "leave cuda_gsp"),
        ([A10G], {"branch": 620}, "No version of driver branch 620 is locked", "cuda_version"),
        ([A10G], {"branch": 42}, "branch 42 is not known", "use one of 535, 550, 580"),
        ([A10G], {"branch": 580, "version": "595.91.07"}, "cuda_version 595.91.07 is not of cuda_branch 580", "leave"),
        ([RTX], {"source": "distribution"}, "535 is too old for GPUs of Blackwell", "cuda_source: nvidia"),
        ([L4], {"branch": 550, "version": "550.163.01"}, "for computing alone from branch 560 on", "distribution"),
        ([L4], {"source": "distribution", "branch": 580}, "packs branch 535, not 580", "cuda_source: nvidia"),
    ],
)
def test_a_branch_that_cannot_be(devices: list[str], asked: dict[str, t.Any], what: str, change: str) -> None:
    error = refused(host(*devices), **asked)
    assert what in error.what and change in error.change


def test_the_end_of_a_branch_is_told() -> None:
    assert "ended in 2026-08" in " ".join(decided(host(L4, month="2026-11"), branch=610).notes)
    assert decided(host(L4, month="2026-11")).notes == []


# 6.2 GPUs


@pytest.mark.parametrize(
    ("device", "capability", "flavour", "least"),
    [
        (M60, 5.0, "proprietary", 0),
        (P40, 6.1, "proprietary", 0),
        (P100, 6.0, "proprietary", 0),
        (V100, 7.0, "proprietary", 0),
        (T4, 7.5, "open", 0),
        (T4G, 7.5, "open", 0),
        (A100, 8.0, "open", 0),
        (A10G, 8.6, "open", 0),
        (L4, 8.9, "open", 525),
        (L40S, 8.9, "open", 525),
        (H100, 9.0, "open", 525),
        (H200, 9.0, "open", 535),
        (B200, 10.0, "open", 570),
        (B300, 10.3, "open", 580),
        (RTX, 12.0, "open", 570),
        (RTX_4500, 12.0, "open", 570),
        (GB200, 10.0, "open", 580),
        (GB300, 10.3, "open", 580),
        (GB10, 12.1, "open", 580),
    ],
)
def test_gpus(device: str, capability: float, flavour: str, least: int) -> None:
    known = table.generation(device)
    assert known and (known.capability, known.driver) == (capability, least)
    made = decided(host(device))
    assert (made.branch, made.flavour, made.driver) == (580, flavour, "580.178.04")
    # the other modules: none before Turing, a choice up to Hopper, none from Blackwell on
    other = "open" if flavour == "proprietary" else "proprietary"
    if 7.5 <= capability < 10:
        assert decided(host(device), flavour=other).flavour == other
    else:
        assert f"{other} kernel modules do not drive" in refused(host(device), flavour=other).what


@pytest.mark.parametrize(
    ("device", "driver", "passes"),
    [
        (V100, "525.60.13", True),
        (V100, "580.178.04", True),
        (L4, "525.60.13", True),
        (H200, "535.54.03", True),
        (H200, "525.147.05", False),
        (B200, "570.86.10", True),
        (B200, "565.57.01", False),
        (RTX, "565.57.01", False),
        (B300, "575.57.08", False),
        (GB200, "575.57.08", False),
        (GB300, "575.57.08", False),
        (GB10, "575.57.08", False),
        (GB10, "580.95.05", True),
        (A100, "470.256.02", False),
    ],
)
def test_a_driver_that_is_there_has_to_be_new_enough(device: str, driver: str, passes: bool) -> None:
    there = replace(host(device), driver=driver, loaded=driver, problems=(), cards=cards(device, driver="nvidia"))
    assert plan.faults(there) == [] if passes else "is below" in plan.faults(there)[0][0]


def test_the_ranges_agree_with_the_catalogue() -> None:
    from ansible_collections.llmops.finetune.plugins.module_utils._gpu import catalogue

    for card in catalogue.KNOWN:
        for device in card.pci:
            known = table.generation(device)
            assert known and (known.name, known.capability) == (card.generation, card.compute_capability), card.name


@pytest.mark.parametrize(
    ("devices", "asked", "what", "change"),
    [
        ([V100], {"flavour": "open"}, "open kernel modules do not drive", "say proprietary"),
        ([RTX], {"flavour": "proprietary"}, "proprietary kernel modules do not drive", "say open"),
        ([V100, B200], {}, "need different kernel modules", "take one kind out"),
        ([B200], {"gsp": False}, "do not run without the GPU's system processor", "leave it at true"),
        ([A10G], {"gsp": False, "flavour": "open"}, "do not run without", "cuda_flavour: proprietary"),
    ],
)
def test_modules_that_do_not_drive_a_gpu(devices: list[str], asked: dict[str, t.Any], what: str, change: str) -> None:
    error = refused(host(*devices), **asked)
    assert what in error.what and change in error.change


def test_a_gpu_that_nobody_knows_gets_open_modules_and_a_word() -> None:
    made = decided(host("ffff"))
    assert made.flavour == "open" and "of no generation that is known" in made.notes[0]
