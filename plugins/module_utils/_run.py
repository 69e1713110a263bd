# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run on one node: staged, started, stopped, removed. What differs is changed, and each change is told.

Every function takes `changes`; with `changes.dry` nothing is written and the same list comes out.
"""

from __future__ import annotations

import contextlib
import fnmatch
import getpass
import hashlib
import os
import re
import shutil
import signal
import subprocess
import time
import typing as t
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from . import _node, _proof, _report, _state
from ._engine import files, lease, progress, state, supervisor
from ._errors import FinetuneError

START_SECONDS = 30.0
MODEL_SECONDS = 600.0
"""How long an apply waits for another one that makes the base model."""


@dataclass
class Changes:
    """What an apply changes, or in check mode would change."""

    dry: bool
    made: list[dict[str, str]] = field(default_factory=list)

    def add(self, action: str, path: Path | str) -> bool:
        """Note a change; True when it is to be made."""
        self.made.append({"action": action, "path": str(path)})
        return not self.dry


def stage(
    spec: dict[str, t.Any],
    changes: Changes,
    *,
    retry: bool,
    secrets: dict[str, str] | None = None,
    full: bool = False,
) -> dict[str, t.Any]:
    """Bring everything the run needs onto the node, and say what it is and what comes next."""
    run = state.Run(Path(spec["folder"]))
    if spec["unread"] and not changes.dry:
        raise _unread(spec["unread"])
    now = state.observe(run)
    step = _state.next_step(now, retry=retry)
    if step == "refuse":
        raise _failed(run)
    if now == "finished":
        step = _check_results(run, changes, retry=retry)
    for dataset in spec["datasets"]:
        _stage_dataset(dataset, changes)
    if spec["model"]["build"]:
        _stage_model(spec, changes)
    _stage_files(run, spec, changes, starting=step == "start")
    _stage_secrets(run, secrets or {}, changes)
    restored = now == "finished" and step == "start"
    is_now = "staged" if now == "absent" else "interrupted" if restored else now  # also where check mode wrote nothing
    answer = {**report(run), "state": is_now, "next": step}
    if spec["launch"]["nnodes"] > 1 and not changes.dry:
        answer["proof"] = _proof.proof(spec, full=full)
        if spec["listens"]:
            _listen(run, spec)
    return answer


def _listen(run: state.Run, spec: dict[str, t.Any]) -> None:
    """Hold this node's place until the start: its leases, and the port that the other nodes try."""
    release(run)
    token = uuid.uuid4().hex
    _spawn(run, spec, "listener", token)
    deadline = time.monotonic() + START_SECONDS
    while (told := files.read_json(run.listening)).get("token") != token:
        if time.monotonic() > deadline:
            log = run.logs / "listener.log"
            last = supervisor.tail(log, 2000).splitlines()[-5:]
            raise FinetuneError(
                "The listener did not start.", where="\n          ".join([str(log), *last]), change="read that log"
            )
        time.sleep(0.05)
    if "holder" in told:
        raise _report.held(told["key"], told["holder"], spec["user"], spec["folder"])
    if "why" in told:
        raise FinetuneError(
            f"Port {told['port']} of this node cannot be used: {told['why']}.",
            where="train_port",
            change="end what listens there, or set another train_port",
        )


def release(run: state.Run) -> None:
    """End the listener of a run, where there is one; its leases are free then."""
    pid = int(files.read_json(run.listening).get("pid") or 0)
    deadline = time.monotonic() + 5
    while pid and b"engine.listener" in _command(pid) and time.monotonic() < deadline:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.05)
    run.listening.unlink(missing_ok=True)


def give_up(run: state.Run) -> dict[str, t.Any]:
    """End the listener; the run is staged and not started."""
    release(run)
    return {**report(run), "changes": []}


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


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
        answer["tail"] = supervisor.last_words(Path(answer["log"]))
        answer["node_rank"] = files.read_json(run.launch).get("node_rank", 0)
        answer["errors"] = [
            {key: error.get(key) for key in ("rank", "node", "type", "message", "time")}
            for error in supervisor.errors(run)
        ]
    return answer


def _unread(datasets: t.Mapping[str, str]) -> FinetuneError:
    return FinetuneError(
        f"The records of {', '.join(datasets)} could not be read, and none is trained on unseen.",
        where="train_datasets\n          " + "\n          ".join(datasets.values()),
        change="have the environment made (playbook llmops.finetune.environment), or save the records as .jsonl",
    )


def _failed(run: state.Run) -> FinetuneError:
    told = files.read_json(run.state).get("diagnosis") or {}
    written = files.read_json(run.state)
    return FinetuneError(
        f"Run {run.id} failed in attempt {written.get('attempt')}. {told.get('what', '')}".strip(),
        where=str(run.log(int(written.get("attempt", 1)))),
        change=f"{told.get('change', 'read the log')}; the same request again: -e train_retry=true",
    )


def _check_results(run: state.Run, changes: Changes, *, retry: bool) -> _state.Step:
    """A finished run whose results were damaged is not trusted; with retry it is restored from its last checkpoint."""
    faults = state.damaged(run)
    if not faults:
        return "nothing"
    if not retry:
        raise FinetuneError(
            f"Run {run.id} is finished, but its results are not what it left.",
            where="\n          ".join([str(run.path), *faults]),
            change="put the files back, or -e train_retry=true to go on from the newest whole checkpoint",
        )
    if changes.add("remove", run.artefacts):
        files.write_json(run.state, {**files.read_json(run.state), "state": "interrupted"})
        run.artefacts.unlink(missing_ok=True)
    return "start"


def _stage_dataset(dataset: dict[str, t.Any], changes: Changes) -> None:
    """Store the bytes that were sent under their digest; what is there and whole is left alone."""
    folder, path = Path(dataset["folder"]), Path(dataset["file"])
    whole = _node.intact(folder)
    if whole and path.name in _node.stored(folder):
        return
    if not changes.add("update" if folder.exists() else "create", folder):
        return
    if not files.receive(dataset["stream"], path, dataset["digest"]):
        raise FinetuneError(
            f"Dataset {dataset['name']!r} is not the file that was planned with.",
            where=dataset["file"],
            change="run again; if the file is being written to, wait for it",
        )
    _node.seal(folder, [path.name, *(_node.stored(folder) if whole else ())])


def _stage_model(spec: dict[str, t.Any], changes: Changes) -> None:
    """Make the embedded base model, unless it is there and whole."""
    folder, identity = Path(spec["model"]["path"]), spec["model"]["identity"]
    if _node.model_intact(folder, identity):
        return
    if not changes.add("update" if folder.exists() else "build", folder):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_name(f".{folder.name}.lock")
    held = files.lock(lock, patience=MODEL_SECONDS)
    try:
        if not _node.model_intact(folder, identity):  # else another apply made it meanwhile
            _make_model(spec, folder)
    finally:
        lock.unlink(missing_ok=True)
        if held is not None:
            os.close(held)


def _make_model(spec: dict[str, t.Any], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    workshop = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        write_files(workshop, {f"engine/{name}": text for name, text in spec["engine"].items()})
        corpus = workshop / "corpus.jsonl"
        corpus.write_text(spec["model"]["corpus"], encoding="utf-8")
        _train_model(spec, workshop, corpus, folder)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def _train_model(spec: dict[str, t.Any], workshop: Path, corpus: Path, folder: Path) -> None:
    command = [spec["launch"]["python"], "-m", "engine.base_model", "--corpus", str(corpus), "--output", str(folder)]
    environment = {**os.environ, **spec["launch"]["environment"]}
    made = subprocess.run(command, cwd=workshop, env=environment, capture_output=True, text=True, check=False)
    if made.returncode != 0 or not _node.model_intact(folder, spec["model"]["identity"]):
        last = "\n          ".join((made.stdout + made.stderr).strip().splitlines()[-5:])
        raise FinetuneError(
            "The embedded base model could not be made.",
            where=last or f"exit status {made.returncode}",
            change="see the lines above; the environment playbook checks the packages",
        )


def _stage_files(run: state.Run, spec: dict[str, t.Any], changes: Changes, *, starting: bool) -> None:
    """Write the run's own files. A file that differs from what was staged is put back; when the run is about to
    start, every file is brought to what is wanted now."""
    wanted: dict[str, str] = {**spec["files"], **{f"engine/{name}": text for name, text in spec["engine"].items()}}
    record = files.read_json(run.record)
    staged: dict[str, str] = record.get("files", {})
    stale = {
        name: text
        for name, text in wanted.items()
        if _digest_on_disk(run.path / name) != (_digest(text) if starting or name not in staged else staged[name])
    }
    for name in sorted(stale):
        if not name.startswith("engine/"):
            changes.add("update" if (run.path / name).exists() else "create", run.path / name)
    if any(name.startswith("engine/") for name in stale):
        changes.add("update" if (run.path / "engine").exists() else "create", run.path / "engine")
    if not record and run.record.exists():
        changes.add("update", run.record)
    if changes.dry or (not stale and record):
        return
    for folder in (run.path, run.logs, run.output):
        folder.mkdir(parents=True, exist_ok=True)
    write_files(run.path, stale)
    files.write_json(
        run.record,
        {
            "run": run.id,
            "request": spec["request"],
            "resolved": spec["resolved"],
            "created": record.get("created", time.time()),
            "files": {**staged, **{name: _digest(text) for name, text in stale.items()}},
        },
    )


def _stage_secrets(run: state.Run, secrets: dict[str, str], changes: Changes) -> None:
    """The one file a secret may be in: readable by the account alone, outside the folder of the run."""
    wrong = next((name for name in secrets if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)), None)
    if wrong is not None:
        raise FinetuneError(
            f"{wrong!r} is no name of an environment variable.",
            where="train_secrets",
            change="use names such as HF_TOKEN",
        )
    secrets = {name: str(value) for name, value in secrets.items()}
    if files.read_json(run.secrets) == secrets:
        return
    if not secrets:
        if changes.add("remove", run.secrets):
            run.secrets.unlink()
    elif changes.add("update" if run.secrets.exists() else "create", run.secrets):
        run.secrets.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.write_json(run.secrets, secrets, mode=0o600)


def write_files(folder: Path, contents: t.Mapping[str, str]) -> None:
    for name, text in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _digest_on_disk(path: Path) -> str:
    try:
        return files.sha256(path)
    except OSError:
        return ""


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


def results(root: Path, run_id: str, name: str) -> list[dict[str, t.Any]]:
    """What finished runs left, checkpoints aside: id, and files by name with path, sha256 and size in bytes."""
    found = []
    for run in find(root, run_id, name):
        if state.observe(run) == "finished":
            left = files.read_json(run.artefacts)
            told = {
                file.removeprefix("output/"): {
                    "path": str(run.path / file),
                    "sha256": one["sha256"],
                    "size": one["size"],
                }
                for file, one in sorted(left.items())
            }
            found.append({"id": run.id, "files": told})
    return found


def ask_start(spec: dict[str, t.Any], changes: Changes) -> str:
    """Check that the leases are free and leave the token that the supervisor will answer; empty: nothing to start."""
    run = state.Run(Path(spec["folder"]))
    if state.observe(run) == "running":
        return ""
    if not changes.add("start", run.path):
        return ""
    release(run)
    _refuse_if_held(spec)
    token = uuid.uuid4().hex
    files.write_json(run.start_request, {"token": token})
    return token


def spawn(spec: dict[str, t.Any]) -> dict[str, t.Any]:
    """Start the supervisor as the user we are, detached from this process; returns its pid."""
    return {"pid": _spawn(state.Run(Path(spec["folder"])), spec, "supervisor")}


def _spawn(run: state.Run, spec: dict[str, t.Any], module: str, *arguments: str) -> int:
    with open(run.logs / f"{module}.log", "ab") as log:
        child = subprocess.Popen(
            [spec["launch"]["python"], "-m", f"engine.{module}", *arguments],
            cwd=run.path,
            env={**os.environ, **spec["launch"]["environment"]},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return child.pid


def _refuse_if_held(spec: dict[str, t.Any]) -> None:
    """Name the holder of a lease before anything is started."""
    held = lease.holders(spec["launch"]["leases"], lease.directory(spec["launch"]["lease_dir"]))
    for key, holder in held.items():
        raise _report.held(key, holder, spec["user"], spec["folder"])


def wait_until_started(run: state.Run, token: str, pid: int = 0) -> dict[str, t.Any]:
    """Until the supervisor answers the token: it holds its leases, or it was refused them.

    pid: its process, where it is known; the wait is over when it is gone.
    """
    log = run.logs / "supervisor.log"
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        gone = pid and not Path(f"/proc/{pid}").exists()  # before its answer is looked for: it may be the last it did
        if files.read_json(run.state).get("token") == token:
            return report(run)
        refusal = files.read_json(run.refusal)
        if refusal.get("token") == token:
            if refusal.get("holder"):
                raise _report.held(refusal["key"], refusal["holder"], getpass.getuser(), str(run.path))
            raise FinetuneError(str(refusal["message"]), where=str(run.path), change="see the folder named in it")
        if gone:
            break
        time.sleep(0.1)
    raise FinetuneError(
        "The supervisor did not start.",
        where="\n          ".join([str(log), *supervisor.tail(log, 2000).splitlines()[-5:]]),
        change="read that log",
    )


def stop(run: state.Run, changes: Changes, *, patience: float) -> dict[str, t.Any]:
    """Have the supervisor save a checkpoint and end, and wait for it. Nothing to do when nothing runs."""
    if state.observe(run) != "running":
        return report(run)
    if not changes.add("stop", run.path):
        return report(run)
    deadline = time.monotonic() + patience
    signalled = 0
    while files.locked(run.lock):
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


def remove(run: state.Run, changes: Changes, *, patience: float) -> dict[str, t.Any]:
    """Stop the run and remove its folder; environments, models and datasets stay."""
    if not run.path.exists():
        return report(run)
    stop(run, changes, patience=patience)
    if changes.add("remove", run.path):
        run.secrets.unlink(missing_ok=True)
        shutil.rmtree(run.path)
    return report(run)
