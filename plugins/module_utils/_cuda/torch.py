# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which build of torch a driver and its GPUs run. Pure."""

from __future__ import annotations

import typing as t

from . import table


def number(version: str) -> t.Tuple[int, ...]:
    """`580.178.04` as numbers that compare."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def text(version: t.Sequence[int]) -> str:
    """The other way round, without zeros at its end."""
    return ".".join(map(str, version)).replace(".0.0", "")


def why_not(build: table.Torch, driver: str, capabilities: t.Iterable[float], machine: str = "") -> t.Tuple[str, str]:
    """What keeps a build from running, and what to change; empty where it runs. driver: its version."""
    least = table.LEAST_DRIVER[build.cuda]
    for capability in sorted(set(capabilities)):
        if capability < _least(build, machine):
            return (
                f"it has no code for compute capability {capability:g}" + (f" on {machine}" if _arm(machine) else ""),
                f"take a build that has: {_with_code(capability, machine)}",
            )
        if capability > build.most:
            return (
                f"it has no code for compute capability {capability:g} (`no kernel image` is what CUDA says)",
                f"take a build that has: {_with_code(capability, machine)}",
            )
        if capability in build.strange:
            return (
                f"its ptxas does not know compute capability {capability:g}: what Triton compiles fails there",
                f"take a build that does: {_with_code(capability, machine)}",
            )
    if driver and number(driver) < least:
        return (
            f"CUDA {build.cuda} needs driver {text(least)} or later, this is {driver}",
            "update the driver (role cuda, cuda_branch), rather than look for another wheel",
        )
    return "", ""


def choose(driver: str, capabilities: t.Sequence[float], machine: str = "") -> t.Tuple[str, str]:
    """The best build that is still made for these, and empty; or empty, and what to change."""
    made = [build for build in table.TORCH if not build.until and build.name != "cu132"]
    for build in made:
        if not why_not(build, driver, capabilities, machine)[0]:
            return build.name, ""
    if capabilities and max(capabilities) >= 10:
        return "", "update the driver to 580 or later: no build for an older one has code for these GPUs"
    return "", why_not(made[-1], driver, capabilities, machine)[1]


def _arm(machine: str) -> bool:
    return machine == "aarch64"


def _least(build: table.Torch, machine: str) -> float:
    return max(build.least, table.TORCH_ON_ARM if _arm(machine) else 0)


def _with_code(capability: float, machine: str) -> str:
    fitting = [one for one in table.TORCH if _least(one, machine) <= capability <= one.most]
    none = f"none is made for {machine}" if _arm(machine) else "none is made any more"
    return ", ".join(one.name for one in fitting if capability not in one.strange) or none
