# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module gpu_info as a person calls it, and the job that tries GPUs out with a real torch: on the CPU, whole and
hurt. What a GPU itself adds is unproved."""

from __future__ import annotations

import json
import subprocess
import typing as t
from pathlib import Path

from ..unit import smi_outputs
from .conftest import REPOSITORY, Demo, World, tree
from .test_demo_run import node_python

JOB = REPOSITORY / "plugins/module_utils/_gpu/verify_job.py"


def call(world: World, tmp_path: Path, *arguments: str, path: str = "", **options: object) -> tuple[int, str]:
    asked = json.dumps({"root": str(world.root), "lease_dir": str(world.leases), **options})
    known = world.environment(tmp_path / "record")
    done = world.shell(
        ["ansible", "localhost", "-m", "llmops.finetune.gpu_info", "-a", asked, *arguments],
        env={**known, "PATH": f"{path}:{known['PATH']}"},
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())  # long lines are broken anywhere


def test_it_tells_of_a_host_without_gpus_and_leaves_no_path(world: World, demo: Demo, tmp_path: Path) -> None:
    before = tree(world.root / "runs", world.leases)
    for arguments in ((), ("--check",)):
        rc, text = call(world, tmp_path, *arguments)
        assert rc == 0 and "no GPU" in text and f"path: {world.root}" in text, text
    rc, text = call(world, tmp_path, verify=True)
    assert rc != 0 and "There is no GPU to try out" in text and "Traceback" not in text
    rc, text = call(world, tmp_path, verify=True, verify_share=2)
    assert rc != 0 and "verify_share is 2" in text and "Traceback" not in text
    assert tree(world.root / "runs", world.leases) == before


def test_nvidia_smi_is_not_believed(world: World, demo: Demo, tmp_path: Path) -> None:
    """Two GPUs that are listed, and a torch that finds none."""
    smi_outputs.host(tmp_path, smi_outputs.H100, smi_outputs.H100)
    rc, text = call(world, tmp_path, path=str(tmp_path))
    assert rc == 0 and "GPU 1 NVIDIA H100 80GB HBM3, 79.6 GiB, 79.1 free, compute capability 9, SYS to 1 other" in text
    rc, text = call(world, tmp_path, path=str(tmp_path), verify=True)
    assert rc != 0 and "GPUs failed when they were tried out" in text and "Traceback" not in text, text
    for number in (0, 1):
        assert f"GPU {number} FAILED: context, Found no NVIDIA driver" in text
    assert "train_gpus" in text and "memory_mib: 81559" in text, "the facts are told all the same"


def ask(python: str, **question: t.Any) -> list[dict[str, t.Any]]:
    asked = {"device": "cpu", "share": 0.5, "bytes": 1 << 24, "visible": ["a", "b"], "together": False, **question}
    command = [python, "-I", "-c", JOB.read_text(encoding="utf-8"), json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_job_finds_a_cpu_well(world: World, demo: Demo) -> None:
    python = node_python(world, demo)
    steps = ask(python)
    assert [(step["what"], step["ok"]) for step in steps] == [
        (what, True) for what in ("context", "memory", "float32", "bfloat16")
    ]
    assert steps[1]["bytes"] == 1 << 24
    assert ask(python, together=True) == [{"what": "peer", "ok": True, "pair": [0, 1]}]


HURT = """
import sys, torch
sys.path.append(sys.argv[1])
import verify_job as job

class Hurt:
    def __init__(self, turn):
        self.turn, self.calls = turn, 0
    def __getattr__(self, name):
        return getattr(torch, name)
    def equal(self, one, two):
        self.calls += 1
        if self.calls == self.turn:
            one.view(-1)[5] = 7777
        return torch.equal(one, two)

for turn in (3, 66, 129, 149):
    job.alone(Hurt(turn), "cpu", 0.5, 1 << 24)
for turn in (1, 2):
    job.together(Hurt(turn), "cpu", 2)
"""


def test_the_job_sees_one_number_that_is_wrong(world: World, demo: Demo) -> None:
    """In memory, in memory with its bits turned, in either product, on the way to a peer and on the way back."""
    command = [node_python(world, demo), "-c", HURT, str(JOB.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(step["what"], step["why"]) for step in steps if not step["ok"]] == [
        ("memory", "what was written to block 3 of 64 came back otherwise"),
        ("memory", "what was written to block 2 of 64 came back otherwise"),
        ("float32", "1 of 1048576 numbers of product 1 are not the CPU's"),
        ("bfloat16", "1 of 1048576 numbers of product 1 are not the CPU's"),
        ("peer", "bytes changed on the way there"),
        ("peer", "bytes changed on the way back"),
    ]
