# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which build of torch a driver and its GPUs run, and that plans say so."""

from __future__ import annotations

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._cuda import table, torch

from ..conftest import REPOSITORY
from . import plans


@pytest.mark.parametrize(
    ("driver", "capability", "expected"),
    [
        ("580.178.04", 7.0, "cu126"),
        ("580.178.04", 6.1, "cu126"),
        ("580.178.04", 7.5, "cu130"),
        ("535.261.03", 7.5, "cu126"),
        ("580.178.04", 8.0, "cu130"),
        ("570.86.10", 8.0, "cu126"),
        ("595.91.07", 8.6, "cu130"),
        ("525.60.13", 8.6, "cu126"),
        ("580.65.06", 8.9, "cu130"),
        ("535.54.03", 8.9, "cu126"),
        ("580.105.08", 9.0, "cu130"),
        ("550.90.07", 9.0, "cu126"),
        ("580.105.08", 10.0, "cu130"),
        ("580.105.08", 10.3, "cu130"),
        ("580.105.08", 12.0, "cu130"),
        ("580.105.08", 12.1, "cu130"),
        ("570.86.10", 10.0, ""),
        ("570.86.10", 12.0, ""),
        ("470.256.02", 8.0, ""),
    ],
)
def test_the_build_that_is_taken(driver: str, capability: float, expected: str) -> None:
    build, change = torch.choose(driver, [capability])
    assert build == expected
    assert bool(change) is (not expected) and (expected or "update the driver" in change)


@pytest.mark.parametrize(
    ("driver", "capability", "expected", "change"),
    [
        ("580.178.04", 7.5, "", "none is made for aarch64"),  # T4g of g5g
        ("580.178.04", 9.0, "cu130", ""),
        ("550.90.07", 9.0, "cu126", ""),
        ("580.178.04", 10.0, "cu130", ""),
        ("580.178.04", 10.3, "cu130", ""),
        ("580.178.04", 12.1, "cu130", ""),
        ("570.86.10", 10.0, "", "update the driver to 580"),
    ],
)
def test_the_build_that_is_taken_on_arm(driver: str, capability: float, expected: str, change: str) -> None:
    build, told = torch.choose(driver, [capability], "aarch64")
    assert build == expected and change in told and bool(change) is bool(told)


def test_a_new_gpu_with_an_old_driver_wants_a_driver_and_no_other_wheel() -> None:
    assert torch.choose("570.86.10", [12.0])[1].startswith("update the driver to 580")


@pytest.mark.parametrize(
    ("build", "driver", "capability", "what"),
    [
        ("cu128", "525.60.13", 8.0, ""),
        ("cu128", "525.60.11", 8.0, "CUDA 12 needs driver 525.60.13 or later, this is 525.60.11"),
        ("cu128", "580.1", 6.1, "no code for compute capability 6.1"),
        ("cu128", "580.1", 12.0, ""),
        ("cu126", "580.1", 12.0, "no kernel image"),
        ("cu130", "570.1", 9.0, "CUDA 13 needs driver 580 or later"),
        ("cu130", "580.1", 7.0, "no code for compute capability 7"),
        ("cu132", "580.1", 9.0, ""),
        ("cu132", "580.1", 7.0, "no code for compute capability 7"),
        ("cu132", "575.57.08", 9.0, "CUDA 13 needs driver 580 or later"),
        ("cu128", "580.1", 10.0, ""),
        ("cu128", "580.1", 10.3, "its ptxas does not know compute capability 10.3"),
        ("cu128", "580.1", 12.1, "its ptxas does not know compute capability 12.1"),
        ("cu130", "580.1", 10.3, ""),
        ("cu130", "580.1", 12.1, ""),
        ("cu128", "", 9.0, ""),
    ],
)
def test_why_a_build_does_not_run(build: str, driver: str, capability: float, what: str) -> None:
    told, change = torch.why_not(table.torch(build), driver, [capability])
    assert what in told and bool(told) is bool(what) is bool(change)


def test_a_build_whose_compiler_is_too_old_is_not_recommended() -> None:
    assert torch.why_not(table.torch("cu128"), "580.1", [10.3])[1].endswith(": cu132, cu130")
    assert torch.why_not(table.torch("cu126"), "580.1", [10.0])[1].endswith(": cu132, cu130, cu128")
    assert torch.why_not(table.torch("cu128"), "580.1", [7.5], "aarch64")[0].endswith(
        "compute capability 7.5 on aarch64"
    )


def test_the_locked_build_is_what_the_locks_have() -> None:
    text = (REPOSITORY / "requirements" / "node-main.txt").read_text(encoding="utf-8")
    (runtime,) = [line for line in text.splitlines() if line.startswith("nvidia-cuda-runtime-cu12==")]
    assert "==12.8." in runtime and table.LOCKED_TORCH == "cu128"
    assert f"platform_machine == '{table.LOCKED_MACHINE}'" in runtime, "elsewhere it comes without CUDA"


@pytest.mark.parametrize("capability", [7.0, 7.5, 8.0, 8.6, 8.9, 9.0, 10.0, 12.0])
def test_the_locked_build_runs_on_every_gpu_that_ec2_has_but_b300(capability: float) -> None:
    """From V100 to B200: so there is one lock, and nothing to choose. With the driver that the role installs."""
    locked = table.branch(table.DEFAULT_BRANCH)
    assert locked and torch.why_not(table.torch(table.LOCKED_TORCH), locked.version, [capability]) == ("", "")


@pytest.mark.parametrize(
    ("machine", "gpus", "told"), [("aarch64", 1, True), ("aarch64", 0, False), ("x86_64", 1, False)]
)
def test_a_plan_says_that_torch_has_no_cuda_there(machine: str, gpus: int, told: bool) -> None:
    notices = plans.make({"a": plans.node(gpus, machine=machine)}).notices
    assert any("has no CUDA on aarch64" in notice and "train_lock" in notice for notice in notices) is told


@pytest.mark.parametrize(
    ("driver", "capability", "told"),
    [
        ("515.105.01", 8.0, "needs driver 525.60.13 or later, this is 515.105.01"),
        ("580.105.08", 6.1, "no code for compute capability 6.1"),
        ("580.105.08", 10.3, "Triton compiles fails there. Remedy: take a build that does: cu132, cu130"),
        ("580.105.08", 9.0, ""),
    ],
)
def test_a_plan_says_that_torch_will_not_run(driver: str, capability: float, told: str) -> None:
    node = plans.node(1, capability)
    node["gpus"][0]["driver"] = driver
    notices = [notice for notice in plans.make({"a": node}).notices if "torch of the environment" in notice]
    assert told in " ".join(notices) and bool(notices) is bool(told)
