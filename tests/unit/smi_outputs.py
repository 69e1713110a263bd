# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What nvidia-smi and its like say, written after published outputs of theirs and cut down to what is read.

A card is a row of facts; the XML around them has the names and the units of drivers 535 (schema v12) to 595 (v13).
"""

from __future__ import annotations

import stat
import typing as t
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Card:
    name: str
    architecture: str
    device: str
    total: int
    reserved: int
    watts: int
    capability: str
    mig: str = "N/A"
    fabric: str = "N/A"
    slices: tuple[tuple[str, int], ...] = ()
    changes: dict[str, str] = field(default_factory=dict)
    """Text to replace in the XML."""


T4 = Card("Tesla T4", "Turing", "1EB8", 15360, 447, 70, "7.5")
A10G = Card("NVIDIA A10G", "Ampere", "2237", 23028, 298, 300, "8.6")
L4 = Card("NVIDIA L4", "Ada Lovelace", "27B8", 23034, 434, 72, "8.9")
L40S = Card("NVIDIA L40S", "Ada Lovelace", "26B9", 46068, 597, 350, "8.9")
A100 = Card("NVIDIA A100-SXM4-80GB", "Ampere", "20B2", 81920, 869, 400, "8.0", mig="Disabled")
H100 = Card("NVIDIA H100 80GB HBM3", "Hopper", "2330", 81559, 551, 700, "9.0", mig="Disabled", fabric="Completed")
H200 = Card("NVIDIA H200", "Hopper", "2335", 143771, 615, 700, "9.0", mig="Disabled", fabric="Completed")
B200 = Card("NVIDIA B200", "Blackwell", "2901", 183359, 710, 1000, "10.0", mig="Disabled", fabric="Completed")
RTX4090 = Card("NVIDIA GeForce RTX 4090", "Ada Lovelace", "2684", 24564, 356, 450, "8.9")
CARDS = (T4, A10G, L4, L40S, A100, H100, H200, B200, RTX4090)
GB10 = Card("NVIDIA GB10", "Blackwell", "2E12", 0, 0, 140, "12.1")
SLICED = Card(
    "NVIDIA A100-SXM4-40GB",
    "Ampere",
    "20B0",
    40960,
    634,
    400,
    "8.0",
    mig="Enabled",
    slices=(("3g.20gb", 19968), ("2g.10gb", 9856)),
)


def uuid(number: int) -> str:
    return f"GPU-00000000-0000-4000-8000-{number:012d}"


def slice_uuid(number: int, part: int) -> str:
    return f"MIG-00000000-0000-5000-8000-{number:06d}{part:06d}"


def bus(number: int) -> str:
    return f"{0x10 + number:02X}:00.0"


def _mib(size: int) -> str:
    return f"{size} MiB" if size else "N/A"


def _slices(card: Card) -> str:
    if card.mig != "Enabled" or not card.slices:
        return "\n\t\t\tNone\n\t\t"
    return "".join(
        f"""
      <mig_device>
        <index>{number}</index>
        <gpu_instance_id>{number + 1}</gpu_instance_id>
        <compute_instance_id>0</compute_instance_id>
        <fb_memory_usage>
          <total>{size} MiB</total>
          <reserved>0 MiB</reserved>
          <used>12 MiB</used>
          <free>{size - 13} MiB</free>
        </fb_memory_usage>
      </mig_device>"""
        for number, (_profile, size) in enumerate(card.slices)
    )


def _errors(card: Card) -> str:
    if card.architecture == "Turing":
        one = "<single_bit><total>0</total></single_bit><double_bit><total>0</total></double_bit>"
        return f"<volatile>{one}</volatile><aggregate>{one}</aggregate>"
    kinds = ["sram_correctable", "sram_uncorrectable_parity", "sram_uncorrectable_secded"]
    kinds += ["dram_correctable", "dram_uncorrectable"]
    one = "".join(f"<{kind}>0</{kind}>" for kind in kinds)
    return (
        f"<volatile>{one}</volatile><aggregate>{one}<sram_threshold_exceeded>No</sram_threshold_exceeded></aggregate>"
    )


def gpu(card: Card, number: int, processes: str = "") -> str:
    ecc = "N/A" if "GeForce" in card.name else "Enabled"
    text = f"""	<gpu id="00000000:{bus(number)}">
    <product_name>{card.name}</product_name>
    <product_architecture>{card.architecture}</product_architecture>
    <mig_mode>
      <current_mig>{card.mig}</current_mig>
      <pending_mig>{card.mig}</pending_mig>
    </mig_mode>
    <mig_devices>{_slices(card)}</mig_devices>
    <uuid>{uuid(number)}</uuid>
    <minor_number>{number}</minor_number>
    <gpu_recovery_action>None</gpu_recovery_action>
    <pci>
      <pci_device_id>{card.device}10DE</pci_device_id>
      <pci_bus_id>00000000:{bus(number)}</pci_bus_id>
      <pci_gpu_link_info>
        <pcie_gen>
          <max_link_gen>4</max_link_gen>
          <current_link_gen>1</current_link_gen>
        </pcie_gen>
        <link_widths>
          <max_link_width>16x</max_link_width>
          <current_link_width>8x</current_link_width>
        </link_widths>
      </pci_gpu_link_info>
    </pci>
    <fan_speed>N/A</fan_speed>
    <fb_memory_usage>
      <total>{_mib(card.total)}</total>
      <reserved>{_mib(card.reserved)}</reserved>
      <used>{_mib(card.total and 1)}</used>
      <free>{_mib(card.total and card.total - card.reserved - 1)}</free>
    </fb_memory_usage>
    <bar1_memory_usage>
      <total>131072 MiB</total>
    </bar1_memory_usage>
    <compute_mode>Default</compute_mode>
    <ecc_mode>
      <current_ecc>{ecc}</current_ecc>
      <pending_ecc>{ecc}</pending_ecc>
    </ecc_mode>
    <ecc_errors>{_errors(card)}</ecc_errors>
    <remapped_rows>
      <remapped_row_corr>0</remapped_row_corr>
      <remapped_row_unc>0</remapped_row_unc>
      <remapped_row_pending>No</remapped_row_pending>
      <remapped_row_failure>No</remapped_row_failure>
    </remapped_rows>
    <temperature>
      <gpu_temp>45 C</gpu_temp>
      <gpu_temp_tlimit>39 C</gpu_temp_tlimit>
      <gpu_temp_max_tlimit_threshold>-5 C</gpu_temp_max_tlimit_threshold>
    </temperature>
    <gpu_power_readings>
      <power_state>P0</power_state>
      <average_power_draw>N/A</average_power_draw>
      <instant_power_draw>27.22 W</instant_power_draw>
      <current_power_limit>{card.watts}.00 W</current_power_limit>
      <default_power_limit>{card.watts}.00 W</default_power_limit>
      <max_power_limit>{card.watts}.00 W</max_power_limit>
    </gpu_power_readings>
    <clocks>
      <sm_clock>Requested functionality has been deprecated</sm_clock>
    </clocks>
    <fabric>
      <state>{card.fabric}</state>
      <status>{"Success" if card.fabric == "Completed" else "N/A"}</status>
    </fabric>
    <processes>{processes}
    </processes>
  </gpu>
"""
    for old, new in card.changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def process(pid: int, name: str, memory: str = "9000 MiB") -> str:
    return f"""
      <process_info>
        <gpu_instance_id>N/A</gpu_instance_id>
        <pid>{pid}</pid>
        <type>C</type>
        <process_name>{name}</process_name>
        <used_memory>{memory}</used_memory>
      </process_info>"""


def xml(*cards: Card, driver: str = "580.105.08", cuda: str = "13.0") -> str:
    """`nvidia-smi -q -x`."""
    return f"""<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log>
  <timestamp>Wed Jan  7 10:00:00 2026</timestamp>
  <driver_version>{driver}</driver_version>
  <cuda_version>{cuda}</cuda_version>
  <attached_gpus>{len(cards)}</attached_gpus>
{"".join(gpu(card, number) for number, card in enumerate(cards))}
</nvidia_smi_log>
"""


def query(*cards: Card, driver: str = "580.105.08") -> str:
    """`nvidia-smi --query-gpu=…`, with the fields of `smi.QUERY`."""
    return "".join(
        f"{number}, {uuid(number)}, {card.name}, {card.total or '[N/A]'}, {card.capability}, {driver}\n"
        for number, card in enumerate(cards)
    )


def listed(*cards: Card) -> str:
    """`nvidia-smi -L`."""
    lines = []
    for number, card in enumerate(cards):
        lines.append(f"GPU {number}: {card.name} (UUID: {uuid(number)})")
        for part, (profile, _size) in enumerate(card.slices if card.mig == "Enabled" else ()):
            lines.append(f"  MIG {profile:<11} Device {part:>2}: (UUID: {slice_uuid(number, part)})")
    return "\n".join(lines) + "\n"


def links(*rows: t.Sequence[str], nics: int = 0) -> str:
    """`nvidia-smi topo -m` for a matrix of ways; X is written as the tool does."""
    count = len(rows)
    heads = [f"GPU{number}" for number in range(count)] + [f"NIC{number}" for number in range(nics)]
    lines = ["\x1b[4m\t" + "\t".join([*heads, "CPU Affinity", "NUMA Affinity", "GPU NUMA ID"]) + "\x1b[0m"]
    for number, row in enumerate(rows):
        cells = [" X " if way == "X" else way for way in row] + ["PIX"] * nics
        lines.append(f"GPU{number}\t" + "\t".join([*cells, "0-47", "0", "\tN/A"]))
    for number in range(nics):
        cells = ["PIX"] * count + [" X " if other == number else "NODE" for other in range(nics)]
        lines.append(f"NIC{number}\t" + "\t".join(cells))
    legend = ["", "Legend:", "", "  X    = Self", "  NV#  = Connection traversing a bonded set of # NVLinks", ""]
    return "\n".join([*lines, *legend])


def all_by(way: str, count: int) -> list[list[str]]:
    return [["X" if one == two else way for two in range(count)] for one in range(count)]


def tool(folder: Path, answers: t.Mapping[str, str], name: str = "nvidia-smi", code: int = 0, rest: str = "") -> Path:
    """A stand-in that prints what is written for its first argument; `rest` are lines of sh before that."""
    cases = []
    for number, (argument, text) in enumerate(answers.items()):
        said = folder / f"{name}.{number}"
        said.write_text(text, encoding="utf-8")
        cases.append(f'{argument}) cat "{said}"; exit {code} ;;')
    path = folder / name
    script = "\n".join(["#!/bin/sh", rest, 'case "$1" in', *cases, "esac", f"exit {code}", ""])
    path.write_text(script, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def host(folder: Path, *cards: Card, ways: t.Sequence[t.Sequence[str]] = ()) -> Path:
    """A stand-in for nvidia-smi of a host with these cards."""
    answers = {
        "-q": xml(*cards),
        "--query-gpu=*": query(*cards),
        "-L": listed(*cards),
        "topo": links(*(ways or all_by("SYS", len(cards)))),
    }
    return tool(folder, answers)


def on_bus(
    place: Path, number: int, device: str, driver: str = "nvidia", vendor: str = "10de", kind: str = "0302"
) -> Path:
    """A device as sysfs has it."""
    folder = place / f"0000:{bus(number).lower()}"
    folder.mkdir(parents=True)
    values = {"vendor": f"0x{vendor}", "device": f"0x{device.lower()}", "class": f"0x{kind}00", "numa_node": "1"}
    for name, value in values.items():
        (folder / name).write_text(f"{value}\n", encoding="ascii")
    if driver:
        drivers = place.parent / "drivers" / driver
        drivers.mkdir(parents=True, exist_ok=True)
        (folder / "driver").symlink_to(drivers)
    return folder


BROKEN = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA "
    "driver is installed and running.\n\n"
)
MISMATCH = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.173\n"

ROCM = """WARNING: AMD GPU device(s) is/are in a low-power state. Check power control/runtime_status

{"card1": {"Card Series": "AMD Instinct MI300X", "Card Model": "0x74a1", "PCI Bus": "0000:C6:00.0",
 "VRAM Total Memory (B)": "206141652992", "VRAM Total Used Memory (B)": "298188800"},
 "card0": {"Card series": "AMD Instinct MI300X", "PCI Bus": "0000:C1:00.0", "VRAM Total Memory (B)": "206141652992"},
 "system": {"Driver version": "6.10.5"}}
"""
AMD_SMI = """[{"gpu": 0, "asic": {"market_name": "AMD Instinct MI300X", "vendor_id": "0x1002", "device_id": "0x74a1"},
 "bus": {"bdf": "0000:83:00.0"}, "vram": {"type": "HBM3", "size": {"value": 196592, "unit": "MB"}}}]
"""
NPU = """
+------------------------------------------------------------------------------------------------+
| npu-smi 24.1.0                   Version: 24.1.0                                               |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 4     910B3               | OK            | 101.8       43                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0          3318 / 65536         |
+===========================+===============+====================================================+
| 5     910B3               | OK            | 92.0        39                0    / 0             |
| 0                         | 0000:C2:00.0  | 0           0    / 0          59356/ 65536         |
+===========================+===============+====================================================+
+---------------------------+---------------+----------------------------------------------------+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 5       0                 | 1712733       | python3                  | 48954                   |
+===========================+===============+====================================================+
"""
