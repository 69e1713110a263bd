# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything a run needs, brought onto a node. What differs is changed, and each change is told.

With `changes.dry` nothing is written and the same list comes out.
"""

from __future__ import annotations

import hashlib
import time
import typing as t
from pathlib import Path

from . import _before, _explain, _media_set, _models, _output, _place, _proof, _run, _sealed, _state, _store, _tokenized
from ._changes import Changes
from ._engine import files, state, torchrun
from ._errors import FinetuneError


def stage(
    spec: dict[str, t.Any],
    changes: Changes,
    *,
    retry: bool,
    secrets: dict[str, str] | None = None,
    full: bool = False,
) -> dict[str, t.Any]:
    """Bring everything the run needs onto the node, and say what it is."""
    run = state.Run(Path(spec["folder"]))
    if spec["unread"] and not changes.dry:
        raise _unread(spec["unread"])
    now = state.observe(run)
    step = _state.next_step(now, retry=retry)
    if step == "refuse":
        raise _explain.why({"": _run.report(run)})
    _output.stage(run, spec["launch"].get("shared", ""), changes)
    if now == "finished":
        step = _check_results(run, changes, retry=retry)
    if step == "start":
        _refuse_without_environment(spec)
        _before.stage(spec, changes, secrets or {})
        _refuse_damaged(spec)
    for dataset in spec["datasets"]:
        _stage_dataset(dataset, changes)
    if spec["media"]:
        _stage_media(spec["media"], changes)
    _models.stage(spec, changes, secrets or {}, starting=step == "start")
    if spec["tokens"] and step == "start":
        _tokenized.stage(spec, changes, secrets or {})
    _stage_files(run, spec, changes, starting=step == "start")
    _stage_secrets(run, secrets or {}, changes)
    if step == "start" or now == "finished":
        _store.stage(run, spec, changes, secrets or {}, now="" if step == "start" else now)
    restored = now == "finished" and step == "start"
    is_now = "staged" if now == "absent" else "interrupted" if restored else now  # also where check mode wrote nothing
    answer = {**_run.report(run), "state": is_now}
    if spec["compared"] and not changes.dry:
        answer["proof"] = _proof.proof(spec, full=full)
        if spec["launch"].get("shared"):
            answer["mark"] = _output.leave_mark(run, spec["launch"]["node_rank"])
        if spec["listens"]:
            answer |= _place.hold(run, spec)
            if full:
                answer["spare_port"] = torchrun.free_port()
    return answer


def _unread(datasets: t.Mapping[str, str]) -> FinetuneError:
    return FinetuneError(
        f"The records of {', '.join(datasets)} could not be read, and none is trained on unseen.",
        where="train_datasets\n          " + "\n          ".join(datasets.values()),
        change="have the environment made (playbook llmops.finetune.environment), or save the records as .jsonl",
    )


def _refuse_without_environment(spec: t.Mapping[str, t.Any]) -> None:
    """That of an older lock is not made any more; a node that was replaced meanwhile has not got it."""
    environment, python = spec["environment"], Path(spec["launch"]["python"])
    locked = bool(environment["digest"])  # one without a lock comes this far in check mode alone
    if locked and not environment["current"] and not python.exists():
        raise FinetuneError(
            f"Environment {environment['lock']} {environment['digest']}, which the run was resolved with, is not on "
            "this node, and the lock is another one today.",
            where=str(python.parents[1]),
            change="-e train_resolve=refresh to go on with the lock of today, or name that of then with train_lock",
        )


def _refuse_damaged(spec: t.Mapping[str, t.Any]) -> None:
    """Results of an earlier run that this one begins with are not trusted where they are not what it left."""
    for run_id in spec["before"]:
        earlier = state.Run(Path(spec["root"]) / "runs" / run_id)
        faults = state.damaged(earlier) if earlier.path.exists() else []
        if faults:
            raise FinetuneError(
                f"Run {run_id}, which this one begins with, is not what it left.",
                where="\n          ".join([str(earlier.path), *faults]),
                change="apply that run again with -e train_retry=true, or put the files back",
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
    whole = _sealed.intact(folder)
    if whole and path.name in _sealed.stored(folder):
        return
    if not changes.add("update" if folder.exists() else "create", folder):
        return
    if not files.receive(dataset["stream"], path, dataset["digest"]):
        raise FinetuneError(
            f"Dataset {dataset['name']!r} is not the file that was planned with.",
            where=dataset["file"],
            change="run again; if the file is being written to, wait for it",
        )
    _sealed.seal(folder, [path.name, *(_sealed.stored(folder) if whole else ())])


def _stage_media(media: dict[str, t.Any], changes: Changes) -> None:
    folder = Path(media["folder"])
    if not _sealed.intact(folder) and changes.add("update" if folder.exists() else "create", folder):
        _media_set.store(media["stream"], folder, media["digest"], _media_set.CONTENT)


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
    files.write_texts(run.path, stale)
    files.write_json(
        run.record,
        {
            "run": run.id,
            "request": spec["request"],
            "resolved": spec["resolved"],
            "predicted": _predicted(spec, record),
            "created": record.get("created", time.time()),
            "files": {**staged, **{name: _digest(text) for name, text in stale.items()}},
        },
    )


def _predicted(spec: t.Mapping[str, t.Any], record: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The memory that was predicted when the run was resolved: its measure is compared with that."""
    kept = record.get("predicted") if record.get("resolved") == spec["resolved"] else None
    return dict(kept or spec["predicted"])


def _stage_secrets(run: state.Run, secrets: dict[str, str], changes: Changes) -> None:
    """The one file a secret may be in: readable by the account alone, outside the folder of the run."""
    secrets = {name: str(value) for name, value in secrets.items()}
    if files.read_json(run.secrets) == secrets:
        return
    if not secrets:
        if changes.add("remove", run.secrets):
            run.secrets.unlink()
    elif changes.add("update" if run.secrets.exists() else "create", run.secrets):
        run.secrets.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.write_json(run.secrets, secrets, mode=0o600)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _digest_on_disk(path: Path) -> str:
    try:
        return files.sha256(path)
    except OSError:
        return ""
