# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What nvidia-smi says: its XML form, a query, the list of devices and the table of links. Pure: text in, values out.

Written after real outputs of drivers 535 to 595, schemas v12 and v13; what a field is called has changed between them.
"""

from __future__ import annotations

import csv
import re
import typing as t
from dataclasses import replace
from xml.etree import ElementTree

from .card import Ecc, Gpu, Heat, Link, Peer, Power, Process, Rows, Slice

QUERY = ("index", "uuid", "name", "memory.total", "compute_cap", "driver_version")
LOST = ("GPU is lost", "GPU requires reset")
"""What stands in the place of values when a card does not answer."""
UNKNOWN = "Unknown Error"
"""The same where it stands for what every card tells; some that work have it for their power."""
_UNTOLD = re.compile(r"|n/?a|not supported|err!?|none|insufficient permissions?|requested functionality .*", re.I)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")


class Smi(t.NamedTuple):
    driver: str
    cuda: str
    gpus: list[Gpu]
    noise: list[str]
    """Lines before and after, by which nvidia-smi tells of cards that it leaves out."""


def parse(text: str) -> Smi | None:
    """The answer to `-q -x`; None where that is no XML of nvidia-smi's."""
    found = re.search(r"<nvidia_smi_log>.*</nvidia_smi_log>", text, re.S)
    if not found:
        return None
    try:
        root = ElementTree.fromstring(_CONTROL.sub("", found.group()))
    except ElementTree.ParseError:
        return None
    around = text[: found.start()].splitlines() + text[found.end() :].splitlines()
    noise = [line.strip() for line in around if line.strip() and not line.lstrip().startswith("<")]
    gpus = [_gpu(element, index) for index, element in enumerate(root.findall("gpu"))]
    return Smi(_text(root, "driver_version"), _text(root, "cuda_version"), gpus, noise)


def _gpu(element: ElementTree.Element, index: int) -> Gpu:
    ecc, rows, heat = "ecc_errors", "remapped_rows", "temperature"
    power = "gpu_power_readings" if element.find("gpu_power_readings") is not None else "power_readings"
    link = "pci/pci_gpu_link_info"
    mode = _text(element, "compute_mode")
    return Gpu(
        index=index,
        uuid=_text(element, "uuid"),
        name=_text(element, "product_name"),
        pci=address(element.get("id") or _text(element, "pci/pci_bus_id")),
        architecture=_text(element, "product_architecture"),
        memory=_bytes(element, "fb_memory_usage/total"),
        memory_free=_bytes(element, "fb_memory_usage/free"),
        memory_used=_bytes(element, "fb_memory_usage/used"),
        memory_reserved=_bytes(element, "fb_memory_usage/reserved"),
        mig=_switch(element, "mig_mode/current_mig"),
        mig_pending=_switch(element, "mig_mode/pending_mig"),
        slices=[_slice(one) for one in element.findall("mig_devices/mig_device")],
        ecc=Ecc(
            _switch(element, "ecc_mode/current_ecc"),
            _errors(element, f"{ecc}/volatile", "_correctable"),
            _errors(element, f"{ecc}/volatile", "_uncorrectable"),
            _errors(element, f"{ecc}/aggregate", "_correctable"),
            _errors(element, f"{ecc}/aggregate", "_uncorrectable"),
        ),
        rows=Rows(
            _count(element, f"{rows}/remapped_row_corr"),
            _count(element, f"{rows}/remapped_row_unc"),
            _switch(element, f"{rows}/remapped_row_pending"),
            _switch(element, f"{rows}/remapped_row_failure"),
        ),
        power=Power(
            *(
                _first(element, [f"{power}/{name}" for name in names])
                for names in (
                    ("instant_power_draw", "average_power_draw", "power_draw"),
                    ("current_power_limit", "enforced_power_limit", "power_limit"),
                    ("default_power_limit",),
                    ("max_power_limit",),
                )
            )
        ),
        heat=Heat(
            _number(element, f"{heat}/gpu_temp"),
            _number(element, f"{heat}/gpu_temp_slow_threshold"),
            _number(element, f"{heat}/gpu_temp_max_threshold"),
            _number(element, f"{heat}/gpu_temp_tlimit"),
        ),
        pcie=Link(
            _count(element, f"{link}/pcie_gen/current_link_gen"),
            _count(element, f"{link}/pcie_gen/max_link_gen"),
            _count(element, f"{link}/link_widths/current_link_width"),
            _count(element, f"{link}/link_widths/max_link_width"),
        ),
        compute_mode="" if mode == "Default" else mode,
        recovery=_recovery(element),
        fabric=_text(element, "fabric/state"),
        processes=[
            Process(_count(one, "pid") or 0, _text(one, "process_name"), _text(one, "type"), _bytes(one, "used_memory"))
            for one in element.findall("processes/process_info")
        ],
        lost=_lost(element),
    )


def _lost(element: ElementTree.Element) -> str:
    needed = [element.findtext(path) or "" for path in ("product_name", "uuid", "fb_memory_usage/total")]
    told = [leaf.text or "" for leaf in element.iter()]
    return next(
        (word for word, places in (*((word, told) for word in LOST), (UNKNOWN, needed)) if word in "\n".join(places)),
        "",
    )


def _slice(element: ElementTree.Element) -> Slice:
    return Slice(
        index=_count(element, "index") or 0,
        memory=_bytes(element, "fb_memory_usage/total"),
        memory_free=_bytes(element, "fb_memory_usage/free"),
        uuid=_text(element, "uuid"),
        gpu_instance=_count(element, "gpu_instance_id"),
        compute_instance=_count(element, "compute_instance_id"),
    )


def _recovery(element: ElementTree.Element) -> str:
    """gpu_recovery_action of driver 565 and later, which older ones say in two fields."""
    asked = _text(element, "gpu_recovery_action")
    if not asked and _switch(element, "gpu_reset_status/reset_required"):
        asked = "Reset"
    if not asked and _switch(element, "gpu_reset_status/drain_and_reset_recommended"):
        asked = "Drain and Reset"
    return asked


def address(text: str) -> str:
    """A PCI address as sysfs writes it: nvidia-smi has domains of eight digits and capital letters."""
    found = re.fullmatch(r"(?:([0-9A-Fa-f]{4,8}):)?([0-9A-Fa-f]{2}):([0-9A-Fa-f]{2})(?:\.([0-7]))?", text.strip())
    if not found:
        return ""
    domain, bus, device, function = found.groups()
    return f"{int(domain or '0', 16):04x}:{bus}:{device}.{function or 0}".lower()


def known(text: str) -> str:
    """A value without brackets, empty where it only says that there is none."""
    word = text.strip()
    if word.startswith("[") and word.endswith("]"):
        word = word[1:-1]
    return "" if _UNTOLD.fullmatch(word) or word in (*LOST, UNKNOWN) else word


def _text(element: ElementTree.Element, path: str) -> str:
    return known(element.findtext(path) or "")


def _number(element: ElementTree.Element, path: str) -> float | None:
    found = re.match(r"-?\d+(?:\.\d+)?", _text(element, path))
    return float(found.group()) if found else None


def _first(element: ElementTree.Element, paths: t.Iterable[str]) -> float | None:
    return next((value for value in (_number(element, path) for path in paths) if value is not None), None)


def _count(element: ElementTree.Element, path: str) -> int | None:
    value = _number(element, path)
    return None if value is None else int(value)


def _bytes(element: ElementTree.Element, path: str) -> int | None:
    value = _number(element, path)
    return None if value is None else int(value) << 20  # nvidia-smi counts in MiB


def _switch(element: ElementTree.Element, path: str) -> bool | None:
    return {"Enabled": True, "Yes": True, "Disabled": False, "No": False}.get(_text(element, path))


def _errors(element: ElementTree.Element, path: str, kind: str) -> int | None:
    """The sum over kinds of memory; Turing's cards have single_bit and double_bit with a total."""
    old = {"_correctable": "single_bit", "_uncorrectable": "double_bit"}[kind]
    if element.find(f"{path}/{old}") is not None:
        return _count(element, f"{path}/{old}/total")
    part = element.find(path)
    found = [_count(part, leaf.tag) for leaf in part if kind in leaf.tag] if part is not None else []
    told = [count for count in found if count is not None]
    return sum(told) if told else None


def parse_query(text: str) -> list[dict[str, t.Any]]:
    """The answer to `QUERY` in CSV: memory in bytes; a field that is `[N/A]` is 0 or empty."""
    found = []
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(row) == len(QUERY) and row[0].strip().isdigit():
            index, uuid, name, memory, capability, driver = map(known, row)
            found.append(
                {
                    "index": int(index),
                    "uuid": uuid,
                    "name": name,
                    "memory": int(_float(memory) * 2**20),
                    "compute_capability": _float(capability),
                    "driver": driver,
                }
            )
    return found


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


_LISTED = re.compile(r"\s*(?:GPU\s+(\d+):.*\(UUID: ([^)\s]+)\)|MIG\s+(\S+)\s+Device\s+(\d+): \(UUID: ([^)\s]+)\))")


def parse_list(text: str) -> dict[str, list[Slice]]:
    """The slices that `-L` lists, by the UUID of their GPU. The XML form has their sizes and not their UUIDs."""
    found: dict[str, list[Slice]] = {}
    gpu = ""
    for match in filter(None, map(_LISTED.match, text.splitlines())):
        _index, uuid, profile, device, slice_uuid = match.groups()
        if uuid:
            gpu = uuid
        elif gpu:
            found.setdefault(gpu, []).append(Slice(int(device), profile=profile, uuid=slice_uuid))
    return found


def with_uuids(slices: t.Sequence[Slice], listed: t.Sequence[Slice]) -> list[Slice]:
    """Sizes of the one form and names of the other, by the number of the slice."""
    names = {one.index: one for one in listed}
    whole = [
        replace(one, uuid=one.uuid or names[one.index].uuid, profile=names[one.index].profile)
        if one.index in names
        else one
        for one in slices
    ]
    return whole + [one for one in listed if one.index not in {other.index for other in slices}]


def parse_links(text: str) -> list[Peer]:
    """The pairs of GPUs in the table of `topo -m`, each once."""
    rows = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in text.splitlines()]
    head = next((re.findall(r"\bGPU(\d+)\b", row) for row in rows if re.match(r"\s*GPU0\b.*GPU1\b", row)), [])
    found = []
    for row in rows:
        words = row.split()
        if not words or not re.fullmatch(r"GPU\d+", words[0]) or "X" not in words:
            continue
        one = int(words[0][3:])
        ways = dict(zip((int(number) for number in head), words[1:]))
        found += [Peer(one, two, way) for two, way in ways.items() if two > one]
    return found
