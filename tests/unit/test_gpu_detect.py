# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The GPUs of a host, with stand-ins for its tools, its bus and its kernel's log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import typing as t
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._gpu import describe, detect, tool
from ansible_collections.llmops.finetune.plugins.module_utils._gpu.card import Other, Peer

from . import smi_outputs as outputs
from .processes import lives, until

MIB = 2**20


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty bus, and tools alone in a folder of their own."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(tool, "PLACES", "")
    outputs.tool(tmp_path, {"is-active": "inactive\n"}, "systemctl", code=3)
    place = tmp_path / "bus"
    (place / "0000:00:00.0").mkdir(parents=True)
    return place


def look(bus: Path, seconds: float = 20, log: str = "") -> detect.Report:
    path = bus.parent / "kmsg"
    path.write_text(log, encoding="utf-8")
    return detect.look(seconds, bus, str(path))


def told(report: detect.Report) -> str:
    return "\n".join(problem.what for problem in report.problems)


def test_a_host_without_gpus(bus: Path) -> None:
    report = look(bus)
    assert (report.source, report.gpus, report.devices(), report.problems) == ("", [], [], [])
    assert describe.lines(report, {}) == ["no GPU"]


def test_eight_gpus_behind_switches(bus: Path, tmp_path: Path) -> None:
    outputs.host(tmp_path, *[outputs.H100] * 8, ways=outputs.all_by("NV18", 8))
    outputs.tool(tmp_path, {"is-active": "active\n"}, "systemctl")
    for number in range(8):
        outputs.on_bus(bus, number, "2330")
    for number in range(8, 12):
        outputs.on_bus(bus, number, "22a3", kind="0680")
    report = look(bus)
    assert (report.source, report.driver, report.cuda, report.switches) == ("nvidia-smi", "580.105.08", "13.0", 4)
    assert (report.manager, report.log, report.problems) == ("active", True, [])
    assert [(gpu.compute_capability, gpu.numa_node) for gpu in report.gpus] == [(9.0, 1)] * 8
    assert len(report.peers) == 28 and report.peers[0] == Peer(0, 1, "NV18")
    assert [one["uuid"] for one in report.devices()] == [outputs.uuid(number) for number in range(8)]
    assert report.devices()[0] == {
        "index": 0,
        "uuid": outputs.uuid(0),
        "name": "NVIDIA H100 80GB HBM3",
        "memory": 81559 * MIB,
        "memory_free": (81559 - 551 - 1) * MIB,
        "compute_capability": 9.0,
        "driver": "580.105.08",
    }
    lines = describe.lines(report, {outputs.uuid(1): {"run": "demo-1"}})
    assert lines[0] == "driver 580.105.08, CUDA up to 13.0"
    assert lines[1] == "GPU 0  NVIDIA H100 80GB HBM3, 79.6 GiB, 79.1 free, compute capability 9, NV18 to 7 others"
    assert lines[2].endswith(", held by run demo-1")


def test_unequal_gpus_and_slices_are_devices_of_their_own(bus: Path, tmp_path: Path) -> None:
    outputs.host(tmp_path, outputs.SLICED, outputs.T4)
    report = look(bus)
    assert [(one["index"], one.get("slice"), one["uuid"], one["name"], one["memory"]) for one in report.devices()] == [
        (0, 0, outputs.slice_uuid(0, 0), "NVIDIA A100-SXM4-40GB MIG 3g.20gb", 19968 * MIB),
        (0, 1, outputs.slice_uuid(0, 1), "NVIDIA A100-SXM4-40GB MIG 2g.10gb", 9856 * MIB),
        (1, None, outputs.uuid(1), "Tesla T4", 15360 * MIB),
    ]
    assert [one["compute_capability"] for one in report.devices()] == [8.0, 8.0, 7.5]
    assert "  0:1  MIG 2g.10gb, 9.6 GiB, 9.6 free" in describe.lines(report, {})


def test_mig_without_slices_is_a_fact_with_a_remedy(bus: Path, tmp_path: Path) -> None:
    outputs.host(tmp_path, replace(outputs.SLICED, slices=()), outputs.T4)
    report = look(bus)
    assert [one["index"] for one in report.devices()] == [1]
    assert "GPU 0 (NVIDIA A100-SXM4-40GB) is in MIG mode and has no slices" in told(report)
    assert "nvidia-smi mig -cgi" in report.problems[0].change


def test_an_old_driver_does_not_tell_the_capability(bus: Path, tmp_path: Path) -> None:
    outputs.tool(tmp_path, {"-q": outputs.xml(outputs.A10G, driver="470.1"), "topo": ""})
    assert look(bus).devices()[0]["compute_capability"] == 8.6, "from the catalogue"
    strange = replace(outputs.A10G, name="NVIDIA Something New")
    outputs.tool(tmp_path, {"-q": outputs.xml(strange)})
    assert look(bus).devices()[0]["compute_capability"] == 0.0
    outputs.host(tmp_path, strange)
    assert look(bus).devices()[0]["compute_capability"] == 8.6, "from nvidia-smi"


@pytest.mark.parametrize(
    ("said", "code", "what", "change"),
    [
        (outputs.BROKEN, 9, "its kernel module is not loaded", "modprobe nvidia"),
        (outputs.MISMATCH, 18, "was updated while its old kernel module is loaded", "reboot"),
        ("Failed to initialize NVML: Insufficient Permissions\n", 4, "may not open the GPUs", "/dev/nvidia0"),
        ("Failed to initialize NVML: Unknown Error\n", 255, "refuses this process", "container"),
        ("No devices were found\n", 6, "finds no GPU that it can drive", "open kernel modules"),
        (
            "The GPU has fallen off the bus or has otherwise become inaccessible\n",
            15,
            "fallen off the bus",
            "power the host",
        ),
        ("NVIDIA-SMI couldn't find libnvidia-ml.so library in your system.\n", 12, "without the library", "libraries"),
        ("Something else\n", 3, "nvidia-smi failed: Something else", "run nvidia-smi on the host"),
        ("", 0, "nvidia-smi lists no GPU", "nvidia-smi -L"),
    ],
)
def test_a_broken_driver_is_a_fact_with_a_remedy(
    bus: Path, tmp_path: Path, said: str, code: int, what: str, change: str
) -> None:
    outputs.on_bus(bus, 0, "2237")
    outputs.tool(tmp_path, {"*": said}, code=code)
    report = look(bus)
    assert (report.source, report.gpus, report.devices()) == ("pci", [], [])
    (problem,) = report.problems
    assert what in problem.what and change in problem.change and problem.blocks


def test_a_driver_without_a_card_is_no_problem(bus: Path, tmp_path: Path) -> None:
    """An image with a driver, on a machine without GPUs."""
    outputs.tool(tmp_path, {"*": outputs.BROKEN}, code=9)
    assert look(bus).problems == []
    (bus / "0000:00:00.0").rmdir()
    assert "not loaded" in told(look(bus)), "where the bus tells of nothing at all, nvidia-smi is believed"


@pytest.mark.parametrize(
    ("driver", "device", "what", "change"),
    [
        ("", "26b9", "NVIDIA L40S is there, and no driver has it", "install NVIDIA's driver"),
        ("nouveau", "1eb8", "Tesla T4 is held by nouveau", "puts nouveau aside"),
        ("vfio-pci", "2330", "kept for a virtual machine", "train in that machine"),
        ("nvidia", "ffff", "NVIDIA GPU 10de:ffff is held by NVIDIA's driver, and nvidia-smi is not", "nvidia-utils"),
        ("pci-stub", "2330", "held by driver pci-stub", "give it to NVIDIA's driver"),
    ],
)
def test_a_gpu_without_a_driver_is_a_fact(bus: Path, driver: str, device: str, what: str, change: str) -> None:
    outputs.on_bus(bus, 0, device, driver)
    report = look(bus)
    (problem,) = report.problems
    assert report.source == "pci" and what in problem.what and change in problem.change
    assert problem.device == "0000:10:00.0"


def test_several_gpus_without_a_driver_are_one_sentence(bus: Path) -> None:
    for number in range(4):
        outputs.on_bus(bus, number, "1eb8", "")
    outputs.on_bus(bus, 5, "1111", "bochs", vendor="1234", kind="0300")
    assert told(look(bus)) == "4 × Tesla T4 are there, and no driver has it."


def test_a_gpu_of_a_virtual_machine_beside_ours(bus: Path, tmp_path: Path) -> None:
    outputs.host(tmp_path, outputs.H100)
    outputs.on_bus(bus, 0, "2330")
    outputs.on_bus(bus, 1, "2330", "vfio-pci")
    assert told(look(bus)) == "NVIDIA H100 80GB HBM3 is kept for a virtual machine (vfio-pci)."


@pytest.mark.parametrize(
    "script",
    [
        "sleep 600 & echo $! > {0}/child; wait",
        "setsid sleep 600 & echo $! > {0}/child; wait",
        "(sleep 600 & echo $! > {0}/child); sleep 600",
    ],
)
def test_a_hung_tool_is_ended_with_its_children(bus: Path, tmp_path: Path, script: str) -> None:
    """Also one in a session of its own, and one whose parent has ended."""
    outputs.on_bus(bus, 0, "2237")
    outputs.tool(tmp_path, {"-q": ""}, rest=script.format(tmp_path))
    begun = time.monotonic()
    report = look(bus, seconds=0.5)
    assert time.monotonic() - begun < 5
    assert told(report) == "nvidia-smi gave no answer in 0.5 s and was ended." and report.devices() == []
    child = int((tmp_path / "child").read_text())
    until(lambda: not lives(child))  # what is killed is gone when the kernel comes to it


def test_a_question_that_hangs_costs_its_answer_alone(bus: Path, tmp_path: Path) -> None:
    outputs.host(tmp_path, outputs.T4, outputs.T4)
    script = (tmp_path / "nvidia-smi").read_text(encoding="utf-8")
    (tmp_path / "nvidia-smi").write_text(script.replace("topo)", "topo) exec sleep 600;"), encoding="utf-8")
    report = look(bus, seconds=2)
    assert [one["compute_capability"] for one in report.devices()] == [7.5, 7.5] and report.peers == []
    assert told(report) == "topo -m of nvidia-smi gave no answer and was ended."


def test_a_tool_that_cannot_be_ended_is_left_behind(bus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs.tool(tmp_path, {"-q": ""}, rest="exec sleep 600")
    left: list[int] = []

    def end(process: subprocess.Popen[bytes]) -> list[int]:
        left.append(process.pid)
        return left

    monkeypatch.setattr(tool, "_end", end)
    begun = time.monotonic()
    report = look(bus, seconds=0.3)
    os.kill(left[0], signal.SIGKILL)
    assert time.monotonic() - begun < 3, "it is not waited for"
    assert "cannot be ended: process " in told(report) and "waits in the kernel" in told(report)


def test_a_gpu_off_the_bus_is_told_beside_the_others(bus: Path, tmp_path: Path) -> None:
    for number in range(3):
        outputs.on_bus(bus, number, "2330")
    noise = "Unable to determine the device handle for GPU0000:12:00.0: Unknown Error\n"
    outputs.tool(tmp_path, {"-q": noise + outputs.xml(outputs.H100, outputs.H100), "topo": "", "--query-gpu=*": ""})
    report = look(bus)
    assert len(report.devices()) == 2
    (problem,) = report.problems
    assert "The GPU at 0000:12:00.0 is on the bus, and its driver does not list it: Unable" in problem.what
    assert problem.device == "0000:12:00.0" and problem.blocks


def test_a_gpu_that_does_not_answer_is_not_given_to_runs(bus: Path, tmp_path: Path) -> None:
    lost = replace(outputs.H100, changes={"<gpu_temp>45 C": "<gpu_temp>GPU is lost"})
    outputs.host(tmp_path, lost, outputs.H100)
    report = look(bus)
    assert [one["index"] for one in report.devices()] == [1]
    assert "GPU 0 (NVIDIA H100 80GB HBM3) does not answer: GPU is lost" in told(report)


def test_the_kernels_log_tells_of_errors(bus: Path, tmp_path: Path) -> None:
    outputs.host(tmp_path, outputs.H100, outputs.H100)
    log = (
        "6,1,2,-;NVRM: loading NVIDIA UNIX x86_64 Kernel Module  580.105.08\n"
        "4,2,3,-;NVRM: Xid (PCI:0000:11:00): 31, pid=7, name=python, MMU Fault\n"
        "4,3,4,-;NVRM: Xid (PCI:0000:11:00): 48, pid='<unknown>', An uncorrectable double bit error\n"
        "4,3,4,-;NVRM: Xid (PCI:0000:11:00): 48, pid='<unknown>', An uncorrectable double bit error\n"
    )
    report = look(bus, log=log)
    assert [gpu.xids for gpu in report.gpus] == [[], [31, 48, 48]]
    (problem,) = report.problems
    assert "has Xid 48 in the kernel's log: memory had an error" in problem.what and not problem.blocks
    assert detect.look(5, bus, str(tmp_path / "nowhere")).log is False


def test_an_xml_form_that_cannot_be_read(bus: Path, tmp_path: Path) -> None:
    outputs.tool(tmp_path, {"-q": "<xml>no", "--query-gpu=*": outputs.query(outputs.L4, outputs.T4)})
    report = look(bus)
    assert (report.source, report.driver) == ("query", "580.105.08")
    assert [(one["uuid"], one["memory"]) for one in report.devices()] == [
        (outputs.uuid(0), 23034 * MIB),
        (outputs.uuid(1), 15360 * MIB),
    ]
    assert "could not be read" in told(report)


NVML = """
class NVMLError(Exception): pass
def nvmlInit(): pass
def nvmlSystemGetCudaDriverVersion(): return 13000
def nvmlSystemGetDriverVersion(): return b"580.1"
def nvmlDeviceGetCount(): return 3
def nvmlDeviceGetHandleByIndex(index):
    if index == 2: raise NVMLError("GPU is lost")
    return index
def nvmlDeviceGetName(handle): return ["NVIDIA L4", "NVIDIA H100 80GB HBM3"][handle]
def nvmlDeviceGetUUID(handle): return "MIG-a" if handle == "part" else "GPU-%d" % handle
def nvmlDeviceGetCudaComputeCapability(handle): return [(8, 9), (9, 0)][handle]
def nvmlDeviceGetMigMode(handle):
    if handle == 0: raise NVMLError("Not Supported")
    return [1, 1]
def nvmlDeviceGetMaxMigDeviceCount(handle): return 2
def nvmlDeviceGetMigDeviceHandleByIndex(handle, number):
    if number == 1: raise NVMLError("Not Found")
    return "part"
class Info: total, free, used, busId = 10 << 30, 9 << 30, 1 << 30, "00000000:3B:00.0"
def nvmlDeviceGetMemoryInfo(handle): return Info
def nvmlDeviceGetPciInfo(handle): return Info
"""


def test_nvml_stands_in_for_nvidia_smi(bus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pynvml.py").write_text(NVML, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    report = look(bus)
    assert (report.source, report.driver, report.cuda) == ("nvml", "580.1", "13.0")
    assert [(one["uuid"], one["name"], one["memory"], one["compute_capability"]) for one in report.devices()] == [
        ("GPU-0", "NVIDIA L4", 10 << 30, 8.9),
        ("MIG-a", "NVIDIA H100 80GB HBM3 MIG", 10 << 30, 9.0),
    ]
    assert report.gpus[0].pci == "0000:3b:00.0" and "GPU 2 does not answer: GPU is lost" in told(report)


MI300X = [Other("amd", 0, "AMD Instinct MI300X", 206141652992, "0000:c1:00.0")]
MI300X += [replace(MI300X[0], index=1, pci="0000:c6:00.0")]
ASCEND = [Other("huawei", 0, "Ascend 910B3", 65536 * MIB, "0000:c1:00.0")]
ASCEND += [replace(ASCEND[0], index=1, pci="0000:c2:00.0")]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("rocm-smi", outputs.ROCM, MI300X),
        ("amd-smi", outputs.AMD_SMI, [Other("amd", 0, "AMD Instinct MI300X", 196592 * MIB, "0000:83:00.0")]),
        ("amd-smi", '{"gpu_data": [{"gpu": 1, "vram": {"size": "16 GB"}}, 7]}', [Other("amd", 1, "AMD GPU", 16 << 30)]),
        ("amd-smi", "[{]", []),
        ("npu-smi", outputs.NPU, ASCEND),
        ("npu-smi", "no device\n", []),
    ],
)
def test_accelerators_of_other_makers_are_told(
    bus: Path, tmp_path: Path, name: str, text: str, expected: list[Other]
) -> None:
    outputs.tool(tmp_path, {"*": text}, name)
    report = look(bus)
    assert report.others == expected
    assert report.devices() == [], "no run has them"
    assert bool(expected) == ("Runs train on NVIDIA's GPUs" in told(report))


def test_other_makers_cards_without_their_tools(bus: Path, tmp_path: Path) -> None:
    outputs.on_bus(bus, 0, "74a1", "", vendor="1002", kind="1200")
    outputs.on_bus(bus, 1, "d802", "", vendor="19e5", kind="1200")
    outputs.on_bus(bus, 2, "1638", "amdgpu", vendor="1002", kind="0300")
    outputs.tool(tmp_path, {"*": ""}, "npu-smi", rest="exec sleep 600")
    report = look(bus, seconds=0.3)
    assert [(one.vendor, one.name, one.pci) for one in report.others] == [
        ("amd", "AMD accelerator 1002:74a1", "0000:10:00.0"),
        ("huawei", "Huawei accelerator 19e5:d802", "0000:11:00.0"),
    ]
    assert "npu-smi gave no answer in 0.3 s" in told(report)


def test_answers_of_tools() -> None:
    answers = tool.ask({"a": ["/bin/sh", "-c", "echo out; echo err >&2; exit 3"], "b": ["/no/such/tool"]}, 5)
    assert (answers["a"].code, answers["a"].said, answers["a"].complained) == (3, "out\n", "err\n")
    assert answers["b"].code == 127 and "No such file" in answers["b"].text


def test_tools_run_beside_each_other() -> None:
    begun = time.monotonic()
    answers: dict[str, t.Any] = tool.ask({str(number): ["sleep", "0.4"] for number in range(5)}, 5)
    assert time.monotonic() - begun < 1.5 and [answer.code for answer in answers.values()] == [0] * 5
