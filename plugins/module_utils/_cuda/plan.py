# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The driver that a node should have: kept where it works, else one set of packages. Facts in, a plan out. Pure."""

from __future__ import annotations

import typing as t

from .._errors import FinetuneError
from . import extras, sets, table, torch
from .facts import Facts, Plan, Wish

_PERSISTENCE, _MANAGER = "nvidia-persistenced.service", "nvidia-fabricmanager.service"


def decide(facts: Facts, wish: Wish) -> Plan:
    """Refuses, with what to change, before anything is touched."""
    if facts.family in table.FRACTIONS:
        raise FinetuneError(
            f"{facts.product} has a part of a GPU, which only NVIDIA's GRID driver knows.",
            where="the instance type",
            change="take a type with whole GPUs, such as g6.xlarge",
        )
    if not facts.cards:
        return Plan("none", ["no NVIDIA GPU: nothing to do"])
    failing = faults(facts)
    managed = bool(facts.record) or not _foreign(facts)
    if not failing and not (managed and wish.install):
        plan = Plan("kept", [f"driver {facts.driver} works: left alone"], facts.driver)
        plan.notes += _late(facts, facts.driver)
        return extras.add(plan, facts, wish)
    if not wish.install:
        raise FinetuneError(
            f"The driver does not pass: {failing[0][0]}",
            where="cuda_state",
            change=f"{failing[0][1]}; or let the role install one, with cuda_state: present",
        )
    if not managed:
        raise FinetuneError(
            f"The driver {facts.driver or facts.loaded} of this host, which this role did not install, does not pass: "
            f"{failing[0][0]}",
            where=", ".join(sorted(name for name in facts.packages if sets.DRIVERS.fullmatch(name))[:4])
            or "a driver that is in no package",
            change=f"{failing[0][1]}; or remove that driver and apply again: two sources do not mix",
        )
    return extras.add(_set(facts, wish), facts, wish)


def faults(facts: Facts) -> list[t.Tuple[str, str]]:
    """Why the driver does not pass, and what helps; empty where it does. It passes when it answers, lists every GPU
    without a problem that blocks, runs CUDA 12, and NVSwitches are set up."""
    if not facts.driver:
        told = [(problem.what, problem.change) for problem in facts.problems if problem.blocks]
        return told or [("it does not answer.", "see the kernel's log (dmesg, NVRM)")]
    blocking = [problem for problem in facts.problems if problem.blocks or of_switches(problem.what)]
    found = [(problem.what, problem.change) for problem in blocking]
    least = max((one.driver for one in map(_generation, facts.cards) if one), default=0)
    needed = max(table.LEAST_DRIVER[12], (least, 0, 0))
    if torch.number(facts.driver) < needed:
        number = torch.text(needed)
        found.append((f"its version {facts.driver} is below {number}.", f"update it to {number} or later"))
    return found


def of_switches(what: str) -> bool:
    """Whether a fault is of NVSwitches, which are set up some time after the driver is loaded."""
    return "NVSwitch" in what


def _foreign(facts: Facts) -> bool:
    """Whether there is a driver already, of whatever source. nouveau is none."""
    packed = any(sets.DRIVERS.fullmatch(name) for name in facts.packages)
    return bool(facts.driver or facts.loaded or packed or any(card.driver == "nvidia" for card in facts.cards))


def _generation(card: t.Any) -> table.Generation | None:
    return table.generation(card.device)


def _late(facts: Facts, version: str) -> list[str]:
    """That the support of a branch is over."""
    known = table.branch(torch.number(version)[0]) if torch.number(version) else None
    if known and known.ends and facts.month and known.ends < facts.month:
        return [f"The support of driver branch {known.number} ended in {known.ends}: cuda_branch names another one."]
    return []


def _set(facts: Facts, wish: Wish) -> Plan:
    """The packages of a driver that this role installs, and all that goes with them."""
    system = extras.system(facts, wish)
    hardware = sets.hardware(facts)
    usual = "nvidia" if hardware.subnet else system.sources[0]  # which alone has NVLSM
    source = wish.source or str(facts.record.get("source") or usual)
    kept = str(facts.record.get("source") or source)
    if kept != source and any(sets.DRIVERS.fullmatch(name) for name in facts.packages):
        raise FinetuneError(
            f"This host has a driver of cuda_source {kept}: two sources do not mix.",
            where="cuda_source",
            change=f"say {kept}, or remove that driver's packages first",
        )
    if source == "distribution" and "debian" in system.ids and (hardware.manager or hardware.rack):
        raise FinetuneError(
            "Debian packs no fabric manager and no IMEX, which the GPUs of this host need.",
            where="cuda_source",
            change="set cuda_source: nvidia",
        )
    flavour = _flavour(facts, wish)
    branch = _branch(facts, wish, system, source, flavour)
    version = _version(facts, wish, system, source, branch)
    _refuse_secure_boot(facts, wish, system, source)
    plan = Plan("managed", driver=version, branch=branch.number, flavour=flavour, source=source)
    plan.packages = sets.driver(system, source, branch.number, flavour, version, facts)
    plan.tools = sets.tools(system, source, facts)
    if source == "nvidia":
        plan.repositories = [] if facts.sources else [sets.repository(system, facts.machine, wish)]
    elif "debian" in system.ids:
        if not facts.archive:
            raise FinetuneError(
                f"No source of this host has the main part of {system.codename}, beside which Debian's driver is.",
                where="cuda_source; apt-get indextargets",
                change="give the host a source of Debian's, or set cuda_source: nvidia",
            )
        plan.repositories = [sets.own_repository(system, facts.archive)]
    if system.modular:
        plan.stream = f"{branch.number}-{'open' if flavour == table.OPEN else 'dkms'}"
    plan.files[sets.MODPROBE] = sets.modprobe(gsp=wish.gsp, rack=hardware.rack)
    plan.early = [sets.MODPROBE]
    if hardware.subnet:
        plan.files[sets.MODULES_LOAD] = "ib_umad\nmlx5_ib\n"
    text = sets.preferences(system, source, version, "") if system.family == table.APT else ""
    if text:
        plan.files[sets.PREFERENCES] = text
    plan.services = [_PERSISTENCE, *([_MANAGER] if hardware.manager else [])]
    plan.services += ["nvidia-imex.service"] if hardware.rack else []
    if wish.hold != "nothing":
        plan.hold = [package.name for package in plan.packages]
        plan.hold += sets.kernels(system.family, facts.packages) if wish.hold == "driver_and_kernel" else []
    plan.lines = [_told(facts, plan)]
    plan.notes += _notes(facts, wish, plan)
    return plan


def _told(facts: Facts, plan: Plan) -> str:
    count = len(facts.cards)
    known = _generation(facts.cards[0])
    what = f"{count} GPU{'s' * (count > 1)} of {known.name if known else 'an unknown generation'}"
    of = "NVIDIA's packages" if plan.source == "nvidia" else "the distribution's packages"
    return f"{what}: driver {plan.driver or f'of branch {plan.branch}'}, {plan.flavour} modules, {of}"


def _notes(facts: Facts, wish: Wish, plan: Plan) -> list[str]:
    notes = _late(facts, str(plan.branch))
    if facts.sources and plan.source == "nvidia":
        notes.append(f"NVIDIA's repository is taken as {facts.sources[0]} has it.")
    if facts.family in table.GSP_OFF and wish.gsp:
        notes.append(
            f"On {facts.product} AWS's own images turn the GPU's system processor off and take proprietary modules: "
            "cuda_gsp: false does so."
        )
    if not all(map(_generation, facts.cards)):
        notes.append("A GPU here is of no generation that is known: cuda_flavour says which modules it wants.")
    locked = (table.branch(plan.branch) or table.BRANCHES[0]).version
    if plan.source == "nvidia" and not wish.version and locked and locked != plan.driver:
        notes.append(
            f"This host keeps driver {plan.driver}; by now {locked} is locked: cuda_version: {locked} takes it."
        )
    return notes


def _flavour(facts: Facts, wish: Wish) -> str:
    """Open modules unless a GPU cannot have them, or the GPU's system processor is to be off."""
    allowed = {table.OPEN, table.PROPRIETARY}
    for one in map(_generation, facts.cards):
        allowed &= set(one.flavours) if one else allowed
    if not allowed:
        raise FinetuneError(
            "The GPUs of this host need different kernel modules: Blackwell the open ones, Volta and older the others.",
            where="the GPUs on its bus",
            change="take one kind out, or give it to a virtual machine (vfio-pci)",
        )
    if not wish.gsp and table.PROPRIETARY not in allowed:
        raise FinetuneError(
            "The open kernel modules, which Blackwell needs, do not run without the GPU's system processor.",
            where="cuda_gsp",
            change="leave it at true",
        )
    if not wish.gsp and wish.flavour == table.OPEN:
        raise FinetuneError(
            "The open kernel modules do not run without the GPU's system processor.",
            where="cuda_gsp",
            change="leave it at true, or set cuda_flavour: proprietary",
        )
    chosen = wish.flavour or (table.OPEN if wish.gsp and table.OPEN in allowed else table.PROPRIETARY)
    if chosen not in allowed:
        why = "Blackwell needs the open" if chosen == table.PROPRIETARY else "GPUs before Turing need the proprietary"
        raise FinetuneError(
            f"The {chosen} kernel modules do not drive the GPUs of this host: {why} ones.",
            where="cuda_flavour",
            change=f"leave it at auto, or say {min(allowed)}",
        )
    return chosen


def _branch(facts: Facts, wish: Wish, system: table.System, source: str, flavour: str) -> table.Branch:
    named = wish.branch or (torch.number(wish.version) or (0,))[0]
    own = system.own if source == "distribution" else 0
    number = named or own or int(facts.record.get("branch") or 0) or table.DEFAULT_BRANCH
    found = table.branch(number)
    known = ", ".join(str(one.number) for one in table.BRANCHES)
    if not found:
        raise FinetuneError(f"Driver branch {number} is not known.", where="cuda_branch", change=f"use one of {known}")
    if wish.version and torch.number(wish.version)[0] != number:
        raise FinetuneError(
            f"cuda_version {wish.version} is not of cuda_branch {number}.",
            where="cuda_version",
            change="leave cuda_branch out, or name a version of that branch",
        )
    if own and number != own:
        raise FinetuneError(
            f"{facts.system} {facts.version} packs branch {own}, not {number}.",
            where="cuda_source",
            change="set cuda_source: nvidia, or leave cuda_branch out",
        )
    for one in filter(None, map(_generation, facts.cards)):
        if number < one.driver:
            raise FinetuneError(
                f"Driver branch {number} is too old for GPUs of {one.name} (compute capability {one.capability:g}).",
                where="cuda_branch" if named else "cuda_source",
                change=f"use {table.DEFAULT_BRANCH} or later" + ("" if named else ", with cuda_source: nvidia"),
            )
        if one.capability < found.least:
            raise FinetuneError(
                f"GPUs of {one.name} are too old for driver branch {number}: {table.DEFAULT_BRANCH} was the last for "
                "Volta and older.",
                where="cuda_branch",
                change=f"use {table.DEFAULT_BRANCH}",
            )
    if source == "nvidia" and "debian" in system.ids and number < table.COMPUTE_ONLY:
        raise FinetuneError(
            f"NVIDIA packs drivers for computing alone from branch {table.COMPUTE_ONLY} on, which {number} is before.",
            where="cuda_branch",
            change=f"use {table.DEFAULT_BRANCH} or later, or set cuda_source: distribution",
        )
    if flavour not in found.flavours:
        raise FinetuneError(
            f"Driver branch {number} has no {flavour} kernel modules any more.",
            where="cuda_branch" if wish.gsp else "cuda_gsp",
            change=f"use {table.DEFAULT_BRANCH} or 595" + ("" if wish.gsp else ", or leave cuda_gsp at true"),
        )
    return found


def _version(facts: Facts, wish: Wish, system: table.System, source: str, branch: table.Branch) -> str:
    """One full version; empty for a distribution's archive, which has but the newest of a branch. What was installed is
    kept when the project locks a newer one."""
    if wish.version or source == "distribution":
        return wish.version
    kept = str(facts.record.get("version") or "")
    if kept and (torch.number(kept) or (0,))[0] == branch.number:
        return kept
    if not branch.version:
        raise FinetuneError(
            f"No version of driver branch {branch.number} is locked.",
            where="cuda_branch",
            change=f"name one with cuda_version, as NVIDIA's repository {system.repository} has it",
        )
    return branch.version


def _refuse_secure_boot(facts: Facts, wish: Wish, system: table.System, source: str) -> None:
    """Modules that are built on the host are signed with a key that the firmware does not know."""
    signed = source == "distribution" and "ubuntu" in system.ids
    if facts.secure_boot and not signed and not wish.key_enrolled:
        other = " set cuda_source: distribution, whose modules are signed;" if "ubuntu" in system.ids else ""
        raise FinetuneError(
            "Secure Boot is on, and the kernel would refuse modules that are built here (Required key not available).",
            where="the firmware of this host",
            change=f"{other} turn Secure Boot off; or enrol the key of DKMS at the console (mokutil --import) and set "
            "cuda_key_enrolled: true".lstrip(),
        )
