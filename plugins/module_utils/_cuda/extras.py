# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The system that packages are for, and what comes beside a driver where it is asked for. Pure."""

from __future__ import annotations

from .._errors import FinetuneError
from . import sets, table, torch
from .facts import Facts, Package, Plan, Wish


def system(facts: Facts, wish: Wish) -> table.System:
    found = table.system(facts.system, facts.version)
    known = ", ".join(dict.fromkeys(f"{one.ids[0]} {one.version}" for one in table.SYSTEMS))
    if facts.container:
        raise FinetuneError(
            "This host is a container: a driver belongs to the machine that it runs on.",
            where="its kernel, which is not its own",
            change="install the driver on that machine, and start the container with NVIDIA's runtime",
        )
    if not found:
        raise FinetuneError(
            f"No driver is known for {facts.system} {facts.version}.",
            where="/etc/os-release",
            change=f"take one of {known} (and what is built like RHEL), or an image that has a driver",
        )
    if facts.machine not in table.MACHINES:
        raise FinetuneError(
            f"No driver is known for the processor {facts.machine}.",
            where="uname -m",
            change="take x86_64 or aarch64",
        )
    if wish.source and wish.source not in found.sources:
        raise FinetuneError(
            f"{facts.system} {facts.version} packs no driver of its own that is known.",
            where="cuda_source",
            change="leave it at auto, or say nvidia",
        )
    return found


def add(plan: Plan, facts: Facts, wish: Wish) -> Plan:
    """What is there only where it is asked for: toolkits, EFA, gdrcopy."""
    if not (wish.toolkit or wish.container_toolkit or wish.efa or wish.gdrcopy):
        return plan
    here = system(facts, wish)
    if wish.toolkit:
        _add_toolkit(plan, facts, wish, here)
    if wish.container_toolkit:
        revision = "-*"
        plan.repositories.append(sets.container_repository(here, facts.machine, wish))
        plan.extras += [Package(name, table.CONTAINER_VERSION + revision) for name in table.CONTAINER_PACKAGES]
        plan.hold += list(table.CONTAINER_PACKAGES) if wish.hold != "nothing" else []
        plan.services.append("nvidia-cdi-refresh.path")
    if wish.gdrcopy:
        names = ("gdrdrv-dkms", "libgdrapi") if here.family == table.APT else ("gdrcopy", "gdrcopy-kmod")
        plan.extras += [Package(name) for name in names]
    if wish.efa:
        version = wish.efa_version or table.EFA_VERSION
        if not facts.efa:
            plan.notes.append("This host has no EFA device: its installer is left out.")
        elif version not in table.EFA_DIGESTS and not wish.efa_digest:
            raise FinetuneError(
                f"No digest of the EFA installer {version} is known.",
                where="cuda_efa_version",
                change=f"use {table.EFA_VERSION}, or give its SHA-256 with cuda_efa_digest",
            )
        elif facts.efa_installed != version:
            plan.efa = version
            plan.efa_source = (table.EFA_URL.format(version), wish.efa_digest or table.EFA_DIGESTS[version])
    return plan


def _add_toolkit(plan: Plan, facts: Facts, wish: Wish, system: table.System) -> None:
    version = torch.number(wish.toolkit)
    least = table.LEAST_DRIVER.get(version[0] if version else 0)
    if len(version) != 2 or not least:
        raise FinetuneError(
            f"cuda_toolkit is {wish.toolkit}.", where="cuda_toolkit", change="name a release as 12.8, or leave it out"
        )
    driver = torch.number(plan.driver) or (plan.branch,)
    if driver[: len(least)] < least[: len(driver)]:
        raise FinetuneError(
            f"The CUDA toolkit {wish.toolkit} is newer than driver {plan.driver or plan.branch} runs: what it compiles "
            "does not load.",
            where="cuda_toolkit",
            change=f"take a release of CUDA {max(key for key, value in table.LEAST_DRIVER.items() if value <= driver)}",
        )
    known = {release: own for release, own in table.OWN_BRANCH.items() if release <= version}
    if known and driver < (max(known.values()),):
        fit = max(release for release, own in known.items() if own <= driver[0])
        plan.notes.append(
            f"Driver {plan.driver or plan.branch} loads no PTX of CUDA {wish.toolkit}: compile for the very GPUs "
            f"(TORCH_CUDA_ARCH_LIST), or take cuda_toolkit: {fit[0]}.{fit[1]}."
        )
    mine = sets.repository(system, facts.machine, wish)
    if not facts.sources and mine not in plan.repositories:
        plan.repositories.append(mine)
    series = wish.toolkit.replace(".", "-")
    plan.extras.append(Package(f"cuda-toolkit-{series}"))
    apart = plan.source != "nvidia" and system.family == table.APT and not facts.sources
    if apart:
        plan.files[sets.PREFERENCES] = sets.preferences(system, "", "", wish.toolkit)
