# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run on one node: found, told of, started, stopped. Each change is told.

Every function takes `changes`; with `changes.dry` nothing is written and the same list comes out.
"""

from __future__ import annotations

import contextlib
import fnmatch
import getpass
import os
import re
import signal
import time
import typing as t
import uuid
from pathlib import Path

from . import _held, _place
from ._changes import Changes
from ._engine import files, lease, logs, progress, state
from ._errors import FinetuneError

OPTIONS: dict[str, t.Any] = {
    "user": {"type": "str", "default": ""},
    "root": {"type": "str", "default": "~/llmops"},
    "id": {"type": "str", "default": ""},
    "name": {"type": "str", "default": ""},
}
"""Which runs a module is about; its documentation is in doc_fragments/runs.py."""


def report(run: state.Run) -> dict[str, t.Any]:
    """What `status` shows of a run."""
    now = state.observe(run)
    written = files.read_json(run.state)
    beat = progress.read(run) if now not in ("absent", "staged") else {}
    answer: dict[str, t.Any] = {
        "id": run.id,
        "state": now,
        "progress": beat,
        "line": progress.line(beat, live=now == "running") if beat else "",
        "attempt": written.get("attempt", 0),
        "from_step": written.get("from_step", 0),
        "diagnosis": written.get("diagnosis"),
        "log": str(run.log(int(written["attempt"]))) if written.get("attempt") else "",
        "summary": progress.summary(run) if now == "finished" else None,
    }
    if now in ("failed", "interrupted") and answer["log"]:
        answer["tail"] = logs.last_words(Path(answer["log"]))
        answer["node_rank"] = files.read_json(run.launch).get("node_rank", 0)
        answer["errors"] = [
            {key: error.get(key) for key in ("rank", "node", "type", "message", "time")} for error in logs.errors(run)
        ]
    return answer


def give_up(run: state.Run, *, dry: bool) -> dict[str, t.Any]:
    """End the listener; the run is staged and not started."""
    if not dry:
        _place.release(run)
    return {**report(run), "changes": []}


def find(root: Path, run_id: str, name: str) -> list[state.Run]:
    """Runs under a root, oldest first: the one of that id, all that match it (`demo-*`), those of that name, or all."""
    if run_id and not re.fullmatch(r"[\w.*?-]+", run_id):
        raise FinetuneError(
            f"{run_id!r} is no id of a run.", where="train_run_id", change="use one that status shows; * stands for any"
        )
    if run_id and not re.search(r"[*?]", run_id):
        return [state.Run(root / "runs" / run_id)]
    found = [state.Run(path.parent) for path in (root / "runs").glob("*/run.json")]
    found.sort(key=lambda run: (float(files.read_json(run.record).get("created") or 0), run.id))
    if run_id:
        return [run for run in found if fnmatch.fnmatchcase(run.id, run_id)]
    return [run for run in found if not name or run.id.rpartition("-")[0] == name]


def results(root: Path, run_id: str, name: str) -> dict[str, dict[str, t.Any]]:
    """What finished runs left, checkpoints aside: path, sha256 and size in bytes by `<run id>/<name>`."""
    found = {}
    for run in find(root, run_id, name):
        if state.observe(run) == "finished":
            for file, one in sorted(files.read_json(run.artefacts).items()):
                told = {"path": str(run.path / file), "sha256": one["sha256"], "size": one["size"]}
                found[f"{run.id}/{file.removeprefix('output/')}"] = told
    return found


def ask_start(spec: dict[str, t.Any], changes: Changes) -> str:
    """Check that the leases are free and leave the token that the supervisor will answer; empty: nothing to start."""
    run = state.Run(Path(spec["folder"]))
    if state.observe(run) == "running":
        return ""
    if not changes.add("start", run.path):
        return ""
    _place.release(run)
    _refuse_if_held(spec)
    token = uuid.uuid4().hex
    files.write_json(run.start_request, {"token": token, "together": spec["together"]})
    return token


def _refuse_if_held(spec: dict[str, t.Any]) -> None:
    """Name the holder of a lease before anything is started."""
    held = lease.holders(spec["launch"]["leases"], lease.directory(spec["launch"]["lease_dir"]))
    for key, holder in held.items():
        raise _held.refusal(key, holder, spec["user"], spec["folder"])


def wait_until_started(run: state.Run, token: str, pid: int = 0) -> dict[str, t.Any]:
    """Until the supervisor answers the token: it holds its leases, or it was refused them.

    pid: its process, where it is known; the wait is over when it is gone.
    """
    log = run.logs / "supervisor.log"
    deadline = time.monotonic() + _place.START_SECONDS
    while time.monotonic() < deadline:
        gone = pid and not Path(f"/proc/{pid}").exists()  # before its answer is looked for: it may be the last it did
        if files.read_json(run.state).get("token") == token:
            return report(run)
        refusal = files.read_json(run.refusal)
        if refusal.get("token") == token:
            if refusal.get("holder"):
                raise _held.refusal(refusal["key"], refusal["holder"], getpass.getuser(), str(run.path))
            raise FinetuneError(str(refusal["message"]), where=str(run.path), change="see the folder named in it")
        if gone:
            break
        time.sleep(0.02)
    raise FinetuneError(
        "The supervisor did not start.",
        where="\n          ".join([str(log), *logs.ending(log)]),
        change="read that log",
    )


def stop(run: state.Run, changes: Changes, *, patience: float) -> dict[str, t.Any]:
    """Have the supervisor save a checkpoint and end, and wait for it. Nothing to do when nothing runs."""
    if state.observe(run) != "running":
        if not changes.dry:
            _place.release(run)  # of an apply that was ended between staging and start
        return report(run)
    if not changes.add("stop", run.path):
        return report(run)
    deadline = time.monotonic() + patience
    signalled, sent = 0, None
    while files.locked(run.lock):
        if (now := files.read_json(run.stored).get("sent")) != sent:  # what goes to S3 takes its time
            deadline, sent = time.monotonic() + patience, now
        pid = int(files.read_json(run.state).get("pid") or 0)
        if pid and pid != signalled:
            files.write_json(run.stop_request, {"time": time.time()})  # a supervisor that begins removes older ones
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            signalled = pid
        if time.monotonic() > deadline:
            raise FinetuneError(
                f"Run {run.id} did not end within {patience:.0f} s.",
                where=str(run.path),
                change="look at its processes; run stop again",
            )
        time.sleep(0.1)
    return report(run)
