# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The GPUs of this host: asks the tools in their order, and puts together what they say."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import time
import typing as t
from dataclasses import dataclass, field, replace
from pathlib import Path

from . import catalogue, driver, health, nvml, nvml_ask, others, pci, smi, tool, xid
from .card import Gpu, Other, Peer, Problem

SECONDS = 30.0
"""For each tool. Eight GPUs whose driver is not kept loaded (nvidia-persistenced) take some ten."""
_MANAGER = "nvidia-fabricmanager"


@dataclass
class Report:
    """source: what told of NVIDIA's GPUs: nvidia-smi, nvml, pci; empty where there are none. log: whether the kernel's
    log could be read. switches: NVSwitches on the bus. manager: state of the fabric manager's service."""

    source: str = ""
    driver: str = ""
    cuda: str = ""
    gpus: list[Gpu] = field(default_factory=list)
    peers: list[Peer] = field(default_factory=list)
    others: list[Other] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    log: bool = False
    switches: int = 0
    manager: str = ""

    def devices(self) -> list[dict[str, t.Any]]:
        """What runs can have, one rank each: GPUs, and in the place of those in MIG mode their slices. memory and
        memory_free in bytes, 0 where unknown."""
        found = []
        for gpu in self.gpus:
            if not health.usable(gpu, self.problems):
                continue
            card = {
                "index": gpu.index,
                "uuid": gpu.uuid,
                "name": gpu.name,
                "memory": gpu.memory or 0,
                "memory_free": gpu.memory_free or 0,
                "compute_capability": gpu.compute_capability,
                "driver": self.driver,
            }
            if not gpu.mig:
                found.append(card)
            for one in gpu.slices if gpu.mig else ():
                if one.uuid:
                    found.append(
                        {
                            **card,
                            "uuid": one.uuid,
                            "name": f"{gpu.name} MIG {one.profile}".rstrip(),
                            "memory": one.memory or 0,
                            "memory_free": one.memory_free or 0,
                            "slice": one.index,
                        }
                    )
        return found


def look(seconds: float = SECONDS, bus: Path = pci.DEVICES, log: str = "/dev/kmsg") -> Report:
    """bus, log: where the kernel tells of devices and of what happened to them."""
    cards = pci.cards(bus)
    report = Report(switches=len(pci.switches(cards)))
    _nvidia(report, cards, seconds, log, bus)
    _others(report, cards, seconds)
    return report


def _nvidia(report: Report, cards: t.Sequence[pci.Card], seconds: float, log: str, bus: Path) -> None:
    deadline = time.monotonic() + seconds
    here = pci.gpus(cards)
    path = tool.find("nvidia-smi")
    told = _by_smi(report, path, seconds, expected=bool(here) or not _lists(bus)) if path else _by_nvml(report, seconds)
    listed = {gpu.pci for gpu in told.gpus} if told else set()
    apart = [card for card in here if card.address not in listed and (card.driver != "nvidia" or not path)]
    report.problems += driver.undriven([card for card in apart if card.driver or not report.problems], _name)
    if not told or not told.gpus:
        report.source = "pci" if here else ""
        return
    report.driver, report.cuda = told.driver, told.cuda
    report.gpus = [_completed(gpu, here) for gpu in told.gpus]
    if path and report.source == "nvidia-smi":
        _more(report, path, max(1.0, deadline - time.monotonic()))
    happened = xid.kernel_log(log)
    report.log = happened is not None
    numbers = xid.parse(happened or "")
    report.gpus = [replace(gpu, xids=numbers.get(gpu.pci, [])) for gpu in report.gpus]
    report.problems += health.problems(report.gpus, cards, told.noise, report.manager)


def _lists(bus: Path) -> bool:
    """Whether the bus tells of devices at all: in WSL it does not tell of GPUs."""
    return bus.is_dir() and any(bus.iterdir())


def _name(device: str) -> str:
    known = catalogue.by_pci(device)
    return known.name if known else ""


def _by_smi(report: Report, path: str, seconds: float, *, expected: bool) -> smi.Smi | None:
    """What nvidia-smi tells. Its XML form tells most; where that cannot be read, a query does. expected: that it lists
    none is a problem."""
    report.source = "nvidia-smi"
    answer = tool.ask({"": [path, "-q", "-x"]}, seconds)[""]
    told = smi.parse(answer.said)
    if told and told.gpus and not answer.hung:
        return told
    asks_again = told is None and answer.code == 0
    rows = smi.parse_query(tool.ask({"": _query(path)}, seconds)[""].said) if asks_again else []
    if not rows:
        if expected or answer.hung:
            report.problems.append(driver.silent(answer, seconds))
        return None
    report.source = "query"
    report.problems.append(
        Problem(
            "What nvidia-smi -q -x says could not be read; little is known of the GPUs.",
            "run it on the host; a driver of NVIDIA's own has it",
        )
    )
    gpus = [Gpu(**{key: value for key, value in row.items() if key != "driver"}) for row in rows]
    return smi.Smi(rows[0]["driver"], "", gpus, [])


def _query(path: str) -> list[str]:
    return [path, f"--query-gpu={','.join(smi.QUERY)}", "--format=csv,noheader,nounits"]


def _by_nvml(report: Report, seconds: float) -> smi.Smi | None:
    """The same where only nvidia-ml-py is there, as in some containers."""
    if importlib.util.find_spec("pynvml") is None:
        return None
    answer = tool.ask({"": [sys.executable, "-c", inspect.getsource(nvml_ask)]}, seconds)[""]
    report.source = "nvml"
    return nvml.parse(answer.said)


def _completed(gpu: Gpu, cards: t.Sequence[pci.Card]) -> Gpu:
    card = next((card for card in cards if card.address == gpu.pci), None)
    known = catalogue.find(gpu.name)
    capability = gpu.compute_capability or (known.compute_capability if known else 0.0)
    architecture = gpu.architecture or (known.generation if known else "")
    node = card.numa_node if card else None
    return replace(gpu, compute_capability=capability, architecture=architecture, numa_node=node)


def _more(report: Report, path: str, seconds: float) -> None:
    """What the XML form lacks: compute capabilities, UUIDs of slices, ways between GPUs."""
    asked = {"query": _query(path)}
    if any(gpu.mig for gpu in report.gpus):
        asked["list"] = [path, "-L"]
    if len(report.gpus) > 1:
        asked["links"] = [path, "topo", "-m"]
    systemctl = tool.find("systemctl")
    if systemctl and (report.switches or any(gpu.fabric for gpu in report.gpus)):
        asked["manager"] = [systemctl, "is-active", _MANAGER]
    answers = tool.ask(asked, seconds)
    report.problems += [
        Problem(
            f"{' '.join(asked[key][1:3])} of nvidia-smi gave no answer and was ended.", "see the kernel's log (NVRM)"
        )
        for key, answer in answers.items()
        if answer.hung
    ]
    told = {key: answer.said for key, answer in answers.items()}
    capabilities = {row["uuid"]: row["compute_capability"] for row in smi.parse_query(told["query"])}
    listed = smi.parse_list(told.get("list", ""))
    report.gpus = [
        replace(
            gpu,
            compute_capability=capabilities.get(gpu.uuid) or gpu.compute_capability,
            slices=smi.with_uuids(gpu.slices, listed.get(gpu.uuid, ())) if gpu.mig else [],
        )
        for gpu in report.gpus
    ]
    report.peers = smi.parse_links(told.get("links", ""))
    report.manager = told.get("manager", "").strip()


def _others(report: Report, cards: t.Sequence[pci.Card], seconds: float) -> None:
    paths = {name: tool.find(name) for name in others.COMMANDS}
    if paths["rocm-smi"]:
        del paths["amd-smi"]
    asked = {name: [path, *others.COMMANDS[name]] for name, path in paths.items() if path}
    for name, answer in tool.ask(asked, seconds).items():
        report.others += others.parse(name, answer.said)
        if answer.hung:
            report.problems.append(
                Problem(f"{name} gave no answer in {seconds:g} s and was ended.", "see the kernel's log")
            )
    for vendor, maker, number in (("amd", "AMD", pci.AMD), ("huawei", "Huawei", pci.HUAWEI)):
        if not any(one.vendor == vendor for one in report.others):
            for index, card in enumerate(pci.others(cards, number)):
                name = f"{maker} accelerator {number}:{card.device}"
                report.others.append(Other(vendor, index, name, pci=card.address))
    if report.others:
        report.problems.append(Problem(others.NOTE, "take hosts with NVIDIA's GPUs; on others runs use the CPUs"))
