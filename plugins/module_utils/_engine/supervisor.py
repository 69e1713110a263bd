# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The supervisor of one run on one node: `python -m engine.supervisor` in the run's folder.

Takes the leases, starts torchrun, starts it again from the newest whole checkpoint when it fails, and writes down
what became of the run. systemd's ExecStart where there is systemd, else a detached process. Stdlib only.

Exit status: 0 the run finished or was stopped, 1 it failed, 2 it was interrupted or the supervisor itself broke, 3 the
start was refused. The unit goes with 0, 1 and 3.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
import typing as t
from pathlib import Path

from . import (
    builds,
    checkpoint,
    diagnose,
    files,
    lease,
    logs,
    memory,
    notices,
    processes,
    rank,
    state,
    torchrun,
    uploads,
)
from .state import Run

POLL_SECONDS = 0.2
USAGE_SECONDS = 5.0
WAIT_SECONDS = 120.0
"""An attempt that is longer and had no rank has waited in vain for another node."""
AFTERMATH_SECONDS = 15.0
"""How long torchrun may go on after the first of its ranks left an error."""
STALL_FACTOR = 10
STALL_FLOOR_SECONDS = 300.0
"""A step longer than 10 × the median, and than 5 minutes (evaluation, saving), counts as a stall."""


class Supervisor:
    def __init__(self, run: Run) -> None:
        self.run = run
        self.launch = files.read_json(run.launch)
        self.state: dict[str, t.Any] = files.read_json(run.state)
        self.asked_to_end = False
        self.notice = ""
        """What EC2 said, for which it ends."""
        self.uploads = uploads.Uploads(run, self.launch)
        self.first_of_all = False
        """All nodes begin, on a port that was seen to be free: what listens there is what this node is to meet."""

    def main(self) -> int:
        request = files.read_json(self.run.start_request)
        token = str(request.get("token", ""))
        held = files.lock(self.run.lock)
        if held is None:
            return self._refuse(token, {"message": f"Run {self.run.id} is running already."})
        holder = {"run": self.run.id, "user": getpass.getuser(), "pid": os.getpid(), "since": time.time()}
        try:
            lease.acquire(self.launch["leases"], holder, lease.directory(self.launch["lease_dir"]))
        except lease.Held as error:
            return self._refuse(token, {"message": str(error), "key": error.key, "holder": error.holder})
        except OSError as error:
            return self._refuse(token, {"message": f"The leases cannot be taken: {error}."})
        if self.state.get("state") in ("finished", "stopped", "failed") and self.state.get("token") == token:
            return 0  # a unit that outlived its run, started again at boot
        self.first_of_all = bool(request.get("together")) and self.state.get("token") != token
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        processes.adopt_orphans()
        for old in (self.run.refusal, self.run.stop_request):
            old.unlink(missing_ok=True)
        if (self.state.get("diagnosis") or {}).get("kind") == diagnose.NOTICE:
            del self.state["diagnosis"]
        where = notices.address({**os.environ, **files.read_json(self.run.secrets)})
        notices.watch(where, self.launch.get("notices", ()), str(self.state.get("notice", "")), self._on_notice)
        status = self._attempts(token)
        if self.state["state"] != "finished":
            self.uploads.end()
        return status

    def _on_notice(self, sentence: str) -> None:
        self.notice, self.asked_to_end = sentence, True

    def _on_signal(self, number: int, frame: types.FrameType | None) -> None:
        self.asked_to_end = True

    def _refuse(self, token: str, why: dict[str, t.Any]) -> int:
        files.write_json(self.run.refusal, {**why, "token": token})
        return 3

    def _attempts(self, token: str) -> int:
        attempt, fruitless = int(self.state.get("attempt", 0)), 0
        if self.state.get("state") == "running" and self._came_to_its_end():  # this node was lost right after
            return self._finish()
        while True:
            attempt += 1
            if self.launch.get("shared") and not (self.run.output.is_symlink() and self.run.output.is_dir()):
                self._write("interrupted", attempt=attempt - 1, token=token, diagnosis=diagnose.NO_STORAGE._asdict())
                return 2
            start = self._ready()
            before = checkpoint.step_of(start) if start else 0
            self._write("running", attempt=attempt, token=token, from_step=before, pid=os.getpid())
            began, ended_by_kernel = time.monotonic(), processes.killed_for_memory()
            code, stalled = self._attempt(attempt, start)
            ended_by_kernel = processes.killed_for_memory() - ended_by_kernel
            processes.end_all()
            if code == 0 and self._came_to_its_end():
                return self._finish()
            if self.asked_to_end:
                stopped = self.run.stop_request.exists()
                told = (
                    {"notice": self.notice, "diagnosis": diagnose.notice(self.notice)._asdict()} if self.notice else {}
                )
                self._write("stopped" if stopped else "interrupted", **told)
                return 0 if stopped else 2
            diagnosis = self._diagnose(attempt, code, stalled, ended_by_kernel)
            newest = checkpoint.newest_complete(self.run.output)
            further = self.launch.get("resumes", True) and newest and checkpoint.step_of(newest) > before
            met = self.run.progress.exists() or time.monotonic() - began < WAIT_SECONDS
            if met:  # else it only waited for another node, and goes on with that
                fruitless = 0 if further else fruitless + 1
            if diagnosis.repeats or fruitless > self.launch["max_restarts"]:
                self._write("failed", diagnosis=diagnosis._asdict())
                return 1
            self._write("running", diagnosis=diagnosis._asdict())

    def _came_to_its_end(self) -> bool:
        """The ranks of the last attempt said so: the results are here, and each other node has its own."""
        trained = files.read_json(self.run.trained)
        return bool(trained) and trained["attempt"] == self.state.get("attempt")

    def _finish(self) -> int:
        if not (self.launch.get("shared") and self.launch["node_rank"]):
            memory.keep(self.run, int(self.state["attempt"]))
            files.write_json(self.run.artefacts, state.inventory(self.run))
        self.uploads.end(uploads.RESULTS_SECONDS, cut=lambda: self.asked_to_end)
        self._write("finished")
        return 0

    def _ready(self) -> Path | None:
        """The checkpoint to go on from. What several nodes share rank 0 puts in order, when it has met the others."""
        resumes = self.launch.get("resumes", True)
        if self.launch.get("shared") and self.launch["nnodes"] > 1:
            return checkpoint.newest_complete(self.run.output) if resumes else None
        return checkpoint.prepare(self.run.output, resumes=resumes)

    def _attempt(self, attempt: int, start: Path | None) -> tuple[int, str]:
        """Run torchrun to its end. Returns its exit status and why it was ended for a stall, if it was."""
        for old in (self.run.control, self.run.trained, self.run.progress):
            old.unlink(missing_ok=True)
        for error in self.run.logs.glob("error-rank*.json"):
            error.unlink()
        environment = {
            **os.environ,
            **self.launch["environment"],
            **{name: str(value) for name, value in files.read_json(self.run.secrets).items()},
            rank.RESUME: str(start or ""),
            rank.ATTEMPT: str(attempt),
            "LLMOPS_RUN": self.run.id,
        }
        self.uploads.begin()
        port = self.launch["master_port"] or torchrun.free_port()
        if self.launch["node_rank"]:
            self._wait_for_rendezvous(port)
        # A temp folder of the ranks' own, for what torchrun and its like leave. Its path is short: sockets go there.
        self._remove_old_scratch()
        with (
            builds.shared(self.launch["environment"].get("TORCH_EXTENSIONS_DIR", "")),
            tempfile.TemporaryDirectory(prefix="llmops-", ignore_cleanup_errors=True) as scratch,
        ):
            files.write_json(self.run.scratch, {"path": scratch})
            with open(self.run.log(attempt), "ab") as log:
                child = subprocess.Popen(
                    torchrun.command(self.launch, port),
                    cwd=self.run.path,
                    env={**environment, "TMPDIR": scratch},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=rank.die_with_parent,
                )
            return self._watch(child)

    def _wait_for_rendezvous(self, port: int) -> None:
        """Until rank 0's node may open it: an earlier one is closed, or, where all begin, its place is given up."""
        address = self.launch["master_addr"]
        deadline = time.monotonic() + self.launch["start_deadline_seconds"]
        if self.first_of_all:
            while torchrun.place_is_held(address, port) and time.monotonic() < deadline and not self.asked_to_end:
                time.sleep(0.05)
        else:
            torchrun.wait_until_closed(address, port)
        self.first_of_all = False

    def _remove_old_scratch(self) -> None:
        """The temp folder of an attempt whose supervisor was killed."""
        old = Path(str(files.read_json(self.run.scratch).get("path") or "/nothing"))
        if (
            old.name.startswith("llmops-")
            and not old.is_symlink()
            and old.is_dir()
            and old.owner() == getpass.getuser()
        ):
            shutil.rmtree(old, ignore_errors=True)

    def _watch(self, child: subprocess.Popen[bytes]) -> tuple[int, str]:
        gpus = [key for key in self.launch["leases"] if key != lease.CPU]
        meter, began, measured, give_up, failed, ended = processes.Meter(gpus), time.time(), 0.0, 0.0, 0.0, 0.0
        while (code := child.poll()) is None:
            time.sleep(POLL_SECONDS)
            now = time.time()
            if now - measured >= USAGE_SECONDS:
                measured = now
                waiting = self.launch["nnodes"] > 1 and not processes.running(
                    "engine.rank", but="torch.distributed.run"
                )
                files.write_json(self.run.usage, {**meter.read(), "waiting": waiting})
                ended = (ended or now) if waiting and self._came_to_its_end() else 0.0
                if ended and now - ended > AFTERMATH_SECONDS:  # torchrun waits for a node that went after its end
                    processes.end_all()
                    child.wait()
                    return 0, ""
                if stalled := self._stalled(began, now):
                    processes.end_all()
                    child.wait()
                    return 1, stalled
            if self.asked_to_end and not give_up:
                files.write_json(self.run.control, {"checkpoint_and_end": True})
                training = "step" in files.read_json(self.run.progress)
                give_up = now + (self.launch["grace_seconds"] if training else 0)
            if not failed and any(self.run.logs.glob("error-rank*.json")):
                failed = now
            if failed and now - failed > AFTERMATH_SECONDS and not give_up:  # torchrun may wait for a node that is gone
                give_up = now
            if give_up and now >= give_up:
                processes.end_all()
                child.wait()
                return 1, ""
        return code, ""

    def _stalled(self, began: float, now: float) -> str:
        beat = files.read_json(self.run.progress)
        if "median_step_seconds" not in beat:
            limit = self.launch["start_deadline_seconds"]
            return f"No step was made within {limit:.0f} s of the start." if now - began > limit else ""
        limit = max(STALL_FACTOR * beat["median_step_seconds"], STALL_FLOOR_SECONDS)
        return f"No step for {now - beat['time']:.0f} s, {limit:.0f} s allowed." if now - beat["time"] > limit else ""

    def _diagnose(self, attempt: int, code: int, stalled: str, ended_by_kernel: int) -> diagnose.Diagnosis:
        if code == 0 and self.launch["nnodes"] > 1:
            return diagnose.ENDED_ELSEWHERE
        return diagnose.diagnose(
            errors=logs.errors(self.run),
            tail=logs.tail(self.run.log(attempt)),
            signal=-code if code < 0 else 0,
            stalled=stalled,
            ended_by_kernel=ended_by_kernel,
        )

    def _write(self, now: state.State, **more: t.Any) -> None:
        if now != "running":
            self.state.pop("pid", None)
        if now in ("finished", "stopped"):  # until then it tells why the attempt before this one ended
            self.state.pop("diagnosis", None)
        self.state.update(more, state=now, time=time.time())
        files.write_json(self.run.state, self.state)


def main() -> int:
    """A supervisor's life. What it says of itself is in the run's log, also where systemd started it."""
    run = Run(Path.cwd())
    try:
        with open(run.logs / "supervisor.log", "ab") as log:
            os.dup2(log.fileno(), sys.stdout.fileno())
            os.dup2(log.fileno(), sys.stderr.fileno())
        return Supervisor(run).main()
    except Exception:
        traceback.print_exc()
        return 2


if __name__ == "__main__":
    sys.exit(main())
