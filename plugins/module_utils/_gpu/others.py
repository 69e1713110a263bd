# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Accelerators of other makers, as their tools tell them: AMD's rocm-smi and amd-smi, Huawei's npu-smi. Pure."""

from __future__ import annotations

import json
import re
import typing as t

from .card import Other

COMMANDS: dict[str, tuple[str, ...]] = {
    "rocm-smi": ("--showproductname", "--showmeminfo", "vram", "--showbus", "--json"),
    "amd-smi": ("static", "--asic", "--vram", "--bus", "--json"),
    "npu-smi": ("info",),
}
"""How each tool is asked. amd-smi follows rocm-smi: the second is asked where the first is not."""

NOTE = "Runs train on NVIDIA's GPUs and on CPUs; accelerators of AMD and Huawei are told of, and not used."

_UNITS = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "MIB": 1 << 20, "GIB": 1 << 30}


def parse(tool: str, text: str) -> list[Other]:
    """What a tool of `COMMANDS` lists; nothing where its answer is none."""
    return {"rocm-smi": _rocm, "amd-smi": _amd, "npu-smi": _ascend}[tool](text)


def _rocm(text: str) -> list[Other]:
    told = _json(text)
    if not isinstance(told, dict):
        return []
    found = []
    for card, raw in told.items():
        number = re.fullmatch(r"card(\d+)", card)
        if not number or not isinstance(raw, dict):
            continue
        values = {str(key).lower(): str(value).strip() for key, value in raw.items()}
        name = next(
            (values[key] for key in ("card series", "product name", "card model") if values.get(key)), "AMD GPU"
        )
        total = values.get("vram total memory (b)", "")
        memory = int(total) if total.isdigit() else None
        found.append(Other("amd", int(number.group(1)), name, memory, values.get("pci bus", "").lower()))
    return sorted(found, key=lambda one: one.index)


def _amd(text: str) -> list[Other]:
    told = _json(text)
    entries = told.get("gpu_data") if isinstance(told, dict) else told
    found = []
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("gpu"), int):
            asic, vram, bus = (_part(entry, key) for key in ("asic", "vram", "bus"))
            name = str(asic.get("market_name") or "AMD GPU")
            found.append(Other("amd", entry["gpu"], name, _size(vram.get("size")), str(bus.get("bdf") or "").lower()))
    return found


def _part(entry: dict[str, t.Any], key: str) -> dict[str, t.Any]:
    part = entry.get(key)
    return part if isinstance(part, dict) else {}


def _size(value: t.Any) -> int | None:
    """`{"value": 196592, "unit": "MB"}`, in which MB are MiB; older tools write a number of MB."""
    if isinstance(value, dict):
        number, unit = value.get("value"), str(value.get("unit", "MB")).upper()
        return number * _UNITS.get(unit, 1 << 20) if isinstance(number, int) else None
    found = re.match(r"(\d+)\s*([A-Za-z]*)", str(value))
    return int(found.group(1)) * _UNITS.get(found.group(2).upper() or "MB", 1 << 20) if found else None


def _json(text: str) -> t.Any:
    """The JSON in an answer, before which warnings may stand."""
    start = re.search(r"^[\[{]", text, re.M)
    try:
        return json.JSONDecoder().raw_decode(text[start.start() :])[0] if start else None
    except ValueError:
        return None


_NPU = re.compile(r"\|\s*(\d+)\s+(\S+)\s*\|\s*[A-Za-z]+\s*\|\s*[\d.NA-]")
_CHIP = re.compile(r"\|\s*(\d+)(?:\s+\d+)?\s*\|\s*([0-9A-Fa-f:.]+|NA)\s*\|(.*)\|")


def _ascend(text: str) -> list[Other]:
    """The table has two rows for each chip: its card, then memory. The last pair of numbers is the HBM, in MB."""
    found: list[Other] = []
    name = ""
    for line in text.splitlines():
        if card := _NPU.match(line):
            name = card.group(2)
        elif name and (chip := _CHIP.match(line)):
            sizes = re.findall(r"\d+\s*/\s*(\d+)", chip.group(3))
            memory = int(sizes[-1]) << 20 if sizes else None
            pci = "" if chip.group(2) == "NA" else chip.group(2).lower()
            found.append(Other("huawei", len(found), f"Ascend {name}", memory, pci))
            name = ""
    return found
