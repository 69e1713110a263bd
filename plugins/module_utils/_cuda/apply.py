# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a node as its plan says. With `changes.dry` nothing is written and the same list comes out."""

from __future__ import annotations

import os
import time
import typing as t
from pathlib import Path

from .._changes import Changes
from .._engine import files, lease
from .._errors import FinetuneError
from .._gpu import tool
from . import node, packages, place, plan
from .facts import Facts, Package, Plan, Wish

_TOOLS = (
    "where there are no headers of the running kernel any more, update it and reboot, then apply again; else see "
    "whether this host reaches its repositories"
)
_ON = ("enabled", "enabled-runtime", "static", "alias", "indirect", "generated")


class Asked(t.NamedTuple):
    """sys: where sysfs is. seconds: for each tool. patience: in seconds, for the driver to set up its switches.
    reboots: whether the play reboots this host, which it does not do under itself."""

    sys: Path
    seconds: float
    patience: float
    leases: Path
    reboots: bool


class Answer(t.NamedTuple):
    """reboot: why one is asked for; empty for none."""

    facts: Facts
    plan: Plan
    reboot: str


def present(wish: Wish, asked: Asked, changes: Changes) -> Answer:
    facts = node.look(asked.sys, asked.seconds)
    made = plan.decide(facts, wish)
    work = _Work(made, facts, changes)
    reboot = "" if changes.made else _waiting(made, facts)
    if (changes.made or reboot) and made.state != "none":
        _refuse_held(asked.leases)
    if changes.made and not changes.dry:
        facts, reboot = _do(work, made, facts, asked)
    elif changes.made and made.state == "managed":
        reboot = _foreseen(made, facts)
    if reboot and not asked.reboots and not (changes.dry and changes.made):
        raise FinetuneError(
            f"Driver {made.driver or made.branch} is installed, and this host has to be rebooted: {reboot}.",
            where="the play does not reboot the host that it runs on, nor any with cuda_reboot: false",
            change="reboot it, then give the same command again: it goes on from there",
        )
    return Answer(facts, made, reboot)


def _waiting(made: Plan, facts: Facts) -> str:
    """The reason of a reboot that was asked for in this boot, as long as it is one."""
    if made.state != "managed" or facts.record.get("boot") != facts.boot:
        return ""
    other = facts.loaded and facts.loaded != _installed(made, facts)
    return str(facts.record.get("reboot") or "") if other or plan.faults(facts) else ""


def _foreseen(made: Plan, facts: Facts) -> str:
    """Why a reboot will be needed, as far as that is known before."""
    installs = any(not one.is_in(facts.packages) for one in made.packages)
    if any(card.driver == "nouveau" for card in facts.cards):
        return "nouveau holds a GPU"
    if installs and facts.newer_kernel:
        return f"kernel {facts.newer_kernel} is installed, {facts.kernel} runs"
    if installs and facts.loaded:
        return f"kernel module {facts.loaded} is loaded"
    return ""


def _refuse_held(folder: Path) -> None:
    names = [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    for name, holder in lease.holders(sorted(names), folder).items():
        raise FinetuneError(
            f"A run is on this host: {lease.describe(name, holder)}",
            where="a driver is never changed under a run",
            change="wait for it, or end it (ansible-playbook llmops.finetune.stop), then apply again",
        )


class _Work:
    """What of a plan is not so yet, noted as changes in the order in which it is done."""

    def __init__(self, made: Plan, facts: Facts, changes: Changes) -> None:
        self.repositories = [one for one in made.repositories if not place.repository_is(one)]
        self.stream = made.stream if made.stream != facts.stream else ""
        self.files = {path: text for path, text in made.files.items() if place.text_of(path) != text}
        self.tools = [one for one in made.tools if not one.is_in(facts.packages)]
        self.packages = [one for one in made.packages if not one.is_in(facts.packages)]
        self.extras = [one for one in made.extras if not one.is_in(facts.packages)]
        self.hold = [name for name in dict.fromkeys(made.hold) if name not in facts.held]
        self.services = [name for name in made.services if not _service_is(name, facts)]
        self.efa = made.efa
        for one in self.repositories:
            changes.add("update" if os.path.exists(one.path) else "create", one.path)
        if self.stream:
            changes.add("enable", f"module stream nvidia-driver:{self.stream}")
        for path in self.files:
            changes.add("update" if os.path.exists(path) else "create", path)
        for package in (*self.tools, *self.packages, *self.extras):
            changes.add("update" if package.name in facts.packages else "install", str(package))
        for name in self.hold:
            changes.add("hold", name)
        for name in self.services:
            changes.add("enable", name)
        if self.efa:
            changes.add("install", f"EFA installer {self.efa}")
        if made.state == "managed" and not changes.made and not _waiting(made, facts):
            for what, change in plan.faults(facts):
                if facts.driver and not plan.of_switches(what):
                    raise FinetuneError(f"The driver does not pass: {what}", where="nvidia-smi", change=change)
                changes.add("load", "kernel module nvidia")
                break


def _do(work: _Work, made: Plan, facts: Facts, asked: Asked) -> tuple[Facts, str]:
    """Leases are held meanwhile, so that no run begins on what is being changed."""
    if os.geteuid() != 0:
        raise FinetuneError(
            "Only root installs a driver.", where="cuda_become", change="leave it at true, and let the account use sudo"
        )
    holder = {"run": "cuda_driver", "user": "root", "pid": os.getpid()}
    try:
        held = lease.acquire([lease.CPU, *facts.uuids], holder, asked.leases)
    except lease.Held as taken:
        raise FinetuneError(str(taken), where="lease", change="wait for it, then apply again") from None
    record = {**facts.record, "version": made.driver, "branch": made.branch, "source": made.source}
    if work.packages or work.files:
        record.update(boot="", reboot="")
    try:
        if made.state == "managed":
            _record(record)  # before: what a kill leaves is this role's to go on with
        _install(work, made, facts)
        if made.state != "managed":
            _start(made, facts)
            return node.look(asked.sys, asked.seconds), ""
        now, reboot = _load(made, asked, str(record.get("boot") or ""))
        if reboot:
            _record({**record, "boot": now.boot, "reboot": reboot})
        else:
            _start(made, now)
            now = _verified(asked)
        return now, reboot
    finally:
        for descriptor in held:
            os.close(descriptor)


def _install(work: _Work, made: Plan, facts: Facts) -> None:
    manager = packages.of((facts.system, facts.version))
    for one in work.repositories:
        place.add(one)
    for path, text in work.files.items():
        place.write(Path(path), text)
    wanted: list[list[Package]] = [work.tools, [*work.packages, *work.extras]]
    if any(wanted) or work.stream:
        manager.refresh()
    if wanted[0]:
        manager.install(wanted[0], _TOOLS)
    if work.stream:
        manager.enable(work.stream)
    if wanted[1]:
        manager.install(wanted[1])
    # the packages build for the running kernel themselves, if its headers are there by then
    kernel = facts.newer_kernel if work.packages else facts.kernel if work.tools else ""
    if kernel and made.state == "managed" and tool.find("dkms"):
        packages.run("dkms", "autoinstall", "-k", kernel)
    if any(path in made.early for path in work.files):
        _rebuild_image()
    fresh = {one.name for one in (*work.packages, *work.extras)}  # of which an update has taken the hold away
    hold = [name for name in dict.fromkeys(made.hold) if name in work.hold or name in fresh]
    if hold:
        manager.hold(hold)
    for name in work.services:
        packages.run("systemctl", "enable", name)
    if work.extras and tool.find("nvidia-ctk") and tool.find("dockerd"):
        packages.run("nvidia-ctk", "runtime", "configure", "--runtime=docker")
        packages.run("systemctl", "try-restart", "docker.service")
    if work.efa:
        place.install_efa(work.efa, made)


def _rebuild_image() -> None:
    """nouveau is kept out from the start of the boot on."""
    if tool.find("update-initramfs"):
        packages.run("update-initramfs", "-u", "-k", "all")
    elif tool.find("dracut"):
        packages.run("dracut", "--force", "--regenerate-all")


def _load(made: Plan, asked: Asked, before: str) -> tuple[Facts, str]:
    """The facts with the driver loaded, or why that takes a reboot. before: the boot in which one was asked for."""
    facts = node.look(asked.sys, asked.seconds)
    installed = _installed(made, facts)
    reason = ""
    if any(card.driver == "nouveau" for card in facts.cards):
        reason = "nouveau holds a GPU"
    elif facts.loaded and installed and facts.loaded != installed:
        reason = f"kernel module {facts.loaded} is loaded, {installed} is installed"
    elif not facts.driver and facts.newer_kernel:
        reason = f"kernel {facts.newer_kernel} is installed, {facts.kernel} runs"
    elif not facts.loaded:
        said = _modprobe()
        facts = node.look(asked.sys, asked.seconds)
        reason = "" if facts.loaded else f"the kernel module does not load yet ({said or 'modprobe says nothing'})"
    if reason and before and before != facts.boot:
        raise FinetuneError(
            f"The host was rebooted, and still {reason}.",
            where="the kernel module of the driver",
            change="see dmesg (NVRM) and `dkms status`: headers of the running kernel, Secure Boot, and the flavour of "
            "the modules are what it fails of",
        )
    return facts, reason


def _modprobe() -> str:
    """What it complains of; empty where the module is loaded."""
    try:
        packages.run("modprobe", "nvidia")
    except FinetuneError as error:
        return error.where.splitlines()[-1].strip() if error.where else error.what
    return ""


def _installed(made: Plan, facts: Facts) -> str:
    """The driver's version by the package of its libraries."""
    main = next((one.name for one in made.packages if one.version and one.name in facts.packages), "")
    there = facts.packages.get(main, "")
    return (there.partition(":")[2] or there).partition("-")[0]


def _start(made: Plan, facts: Facts) -> None:
    for name in made.services:
        if not _service_is(name, facts):
            packages.run("systemctl", "start", name)


def _verified(asked: Asked) -> Facts:
    """Waits until the driver passes: NVSwitches take their time."""
    deadline = time.monotonic() + asked.patience
    while True:
        facts = node.look(asked.sys, asked.seconds)
        failing = plan.faults(facts)
        if not failing:
            return facts
        if time.monotonic() > deadline or not plan.of_switches(failing[0][0]):
            raise FinetuneError(
                f"The driver is installed, and does not pass: {failing[0][0]}", where="nvidia-smi", change=failing[0][1]
            )
        time.sleep(2)


def _service_is(name: str, facts: Facts) -> bool:
    """Enabled; and running, once there is a driver to run with."""
    on, _blank, now = node.active(name).partition(" ")
    return on in _ON and (now == "active" or not facts.loaded)


def _record(value: dict[str, t.Any]) -> None:
    node.RECORD.parent.mkdir(mode=0o755, exist_ok=True)
    if files.read_json(node.RECORD) != value:
        files.write_json(node.RECORD, value)
