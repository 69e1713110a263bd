# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run's folder on a node, and what the run is, read from its files."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass
from pathlib import Path

from . import files

EARLIER = "run:"
"""How an earlier run is written where a model or the path of one may stand, before its id."""

State = t.Literal["absent", "staged", "running", "interrupted", "failed", "stopped", "finished"]


@dataclass(frozen=True)
class Run:
    """`<root>/runs/<run id>`. Each file has one writer, named here."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def record(self) -> Path:
        """Request, resolved values, the memory predicted for them, digests of the staged files (staging)."""
        return self.path / "run.json"

    @property
    def launch(self) -> Path:
        """How the ranks are started (staging)."""
        return self.path / "launch.json"

    @property
    def config(self) -> Path:
        """LLaMA-Factory's arguments (staging)."""
        return self.path / "train.yaml"

    @property
    def state(self) -> Path:
        """What became of the run (supervisor)."""
        return self.path / "state.json"

    @property
    def refusal(self) -> Path:
        """Why the last start did not begin (supervisor)."""
        return self.path / "refusal.json"

    @property
    def artefacts(self) -> Path:
        """Digests of what the finished run left (supervisor); beside the results where all nodes share these."""
        return (self.output if self.output.is_symlink() else self.path) / "artefacts.json"

    @property
    def memory(self) -> Path:
        """What ranks took of memory at most, beside what was predicted (supervisor); one of the results."""
        return self.output / "memory.json"

    @property
    def usage(self) -> Path:
        """CPU, memory and GPU use of the ranks (supervisor)."""
        return self.path / "usage.json"

    @property
    def progress(self) -> Path:
        """Step, loss, speed (the node's first rank)."""
        return self.path / "progress.json"

    @property
    def trained(self) -> Path:
        """The trainer came to its end, and in which attempt (rank 0)."""
        return self.path / "trained.json"

    @property
    def tracked(self) -> Path:
        """The run that MLflow has for this one (rank 0)."""
        return self.path / "tracked.json"

    @property
    def scratch(self) -> Path:
        """Where the temp folder of the ranks is (supervisor)."""
        return self.path / "scratch.json"

    @property
    def control(self) -> Path:
        """Asks the ranks to save a checkpoint and end (supervisor)."""
        return self.path / "control.json"

    @property
    def start_request(self) -> Path:
        """The token of the start that is asked for, which the supervisor repeats in its answer (module)."""
        return self.path / "start.json"

    @property
    def listening(self) -> Path:
        """Where the node's place is held between staging and start, or why it cannot be (listener)."""
        return self.path / "listening.json"

    @property
    def allreduce(self) -> Path:
        """What came of an all-reduce over all nodes before the start (allreduce)."""
        return self.path / "allreduce.json"

    @property
    def stop_request(self) -> Path:
        """Tells the supervisor that a coming SIGTERM is a person's stop, not an interruption (module)."""
        return self.path / "stop.json"

    @property
    def secrets(self) -> Path:
        """Environment variables for the ranks alone, outside the folders of runs (staging)."""
        return self.path.parents[1] / "secrets" / f"{self.id}.json"

    @property
    def stored(self) -> Path:
        """Which checkpoint and results are in S3, and what went wrong there (upload)."""
        return self.path / "stored.json"

    @property
    def upload_lock(self) -> Path:
        """Held by who sends to S3, or fetches from there."""
        return self.path / "upload.lock"

    @property
    def lock(self) -> Path:
        """Held by the living supervisor."""
        return self.path / "supervisor.lock"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def output(self) -> Path:
        """Checkpoints and results: a folder, or a link to one on storage that all nodes share (staging)."""
        return self.path / "output"

    @property
    def trainer_log(self) -> Path:
        return self.output / "trainer_log.jsonl"

    def log(self, attempt: int) -> Path:
        return self.logs / f"attempt-{attempt}.log"


def observe(run: Run) -> State:
    """What the run is on this node now."""
    if not run.record.exists():
        return "absent"
    written = str(files.read_json(run.state).get("state", ""))
    if not written and (run.state.exists() or run.log(1).exists()):
        written = "running"  # it began, and what became of it is not to be read: the next apply goes on with it
    return decide(alive=files.locked(run.lock), written=written)


def decide(*, alive: bool, written: str) -> State:
    """alive: a supervisor holds the run. written: the last state it wrote, empty before the first start."""
    if alive:
        return "running"
    if not written:
        return "staged"
    if written in ("finished", "failed", "stopped"):
        return t.cast(State, written)
    return "interrupted"


def inventory(run: Run) -> dict[str, dict[str, t.Any]]:
    """Digest and identity on disk of every file the run left in its output folder, checkpoints aside."""
    return {str(path.relative_to(run.path)): _fingerprint(path, files.sha256(path)) for path in results(run)}


def results(run: Run) -> list[Path]:
    return sorted(
        path
        for path in run.output.rglob("*")
        if path.is_file() and not path.relative_to(run.output).parts[0].startswith("checkpoint-")
    )


def damaged(run: Run, *, full: bool = False) -> list[str]:
    """Results that are not what the finished run left: `output/adapter_model.safetensors is gone`, …

    A file whose size, times and inode are as recorded is not read again unless `full`.
    """
    faults = []
    recorded = files.read_json(run.artefacts)
    if not recorded and run.output.is_symlink() and files.read_json(run.launch).get("node_rank"):
        return []  # it is for rank 0's node to say
    if not recorded:
        return ["artefacts.json is gone or unreadable"]
    for name, was in sorted(recorded.items()):
        path = run.path / name
        if not isinstance(was, dict) or not {"sha256", "size"} <= was.keys():
            faults.append(f"artefacts.json does not tell what {name} was")
        elif not path.is_file():
            faults.append(f"{name} is gone")
        elif full or _fingerprint(path, was["sha256"]) != was:
            if path.stat().st_size != was["size"]:
                faults.append(f"{name} has {path.stat().st_size} bytes, the run left {was['size']}")
            elif files.sha256(path) != was["sha256"]:
                faults.append(f"{name} has other content than the run left")
    return faults


def _fingerprint(path: Path, digest: str) -> dict[str, t.Any]:
    now = path.stat()
    return {"sha256": digest, "size": now.st_size, "ctime_ns": now.st_ctime_ns, "inode": now.st_ino}
