# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A configuration in a process of its own, which has a time limit and is gone afterwards, whatever it did."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import typing as t
from pathlib import Path

from ansible_collections.llmops.finetune.plugins.module_utils._vram import hardware

from .cases import Case

CHECKOUT = Path(__file__).parents[2]
Found = dict[str, t.Any]
"""What trained.py wrote, and what the driver says of it."""


class Device(t.NamedTuple):
    """A GPU and what is free of it; without one the way is tried, and nothing is measured."""

    gpu: hardware.Gpu | None
    uuid: str = ""
    free: int = 0

    @property
    def tier(self) -> str:
        return "A" if self.gpu else "none"


def measure(case: Case, config: t.Mapping[str, t.Any], device: Device, python: str, limit: float, out: Path) -> Found:
    with tempfile.TemporaryDirectory(prefix="measure-") as name:
        folder = Path(name)
        asked, written = folder / "case.json", folder / "found.json"
        asked.write_text(json.dumps(question(case, config, device, out)), encoding="utf-8")
        before = _used(device)
        with open(folder / "said", "w+b") as said:
            child = subprocess.Popen(
                [python, "-m", "tests.vram.trained", str(asked), str(written)],
                cwd=CHECKOUT,
                env=environment(case, device, folder),
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                found = _wait(child, written, limit)
                if found is not None and device.gpu:
                    found["process"] = driver(_smi("compute-apps", "pid,used_memory", device), child.pid, before, found)
            finally:
                ran = _end(child)
            if found is None:
                found = {"outcome": f"over {limit:.0f} s" if ran else f"ended with {child.returncode}"}
            if found["outcome"] not in ("", "out of memory"):
                said.seek(0)
                print(said.read().decode(errors="replace")[-2000:], file=sys.stderr)
            return found


def question(case: Case, config: t.Mapping[str, t.Any], device: Device, out: Path) -> dict[str, t.Any]:
    half = "bfloat16" if device.gpu and device.gpu.bf16 else "float16" if device.gpu else "float32"
    return {
        "config": dict(config),
        "arguments": case.arguments,
        "accumulation": int(case.arguments["gradient_accumulation_steps"]),
        "padded": case.padded,
        "settles": case.settles,
        "steps": case.settles + case.steps,
        "dtype": half,
        "history": str(out.absolute().with_suffix(".history.pickle")) if case.history else "",
    }


def environment(case: Case, device: Device, folder: Path) -> dict[str, str]:
    own = {"HF_HOME": str(folder / "cache"), "TMPDIR": str(folder), "WANDB_MODE": "disabled"}
    own["CUDA_VISIBLE_DEVICES"] = device.uuid
    own["PYTORCH_CUDA_ALLOC_CONF"] = f"expandable_segments:{case.expandable}"
    return {**os.environ, **own}


def _wait(child: subprocess.Popen[bytes], written: Path, limit: float) -> Found | None:
    """What the child wrote; None where it ended without, or is over its time."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        if written.exists():
            return dict(json.loads(written.read_text(encoding="utf-8")))
        if child.poll() is not None:
            return None
        time.sleep(0.05)
    return None


def _end(child: subprocess.Popen[bytes]) -> bool:
    """Itself and what it started; returns whether it still ran."""
    if child.poll() is not None:
        return False
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    return True


def _smi(what: str, fields: str, device: Device) -> str:
    command = ["nvidia-smi", f"--query-{what}={fields}", "--format=csv,noheader,nounits", f"--id={device.uuid}"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _used(device: Device) -> int:
    text = _smi("gpu", "memory.used", device).strip() if device.gpu else ""
    return int(text) << 20 if text.isdigit() else 0


def driver(text: str, pid: int, before: int, found: Found) -> int:
    """Bytes that the driver has for a process: told for its number, or for the only one that there is, as numbers
    differ in a container; else what is used more than before."""
    told = {}
    for line in text.splitlines():
        number, _comma, size = line.partition(",")
        if number.strip().isdigit() and size.strip().isdigit():
            told[int(number)] = int(size) << 20
    if pid in told or len(told) == 1:
        return told.get(pid) or next(iter(told.values()))
    return max(0, int(found.get("used", 0)) - before)
