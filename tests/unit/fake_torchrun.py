# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A staged run whose torchrun is a small script: `python` in launch.json stands for `python -m torch.distributed.run …`
and does what fake.json says for each attempt (save a checkpoint, fail, be killed, …). The supervisor is the real one.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import typing as t
from pathlib import Path

from ansible_collections.llmops.finetune.plugins.module_utils import _engine
from ansible_collections.llmops.finetune.plugins.module_utils._engine import (
    files,
    lease,
    state,
)

SUPERVISOR = """
import os, pathlib, sys
from engine import supervisor

os.fsync = lambda descriptor: None
supervisor.POLL_SECONDS, supervisor.USAGE_SECONDS = 0.02, 0.1
fake = supervisor.files.read_json(pathlib.Path("fake.json"))
supervisor.WAIT_SECONDS, supervisor.AFTERMATH_SECONDS = fake.get("wait", 120), fake.get("aftermath", 15)
sys.exit(supervisor.Supervisor(supervisor.Run(pathlib.Path.cwd())).main())
"""
"""`python -m engine.supervisor` in less time; one test starts it as the module does."""

ENGINE = Path(str(_engine.__file__)).parent

SHELL = """#!/bin/sh
test "$2" = torch.distributed.run && exec "{python}" "{script}" "$@"
exec "{python}" "$@"
"""

TORCHRUN = """
import json, os, pathlib, signal, subprocess, sys, time
sys.path.insert(0, os.getcwd())
from engine import checkpoint, files, rank
from engine.state import Run

os.fsync = lambda descriptor: None
run = Run(pathlib.Path.cwd())
attempt = int(os.environ[rank.ATTEMPT])
acts = files.read_json(pathlib.Path("fake.json"))["acts"]


def note(**seen):
    with open("seen.jsonl", "a") as file:
        file.write(json.dumps(seen) + "\\n")


def save(step, whole=True):
    folder = run.output / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "trainer_state.json").write_text("{}")
    with open(run.trainer_log, "a") as log:
        log.write(json.dumps({"current_steps": int(step), "attempt": attempt}) + "\\n")
    if whole:
        checkpoint.mark(folder)


note(attempt=attempt, argv=sys.argv[1:], resume=os.environ[rank.RESUME], told=os.environ.get("TOLD"), pid=os.getpid())
for word in acts[min(attempt, len(acts)) - 1].split():
    name, _, value = word.partition("=")
    if name == "save":
        save(value)
    elif name == "torn":
        save(value, whole=False)
    elif name == "beat":
        files.write_json(run.progress, {"step": 1, "total_steps": 9, "time": time.time()})
    elif name == "leave":
        files.write_json(run.logs / "error-rank0.json", {"type": value, "rank": 0, "time": time.time()})
    elif name == "error":
        error = {"type": value, "message": "said the rank", "rank": 0, "time": time.time()}
        files.write_json(run.logs / "error-rank0.json", error)
        sys.exit(1)
    elif name == "nap":
        time.sleep(float(value))
    elif name == "exit":
        sys.exit(int(value))
    elif name == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "rank":  # a child that dies with its parent, as ranks do
        child = subprocess.Popen(["sleep", "60"], preexec_fn=rank.die_with_parent)
        note(pid=child.pid)
    elif name == "orphan":  # a daemon that nobody waits for
        command = "setsid sleep 60 >/dev/null 2>&1 & echo $!"
        note(pid=int(subprocess.run(["sh", "-c", command], capture_output=True, text=True).stdout))
    elif name == "hang":
        time.sleep(60)
    elif name == "wait":  # until asked to end, then save and end
        while not run.control.exists():
            time.sleep(0.02)
        save(value)
        sys.exit(0)
    elif name == "peak":  # of a rank in that attempt, as it writes it at its end
        number, told = value.split(":")
        peak = {"rank": int(number), "attempt": int(told), "steps": 9, "rss": 5 << 20}
        files.write_json(run.logs / f"memory-rank{number}.json", peak)
    elif name == "finish":
        (run.output / "adapter_model.safetensors").write_bytes(b"weights")
        files.write_json(run.trained, {"attempt": attempt})
"""


class Staged:
    """A staged run, and its supervisors."""

    def __init__(self, folder: Path, acts: t.Sequence[str], **launch: t.Any) -> None:
        self.run = state.Run(folder / "runs/x-00000000")
        self.run.logs.mkdir(parents=True)
        shutil.copytree(ENGINE, self.run.path / "engine", ignore=shutil.ignore_patterns("__pycache__"))
        script, python = folder / "torchrun.py", folder / "python"
        script.write_text(TORCHRUN, encoding="utf-8")
        python.write_text(SHELL.format(python=sys.executable, script=script), encoding="utf-8")
        python.chmod(0o755)
        self.launch: dict[str, t.Any] = {
            "python": str(python),
            "nnodes": 1,
            "node_rank": 0,
            "nproc_per_node": 2,
            "master_addr": "127.0.0.1",
            "master_port": 0,
            "environment": {"TOLD": "yes"},
            "leases": ["cpu"],
            "lease_dir": str(folder / "leases"),
            "max_restarts": 3,
            "grace_seconds": 20,
            "start_deadline_seconds": 60,
            **launch,
        }
        self.acts(*acts)
        files.write_json(self.run.launch, self.launch)
        files.write_json(self.run.record, {"run": self.run.id})
        self.started: list[subprocess.Popen[bytes]] = []

    def acts(self, *acts: str, **more: t.Any) -> None:
        files.write_json(self.run.path / "fake.json", {"acts": acts, **more})

    def start(self, token: str = "t1", *, together: bool = False) -> subprocess.Popen[bytes]:
        files.write_json(self.run.start_request, {"token": token, "together": together})
        with open(self.run.logs / "supervisor.log", "ab") as log:
            command = [sys.executable, "-c", SUPERVISOR]
            self.started.append(subprocess.Popen(command, cwd=self.run.path, stdout=log, stderr=log))
        return self.started[-1]

    def work(self, token: str = "t1") -> int:
        """Supervise to the end; the exit status."""
        status = self.start(token).wait(120)
        assert (self.run.logs / "supervisor.log").read_text(encoding="utf-8") == ""
        return status

    def seen(self) -> list[dict[str, t.Any]]:
        """What the fake torchrun was started with, by attempt."""
        return [line for line in self._notes() if "attempt" in line]

    def pids(self) -> list[int]:
        return [line["pid"] for line in self._notes()]

    def _notes(self) -> list[dict[str, t.Any]]:
        with contextlib.suppress(OSError):
            text = (self.run.path / "seen.jsonl").read_text(encoding="utf-8")
            return [json.loads(line) for line in text.splitlines()]
        return []

    def resumed_from(self) -> list[str]:
        return [Path(line["resume"]).name for line in self.seen()]

    def written(self) -> dict[str, t.Any]:
        return files.read_json(self.run.state)

    def held(self) -> dict[str, t.Any]:
        return lease.holders(["cpu"], Path(self.launch["lease_dir"]))
