# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A driver that is there already: left alone, refused, or gone on with."""

from __future__ import annotations

import typing as t
from dataclasses import replace

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._cuda.facts import Facts, Package
from ansible_collections.llmops.finetune.plugins.module_utils._gpu import health
from ansible_collections.llmops.finetune.plugins.module_utils._gpu.card import Gpu, Problem

from .cuda_hosts import B200, H100, SILENT, cards, decided, host, refused


def working(*devices: str, driver: str = "570.86.10", **known: t.Any) -> Facts:
    return replace(
        host(*devices, **known), driver=driver, loaded=driver, problems=(), cards=cards(*devices, driver="nvidia")
    )


def test_a_driver_that_passes_is_left_alone() -> None:
    made = decided(working(*[H100] * 8, system="gentoo 2"))
    assert (made.state, made.packages, made.hold, made.files, made.services) == ("kept", [], [], {}, [])
    assert made.lines == ["driver 570.86.10 works: left alone"]
    extras = decided(working(H100), toolkit="12.8")
    assert extras.state == "kept" and extras.extras and extras.packages == []


OUTSIDE = health.problems([Gpu(0, "GPU-1", fabric="In Progress", memory=1)], [], manager="inactive")[0]


@pytest.mark.parametrize(
    ("facts", "what", "change"),
    [
        (replace(working(H100), driver="", problems=(SILENT,)), "no driver has it", "remove that driver"),
        (
            replace(working(H100), problems=(Problem("GPU 3 does not answer.", "reset it", blocks=True),)),
            "GPU 3",
            "reset",
        ),
        (replace(working(H100), problems=(OUTSIDE,)), "NVSwitch fabric", "nvidia-fabricmanager"),
        (working(B200, driver="550.90.07"), "550.90.07 is below 570", "update it to 570"),
        (working(H100, driver="470.256.02"), "470.256.02 is below 525.60.13", "update it to 525.60.13"),
    ],
)
def test_a_driver_of_others_that_does_not_pass_is_not_built_over(facts: Facts, what: str, change: str) -> None:
    error = refused(facts)
    assert "which this role did not install, does not pass" in error.what
    assert what in error.what and change in error.change and "two sources do not mix" in error.change


@pytest.mark.parametrize(
    ("driver", "toolkit", "told"),
    [
        ("550.90.07", "12.8", "12.4"),
        ("550.90.07", "12.4", ""),
        ("570.86.10", "12.8", ""),
        ("525.60.13", "12.1", "12.0"),
        ("590.48.01", "13.2", "13.1"),
    ],
)
def test_a_toolkit_beside_a_driver_of_others(driver: str, toolkit: str, told: str) -> None:
    made = decided(working(H100, driver=driver), toolkit=toolkit)
    assert made.extras and " ".join(made.notes).endswith(f"take cuda_toolkit: {told}." if told else "")
    assert bool([note for note in made.notes if "loads no PTX" in note]) is bool(told)


def test_what_is_no_hindrance_passes() -> None:
    slow = Problem("GPU 0 is held to 300 of 700 W, which makes it slower.", "nvidia-smi -pl 700")
    assert decided(replace(working(H100), problems=(slow,))).state == "kept"


def test_only_looking_fails_where_the_driver_does_not_pass() -> None:
    error = refused(host(H100), install=False)
    assert "no driver has it" in error.what and "cuda_state: present" in error.change
    assert decided(working(H100), install=False).state == "kept"
    assert decided(working(H100, record={"source": "nvidia"}), install=False).state == "kept"


def test_what_this_role_installed_is_kept_in_its_version() -> None:
    record = {"source": "nvidia", "branch": 580, "version": "580.95.05"}
    made = decided(working(H100, driver="580.95.05", record=record))
    assert (made.state, made.driver) == ("managed", "580.95.05")
    assert "by now 580.178.04 is locked: cuda_version: 580.178.04 takes it" in made.notes[0]
    assert decided(working(H100, record=record), version="580.178.04").driver == "580.178.04"
    assert decided(working(H100, record=record), branch=595).driver == "595.91.07"


def test_an_install_that_was_cut_is_gone_on_with() -> None:
    facts = host(H100, record={"source": "nvidia"}, packages={"nvidia-driver-cuda": "580.178.04-1"})
    assert decided(facts).state == "managed"


def test_sources_are_not_changed_under_a_driver() -> None:
    there = {"nvidia-driver-cuda": "580.178.04-1"}
    error = refused(host(H100, record={"source": "nvidia"}, packages=there), source="distribution")
    assert "has a driver of cuda_source nvidia: two sources do not mix" in error.what and "say nvidia" in error.change


@pytest.mark.parametrize(
    ("there", "pattern", "fits"),
    [
        ("580.178.04-1", "580.178.04-*", True),
        ("3:580.178.04-1.el9", "580.178.04-*", True),
        ("580.178.040-1", "580.178.04-*", False),
        ("580.95.05-1", "580.178.04-*", False),
        ("580.173.02-0ubuntu0.24.04.1", "580.*", True),
        ("7", "", True),
    ],
)
def test_versions_of_packages(there: str, pattern: str, fits: bool) -> None:
    assert Package("a", pattern).is_in({"a": there}) is fits
    assert not Package("a", pattern).is_in({})
