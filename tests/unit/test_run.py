# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run on a node: staged once, put back when tampered with, refused when failed; check mode tells the same.

The node's python is a small script here: it stands for `python -m engine.base_model`.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import (
    _changes,
    _node,
    _place,
    _remove,
    _run,
    _sealed,
    _stage,
    _state,
)
from ansible_collections.llmops.finetune.plugins.module_utils._engine import files, lease, state
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

Spec = dict[str, t.Any]
DATA = b'{"instruction": "Why?", "output": "So."}\n'


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test can see what fsync does; it costs seconds here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root with a blank"
    folder.mkdir()
    return folder


def spec(root: Path, **changes: t.Any) -> Spec:
    digest = hashlib.sha256(DATA).hexdigest()
    folder = root / "datasets" / digest[:16]
    return {
        "id": "x-00000000",
        "user": "me",
        "folder": str(root / "runs/x-00000000"),
        "request": {"name": "x"},
        "resolved": {"world_size": 1},
        "predicted": {},
        "unread": {},
        "before": [],
        "fetched": {},
        "environment": {"lock": "node-main", "digest": "0" * 16, "current": True},
        "files": {"train.yaml": "stage: sft\n", "launch.json": "{}\n"},
        "engine": {"__init__.py": "", "rank.py": "# rank\n"},
        "datasets": [
            {
                "name": "a",
                "digest": digest,
                "folder": str(folder),
                "file": str(folder / "data.jsonl"),
                "stream": io.BytesIO(DATA),
            }
        ],
        "media": {},
        "tokens": {},
        "model": {"build": False, "hub": "", "local": "", "path": "org/model", "identity": ""},
        "root": str(root),
        "compared": False,
        "listens": False,
        "together": True,
        "launch": {
            "python": sys.executable,
            "nnodes": 1,
            "environment": {},
            "leases": ["cpu"],
            "lease_dir": str(root / "leases"),
        },
        **changes,
    }


def stage(wanted: Spec, *, retry: bool = False) -> tuple[dict[str, t.Any], list[tuple[str, str]]]:
    """Stage in check mode, then for real. Both must tell the same, and check mode must write nothing."""
    root = Path(wanted["folder"]).parents[1]
    before = tree(root)
    dry, made = _changes.Changes(dry=True), _changes.Changes(dry=False)
    predicted = _stage.stage(wanted, dry, retry=retry)
    assert tree(root) == before, "check mode wrote something"
    answer = _stage.stage(wanted, made, retry=retry)
    assert dry.made == made.made
    assert answer["state"] == predicted["state"]
    return answer, [(change["action"], Path(change["path"]).name) for change in made.made]


def next_step(answer: dict[str, t.Any], *, retry: bool = False) -> str:
    """What an apply does with a run that is staged so."""
    return _state.next_step(answer["state"], retry=retry)


def tree(root: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in root.rglob("*")
    }


def run_of(wanted: Spec) -> state.Run:
    return state.Run(Path(wanted["folder"]))


FIRST = [
    ("create", hashlib.sha256(DATA).hexdigest()[:16]),
    ("create", "launch.json"),
    ("create", "train.yaml"),
    ("create", "engine"),
]


def test_an_environment_that_is_gone_and_not_made_any_more_is_told(tmp_path: Path) -> None:
    wanted = spec(tmp_path)
    old, python = {**wanted["environment"], "current": False}, "/nowhere/envs/0/bin/python"
    stage({**wanted, "environment": old})  # it is there
    gone = {**wanted, "environment": old, "launch": {**wanted["launch"], "python": python}}
    with pytest.raises(FinetuneError, match=r"Environment node-main 0{16}.* is not on this node") as refusal:
        stage(gone)
    assert refusal.value.where == "/nowhere/envs/0" and "train_lock" in refusal.value.change
    stage({**gone, "environment": wanted["environment"]})  # it will be made
    stage({**gone, "environment": {**old, "digest": ""}})  # there is no lock: the plan told it, and holds an apply back


def test_a_run_is_staged_once(root: Path) -> None:
    answer, changes = stage(spec(root))
    assert (answer["state"], next_step(answer), changes) == ("staged", "start", FIRST)
    run = run_of(spec(root))
    record = files.read_json(run.record)
    assert (record["run"], record["request"], record["resolved"]) == ("x-00000000", {"name": "x"}, {"world_size": 1})
    assert (run.path / "engine/rank.py").read_text(encoding="utf-8") == "# rank\n"
    assert Path(spec(root)["datasets"][0]["file"]).read_bytes() == DATA
    assert run.logs.is_dir()
    before = tree(root)
    assert stage(spec(root))[1] == []
    assert tree(root) == before


def test_a_dataset_that_could_not_be_read_is_not_trained_on(root: Path) -> None:
    """Check mode may still be without the environment that reads it."""
    wanted = spec(root, unread={"a": "x: no environment with pyarrow is there yet"})
    assert next_step(_stage.stage(wanted, _changes.Changes(dry=True), retry=False)) == "start"
    with pytest.raises(FinetuneError) as refusal:
        _stage.stage(wanted, _changes.Changes(dry=False), retry=False)
    assert "records of a" in refusal.value.what and "no environment" in refusal.value.where
    assert ".jsonl" in refusal.value.change
    assert tree(root) == {}


@pytest.mark.parametrize(
    ("tamper", "told"),
    [
        (lambda run: run.config.write_text("stage: pt\n"), [("update", "train.yaml")]),
        (lambda run: run.config.unlink(), [("create", "train.yaml")]),
        (lambda run: (run.path / "engine/rank.py").write_text("evil"), [("update", "engine")]),
        (lambda run: (run.path / "engine/rank.py").unlink(), [("update", "engine")]),
    ],
)
@pytest.mark.parametrize("written", ["", "finished"])
def test_a_staged_file_that_was_edited_is_put_back(
    root: Path, tamper: t.Callable[[state.Run], t.Any], told: list[tuple[str, str]], written: str
) -> None:
    stage(spec(root))
    run = run_of(spec(root))
    if written:
        finish(run)
    tamper(run)
    assert stage(spec(root))[1] == told
    assert run.config.read_text(encoding="utf-8") == "stage: sft\n"
    assert (run.path / "engine/rank.py").read_text(encoding="utf-8") == "# rank\n"
    assert stage(spec(root))[1] == []


def test_a_run_about_to_start_takes_what_is_wanted_now_and_a_finished_one_keeps_what_it_ran_with(root: Path) -> None:
    stage(spec(root))
    newer = {"files": {"train.yaml": "stage: sft\nseed: 1\n", "launch.json": "{}\n"}}
    assert stage(spec(root, **newer))[1] == [("update", "train.yaml")]
    created = files.read_json(run_of(spec(root)).record)["created"]
    finish(run_of(spec(root)))
    assert stage(spec(root))[1] == []
    assert "seed" in run_of(spec(root)).config.read_text(encoding="utf-8")
    assert files.read_json(run_of(spec(root)).record)["created"] == created


# --- datasets ---


@pytest.mark.parametrize("tamper", ["truncate", "delete"])
def test_a_damaged_dataset_is_stored_again(root: Path, tamper: str) -> None:
    stage(spec(root))
    path = Path(spec(root)["datasets"][0]["file"])
    path.unlink() if tamper == "delete" else os.truncate(path, 3)
    assert stage(spec(root))[1] == [("update", path.parent.name)]
    assert path.read_bytes() == DATA
    assert stage(spec(root))[1] == []


def test_other_bytes_than_planned_are_refused_and_not_kept(root: Path) -> None:
    wanted = spec(root)
    wanted["datasets"][0]["stream"] = io.BytesIO(DATA + b"more")
    with pytest.raises(FinetuneError, match="'a' is not the file that was planned with"):
        _stage.stage(wanted, _changes.Changes(dry=False), retry=False)
    assert list(Path(wanted["datasets"][0]["folder"]).iterdir()) == []
    assert not run_of(wanted).record.exists()


def test_the_same_bytes_under_another_ending_are_a_file_of_their_own(root: Path) -> None:
    stage(spec(root))
    wanted = spec(root)
    folder = Path(wanted["datasets"][0]["folder"])
    wanted["datasets"][0]["file"] = str(folder / "data.json")
    assert ("update", folder.name) in stage(wanted)[1]
    assert _node.datasets(root) == [f"{folder.name}/data.json", f"{folder.name}/data.jsonl"]


def test_a_record_that_was_emptied_is_written_again_and_told(root: Path) -> None:
    stage(spec(root))
    run_of(spec(root)).record.write_text("", encoding="utf-8")
    assert ("update", "run.json") in stage(spec(root))[1]
    assert files.read_json(run_of(spec(root)).record)["request"] == {"name": "x"}
    assert stage(spec(root))[1] == []


def test_a_model_that_another_apply_makes_is_waited_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = with_model(root)
    made: list[Path] = []

    def lock(path: Path, patience: float) -> int:  # the other one is done once we have the lock
        made.append(path)
        monkeypatch.setattr(_sealed, "model_intact", lambda folder, identity: True)
        return os.open(os.devnull, os.O_RDONLY)

    monkeypatch.setattr(files, "lock", lock)
    assert ("build", "demo@id1") in [(c["action"], Path(c["path"]).name) for c in staged_changes(wanted)]
    assert len(made) == 1 and not (root / "models/demo@id1").exists(), "it was not made twice"


def staged_changes(wanted: Spec) -> list[dict[str, str]]:
    changes = _changes.Changes(dry=False)
    _stage.stage(wanted, changes, retry=False)
    return changes.made


# --- the embedded model ---

BUILD = """import json, hashlib, pathlib, sys
assert sys.argv[1:3] == ["-m", "engine.base_model"], sys.argv
corpus, output = (pathlib.Path(sys.argv[sys.argv.index(word) + 1]) for word in ("--corpus", "--output"))
if corpus.read_text() == "bad":
    sys.exit("no tokens in it")
output.mkdir()
(output / "w").write_bytes(b"w")
digests = {"w": hashlib.sha256(b"w").hexdigest()}
(output / "manifest.json").write_text(json.dumps({"identity": "id1", "files": digests}))
"""


def with_model(root: Path, corpus: str = "text") -> Spec:
    build = root.parent / "build.py"
    build.write_text(BUILD, encoding="utf-8")
    script = root.parent / "python"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{build}" "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    model = {
        "build": True,
        "hub": "",
        "local": "",
        "path": str(root / "models/demo@id1"),
        "identity": "id1",
        "corpus": corpus,
    }
    wanted = spec(root, model=model)
    wanted["launch"]["python"] = str(script)
    return wanted


def test_the_model_is_built_once_and_again_when_damaged(root: Path) -> None:
    assert ("build", "demo@id1") in stage(with_model(root))[1]
    assert [path.name for path in (root / "models").iterdir()] == ["demo@id1"]
    assert stage(with_model(root))[1] == []
    (root / "models/demo@id1/w").write_bytes(b"W")
    assert stage(with_model(root))[1] == [("update", "demo@id1")]
    assert _node.models(root) == ["demo@id1"]


def test_a_build_that_fails_is_told_with_its_last_words(root: Path) -> None:
    with pytest.raises(FinetuneError, match="could not be made") as failure:
        _stage.stage(with_model(root, "bad"), _changes.Changes(dry=False), retry=False)
    assert "no tokens in it" in failure.value.where
    assert list((root / "models").iterdir()) == []


# --- what was predicted ---


def test_the_prediction_is_that_of_the_resolution(root: Path) -> None:
    first, later = {"reserved": 1}, {"reserved": 2}
    edited = {"train.yaml": "stage: pt\n", "launch.json": "{}\n"}

    def kept(**changes: t.Any) -> t.Any:
        stage(spec(root, **changes))
        return files.read_json(run_of(spec(root)).record)["predicted"]

    assert kept(predicted=first) == first
    assert kept(predicted=later) == kept(predicted=later, files=edited) == first
    assert kept(predicted=later, resolved={"world_size": 2}) == later, "it is resolved anew"
    run_of(spec(root)).record.unlink()
    assert kept() == {}
    assert kept(predicted=later, files=edited) == later, "an earlier release had none"


# --- runs that were there before ---


def finish(run: state.Run) -> None:
    (run.output / "adapter_model.safetensors").write_bytes(b"weights")
    files.write_json(run.artefacts, state.inventory(run))
    files.write_json(run.state, {"state": "finished", "attempt": 1})


def test_a_finished_run_is_left_alone(root: Path) -> None:
    stage(spec(root))
    finish(run_of(spec(root)))
    answer, changes = stage(spec(root))
    assert (answer["state"], next_step(answer), changes) == ("finished", "nothing", [])
    assert answer["summary"]["weights"] == [str(run_of(spec(root)).output / "adapter_model.safetensors")]
    tokenized = spec(root, tokens={"folder": str(root / "tokenized/abc")})
    assert stage(tokenized)[1] == [], "nobody will read them"


def test_a_damaged_result_is_refused_and_restored_when_asked(root: Path) -> None:
    stage(spec(root))
    run = run_of(spec(root))
    finish(run)
    (run.output / "adapter_model.safetensors").unlink()
    for dry in (True, False):
        with pytest.raises(FinetuneError) as refusal:
            _stage.stage(spec(root), _changes.Changes(dry=dry), retry=False)
        assert "adapter_model.safetensors is gone" in refusal.value.where
        assert "train_retry=true" in refusal.value.change
    answer, changes = stage(spec(root), retry=True)
    assert (next_step(answer, retry=True), changes) == ("start", [("remove", "artefacts.json")])
    assert state.observe(run) == "interrupted"


def test_a_failed_run_is_refused_with_its_diagnosis_and_started_again_when_asked(root: Path) -> None:
    stage(spec(root))
    run = run_of(spec(root))
    told = {"what": "The disk is full.", "change": "free space"}
    files.write_json(run.state, {"state": "failed", "attempt": 2, "diagnosis": told})
    run.log(2).write_text("line\nlast words\n", encoding="utf-8")
    for dry in (True, False):
        with pytest.raises(FinetuneError) as refusal:
            _stage.stage(spec(root), _changes.Changes(dry=dry), retry=False)
        assert "attempt 2. The disk is full." in refusal.value.what
        assert "free space" in refusal.value.change
        assert "train_retry=true" in refusal.value.change
        assert refusal.value.where.split("\n          ") == [str(run.log(2)), "line", "last words"]
    assert next_step(stage(spec(root), retry=True)[0], retry=True) == "start"
    assert _run.report(run)["tail"] == ["line", "last words"]


@pytest.mark.parametrize(("written", "step"), [("stopped", "nothing"), ("interrupted", "start"), ("running", "start")])
def test_a_stopped_run_stays_so_and_an_interrupted_one_goes_on(root: Path, written: str, step: str) -> None:
    stage(spec(root))
    files.write_json(run_of(spec(root)).state, {"state": written, "attempt": 1})
    assert next_step(stage(spec(root))[0]) == step


# --- start, stop, remove ---


def test_a_start_leaves_a_token_unless_the_run_lives_or_a_lease_is_held(root: Path) -> None:
    stage(spec(root))
    run = run_of(spec(root))
    dry, made = _changes.Changes(dry=True), _changes.Changes(dry=False)
    assert _run.ask_start(spec(root), dry) == ""
    assert not run.start_request.exists()
    token = _run.ask_start(spec(root), made)
    assert dry.made == made.made == [{"action": "start", "path": str(run.path)}]
    assert files.read_json(run.start_request) == {"token": token, "together": True}
    held = lease.acquire(["cpu"], {"run": "theirs", "user": "ada", "pid": 42}, root / "leases")
    with pytest.raises(FinetuneError, match="held by run theirs") as refusal:
        _run.ask_start(spec(root), _changes.Changes(dry=False))
    assert refusal.value.where == str(run.path)
    assert "-e train_run_id=theirs -e train_user=ada" in refusal.value.change
    assert _run.ask_start(spec(root), _changes.Changes(dry=True)) == "", "a plan is no apply"
    living = files.lock(run.lock)
    assert living is not None
    assert _run.ask_start(spec(root), _changes.Changes(dry=False)) == "", "a living run is adopted"
    for descriptor in (*held, living):
        os.close(descriptor)


def test_a_place_that_was_given_up_is_free_at_once(root: Path) -> None:
    """A process that ends loses its command line first, then its memory, and its locks after that."""
    run = state.Run(root / "runs" / "x-00000000")
    run.path.mkdir(parents=True)
    lock = root / "cpu"
    holder = (
        "import fcntl, os, sys, time\n"
        f"descriptor = os.open({str(lock)!r}, os.O_RDWR | os.O_CREAT)\n"
        "fcntl.flock(descriptor, fcntl.LOCK_EX)\n"
        "held = bytearray(os.urandom(1 << 20) * 600)\n"
        "print('held', flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", holder, "engine.listener"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        files.write_json(run.listening, {"pid": process.pid})
        _place.release(run)
        assert not files.locked(lock) and not run.listening.exists()


def test_a_supervisor_that_never_answers_is_told_with_its_log(root: Path) -> None:
    stage(spec(root))
    run = run_of(spec(root))
    (run.logs / "supervisor.log").write_text("no such module\n", encoding="utf-8")
    with pytest.raises(FinetuneError, match="did not start") as failure:
        _run.wait_until_started(run, "token", pid=2**22 + 1)
    assert "no such module" in failure.value.where


def test_nothing_is_stopped_where_nothing_runs(root: Path) -> None:
    stage(spec(root))
    changes = _changes.Changes(dry=False)
    assert _run.stop(run_of(spec(root)), changes, patience=1)["state"] == "staged"
    assert changes.made == []


def test_a_removed_run_leaves_its_dataset(root: Path) -> None:
    stage(spec(root))
    run = run_of(spec(root))
    dry, made = _changes.Changes(dry=True), _changes.Changes(dry=False)
    assert _remove.remove(run, dry, patience=1)["state"] == "staged"
    assert _remove.remove(run, made, patience=1)["state"] == "absent"
    assert dry.made == made.made == [{"action": "remove", "path": str(run.path)}]
    assert not run.path.exists()
    assert Path(spec(root)["datasets"][0]["file"]).exists()
    again = _changes.Changes(dry=False)
    assert _remove.remove(run, again, patience=1)["state"] == "absent"
    assert again.made == []


def test_runs_are_found_by_id_by_name_or_all(root: Path) -> None:
    for run_id in ("a-00000001", "a-00000002", "a-b-00000003"):
        (root / "runs" / run_id).mkdir(parents=True)
        files.write_json(root / "runs" / run_id / "run.json", {"run": run_id})
    (root / "runs/empty").mkdir()

    files.write_json(root / "runs/a-00000002/run.json", {"run": "a-00000002", "created": -1.0})

    def found(run_id: str, name: str) -> list[str]:
        return [run.id for run in _run.find(root, run_id, name)]

    assert found("a-00000002", "") == ["a-00000002"]
    assert found("", "a") == ["a-00000002", "a-00000001"], "oldest first"
    assert found("a-*1", "") == ["a-00000001"]
    assert found("a-b*", "a") == ["a-b-00000003"]
    assert found("c*", "") == []
    for wrong in ("../a", "a/b", "[a]", "a b"):
        with pytest.raises(FinetuneError, match="is no id of a run"):
            _run.find(root, wrong, "")
    assert found("", "a-b") == ["a-b-00000003"]
    assert found("", "") == ["a-00000002", "a-00000001", "a-b-00000003"]


def test_results_are_those_of_finished_runs_with_their_digests(root: Path) -> None:
    wanted = spec(root)
    stage(wanted)
    run = state.Run(Path(wanted["folder"]))
    assert _run.results(root, run.id, "") == {}
    (run.output / "adapter_model.safetensors").write_bytes(b"weights")
    (run.output / "checkpoint-4").mkdir()
    (run.output / "checkpoint-4" / "optimizer.pt").write_bytes(b"state")
    files.write_json(run.artefacts, state.inventory(run))
    files.write_json(run.state, {"state": "finished", "attempt": 1})
    found = _run.results(root, "", "x")
    path = str(run.output / "adapter_model.safetensors")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert found == {f"{run.id}/adapter_model.safetensors": {"path": path, "sha256": digest, "size": 7}}
