# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The supervisor, for real: attempts, resumption, budget, stop, leases, and no process left behind.

torchrun is replaced by a small script (fake_torchrun); everything else is the real thing.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _changes, _place, _run
from ansible_collections.llmops.finetune.plugins.module_utils._engine import (
    checkpoint,
    files,
    lease,
    state,
    supervisor,
)
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

from .fake_torchrun import Staged
from .processes import lives, until


@pytest.fixture
def stage(tmp_path: Path) -> t.Iterator[t.Callable[..., Staged]]:
    made: list[Staged] = []

    def make(*acts: str, **launch: t.Any) -> Staged:
        made.append(Staged(tmp_path / "a b" / str(len(made)), acts, **launch))
        return made[-1]

    yield make
    for staged in made:
        for process in staged.started:
            process.kill()
            process.wait()
        for pid in staged.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


Stage = t.Callable[..., Staged]

# --- attempts ---


def test_a_run_that_ends_well_is_finished_with_its_results_recorded(stage: Stage) -> None:
    staged = stage("save=5 finish")
    assert staged.work() == 0
    assert state.observe(staged.run) == "finished"
    written = staged.written()
    assert (written["attempt"], written["from_step"], written["token"], "pid" in written) == (1, 0, "t1", False)
    assert list(files.read_json(staged.run.artefacts)) == [
        "output/adapter_model.safetensors",
        "output/trainer_log.jsonl",
    ]
    assert state.damaged(staged.run) == []
    assert staged.held() == {}
    (seen,) = staged.seen()
    assert (seen["told"], seen["resume"]) == ("yes", "")
    assert seen["argv"][:6] == [
        "-m",
        "torch.distributed.run",
        "--nnodes=1",
        "--node-rank=0",
        "--nproc-per-node=2",
        "--master-addr=127.0.0.1",
    ]
    assert seen["argv"][7:] == ["--max-restarts=0", "-m", "engine.rank"]


def test_what_ranks_took_is_kept_beside_what_was_predicted_and_is_one_of_the_results(stage: Stage) -> None:
    """Of the attempt that ended well alone, in the order of ranks."""
    acts = ("peak=1:1 peak=7:1 exit=1", "peak=10:2 peak=9:2 peak=0:2 finish")
    staged = stage(*acts)
    files.write_json(staged.run.record, {"run": staged.run.id, "predicted": {"reserved": 1}})
    assert staged.work() == 0
    told = files.read_json(staged.run.memory)
    assert told["predicted"] == {"reserved": 1}
    assert [(one["rank"], one["attempt"]) for one in told["measured"]] == [(0, 2), (9, 2), (10, 2)]
    assert "output/memory.json" in files.read_json(staged.run.artefacts) and state.damaged(staged.run) == []
    files.write_json(staged.run.memory, {**told, "predicted": {"reserved": 2}})
    assert state.damaged(staged.run) == ["output/memory.json has other content than the run left"]


def test_an_error_that_would_repeat_fails_at_once(stage: Stage) -> None:
    staged = stage("save=5 error=ValueError", "finish")
    assert staged.work() == 1
    written = staged.written()
    assert (written["state"], written["attempt"], written["diagnosis"]["kind"]) == ("failed", 1, "error")
    assert "said the rank" in written["diagnosis"]["what"]
    assert staged.held() == {}


def test_attempts_without_a_new_whole_checkpoint_use_up_the_budget(stage: Stage) -> None:
    staged = stage("exit=1", "torn=5 exit=1", "save=5 kill", "error=RuntimeError", "exit=1", "finish", max_restarts=2)
    assert staged.work() == 0, "two fruitless attempts, a fruitful one, two fruitless ones"
    assert staged.resumed_from() == ["", "", "", "checkpoint-5", "checkpoint-5", "checkpoint-5"]
    assert staged.written()["attempt"] == 6
    assert "diagnosis" not in staged.written()


def test_an_attempt_that_only_waited_for_another_node_does_not_count(stage: Stage) -> None:
    staged = stage(nnodes=2, max_restarts=0)
    staged.acts("nap=0.4 exit=1", "nap=0.4 exit=1", "save=5 finish", wait=0.2)
    assert staged.work() == 0
    assert staged.written()["attempt"] == 3
    other = stage("nap=0.1 exit=1", nnodes=2, max_restarts=0)
    assert other.work() == 1


def test_a_node_that_another_one_had_save_and_end_goes_on(stage: Stage) -> None:
    staged = stage("save=5 exit=0", "save=9 finish", nnodes=2, max_restarts=0)
    assert staged.work() == 0
    assert staged.resumed_from() == ["", "checkpoint-5"]


@pytest.mark.parametrize("rank", [0, 1])
def test_what_nodes_share_is_left_as_it_is_and_recorded_once(stage: Stage, tmp_path: Path, rank: int) -> None:
    """Ranks put it in order, when they have met; rank 0's node records the results."""
    (tmp_path / "team").mkdir()
    staged = stage("save=5 torn=8 exit=1", "finish", nnodes=2, node_rank=rank, shared=str(tmp_path / "team"))
    staged.run.output.symlink_to(tmp_path / "team")
    staged.acts("save=5 torn=8 exit=1", "finish")
    assert staged.work() == 0
    assert staged.resumed_from() == ["", "checkpoint-5"]
    assert (tmp_path / "team" / "checkpoint-8").is_dir()
    assert (tmp_path / "team" / "artefacts.json").exists() is (rank == 0)
    assert not (staged.run.path / "artefacts.json").exists()


def test_a_run_whose_storage_is_not_mounted_does_not_begin_anew(stage: Stage, tmp_path: Path) -> None:
    staged = stage("finish", shared=str(tmp_path / "team"))
    for linked in (False, True):
        if linked:
            staged.run.output.symlink_to(tmp_path / "team")
        assert staged.work() == 2
        assert (staged.written()["state"], staged.written()["diagnosis"]["kind"]) == ("interrupted", "storage")
    (tmp_path / "team").mkdir()
    assert staged.work() == 0 and staged.resumed_from() == [""]
    assert staged.written()["attempt"] == 1 and "diagnosis" not in staged.written()


def test_torchrun_that_waits_for_a_lost_node_is_ended_soon_after_the_first_error(stage: Stage) -> None:
    staged = stage("leave=PeerLost hang", "save=5 finish", nnodes=2)
    staged.acts("leave=PeerLost hang", "save=5 finish", aftermath=0.2)
    assert staged.work() == 0
    assert staged.written()["attempt"] == 2


def test_torchrun_that_waits_for_a_node_that_went_after_the_end_is_ended(stage: Stage) -> None:
    staged = stage("finish hang", nnodes=2)
    staged.acts("finish hang", aftermath=0.3)
    assert staged.work() == 0
    assert staged.written()["state"] == "finished" and files.read_json(staged.run.artefacts)


def test_a_node_that_was_lost_right_after_the_end_is_finished_when_it_is_back(stage: Stage) -> None:
    staged = stage("finish hang", nnodes=2)
    lost = staged.start()
    until(staged.run.trained.exists)
    lost.kill()
    lost.wait()
    assert staged.written()["state"] == "running"
    assert staged.work() == 0
    assert staged.written()["state"] == "finished" and files.read_json(staged.run.artefacts)
    assert len(staged.seen()) == 1


def test_a_used_up_budget_is_a_failure_with_the_last_diagnosis(stage: Stage) -> None:
    staged = stage("save=5 exit=1", "exit=1", "kill", "finish", max_restarts=1)
    assert staged.work() == 1
    written = staged.written()
    assert (written["state"], written["attempt"], written["diagnosis"]["kind"]) == ("failed", 3, "killed")
    staged.acts("", "", "", "finish")
    assert staged.work("t2") == 0, "asked again, the budget is new"
    assert staged.seen()[-1]["attempt"] == 4


def test_a_resumed_attempt_finds_no_torn_checkpoint_and_no_log_lines_past_its_start(stage: Stage) -> None:
    staged = stage("save=5 torn=10 kill", "save=10 finish")
    assert staged.work() == 0
    assert staged.resumed_from() == ["", "checkpoint-5"]
    assert staged.written()["from_step"] == 5
    log = [json.loads(line) for line in staged.run.trainer_log.read_text(encoding="utf-8").splitlines()]
    assert [(line["current_steps"], line["attempt"]) for line in log] == [(5, 1), (10, 2)]
    assert checkpoint.is_complete(staged.run.output / "checkpoint-10")


def test_an_end_without_the_trainers_word_is_not_finished(stage: Stage) -> None:
    staged = stage("exit=0", max_restarts=0)
    assert staged.work() == 1
    assert staged.written()["state"] == "failed"


def test_a_unit_started_again_after_the_end_does_nothing(stage: Stage) -> None:
    staged = stage("finish")
    assert (staged.work(), staged.work()) == (0, 0)
    assert len(staged.seen()) == 1


# --- ends that are asked for ---


def test_a_stop_saves_and_the_run_stays_stopped(stage: Stage) -> None:
    staged = stage("save=5 beat rank wait=7", "finish")
    process = staged.start()
    until(lambda: len(staged.pids()) == 2)
    changes = _changes.Changes(dry=True)
    assert _run.stop(staged.run, changes, patience=20)["state"] == "running", "check mode stops nothing"
    done = _changes.Changes(dry=False)
    assert _run.stop(staged.run, done, patience=20)["state"] == "stopped"
    assert changes.made == done.made == [{"action": "stop", "path": str(staged.run.path)}]
    assert process.wait(5) == 0
    assert checkpoint.newest_complete(staged.run.output) == staged.run.output / "checkpoint-7"
    assert not any(map(lives, staged.pids()))
    assert staged.held() == {}


def test_a_sigterm_interrupts_and_the_next_start_goes_on(stage: Stage) -> None:
    staged = stage("beat wait=7", "finish")
    process = staged.start()
    until(lambda: "step" in files.read_json(staged.run.progress))
    process.terminate()
    assert process.wait(10) == 2
    assert state.observe(staged.run) == "interrupted"
    assert staged.work("t2") == 0
    assert staged.resumed_from() == ["", "checkpoint-7"]


def test_a_stop_of_long_ago_does_not_make_a_later_sigterm_a_stop(stage: Stage) -> None:
    staged = stage("hang")
    files.write_json(staged.run.stop_request, {"time": 0})
    process = staged.start()
    until(staged.seen)
    process.terminate()
    assert process.wait(10) == 2, "it has made no step: there is nothing to wait for"
    assert state.observe(staged.run) == "interrupted"


def test_ranks_that_do_not_answer_are_killed_after_the_grace(stage: Stage) -> None:
    staged = stage("beat rank hang", grace_seconds=0.3)
    process = staged.start()
    until(lambda: len(staged.pids()) == 2)
    process.terminate()
    assert process.wait(10) == 2
    assert not any(map(lives, staged.pids()))


def test_a_killed_supervisor_leaves_no_process_and_no_lease(stage: Stage) -> None:
    staged = stage("save=5 beat rank hang", "finish")
    process = staged.start()
    until(lambda: len(staged.pids()) == 2)
    assert list(staged.held()) == ["cpu"]
    assert all(map(lives, staged.pids()))
    process.kill()
    process.wait()
    until(lambda: not any(map(lives, staged.pids())))
    assert staged.held() == {}
    assert state.observe(staged.run) == "interrupted"
    assert staged.work("t2") == 0
    assert staged.resumed_from() == ["", "checkpoint-5"]


def test_a_process_that_slipped_away_is_ended_with_its_attempt(stage: Stage) -> None:
    staged = stage("orphan exit=1", "finish")
    assert staged.work() == 0
    assert len(staged.pids()) == 3
    assert not any(map(lives, staged.pids()))


def test_a_rank_that_outlived_its_supervisor_does_not_train(stage: Stage) -> None:
    staged = stage("")
    done = subprocess.run([sys.executable, "-m", "engine.rank"], cwd=staged.run.path, check=False, capture_output=True)
    assert (done.returncode, done.stderr, list(staged.run.logs.iterdir())) == (1, b"", [])


# --- refusals ---


def test_a_held_lease_refuses_the_start_and_names_the_holder(stage: Stage) -> None:
    staged = stage("finish")
    holder = {"run": "theirs-00000000", "user": "ada", "pid": 42}
    held = lease.acquire(["cpu"], holder, Path(staged.launch["lease_dir"]))
    assert staged.work() == 3
    refusal = files.read_json(staged.run.refusal)
    assert (refusal["key"], refusal["holder"], refusal["token"]) == ("cpu", holder, "t1")
    with pytest.raises(FinetuneError, match=r"held by run theirs-00000000 \(user ada, process 42\)"):
        _run.wait_until_started(staged.run, "t1")
    assert (staged.seen(), state.observe(staged.run)) == ([], "staged")
    os.close(*held)
    assert staged.work("t2") == 0
    assert not staged.run.refusal.exists()


def test_a_second_supervisor_of_a_run_is_refused_and_the_first_goes_on(stage: Stage) -> None:
    staged = stage("beat wait=7")
    first = staged.start("t1")
    until(lambda: "step" in files.read_json(staged.run.progress))
    assert staged.work("t2") == 3
    refusal = files.read_json(staged.run.refusal)
    assert (refusal["token"], "running already" in refusal["message"]) == ("t2", True)
    assert first.poll() is None
    assert staged.written()["token"] == "t1"
    assert len(staged.seen()) == 1


def test_leases_that_cannot_be_written_are_told(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    staged = stage("finish", lease_dir=str(tmp_path / "file/leases"))
    assert staged.work() == 3
    assert "cannot be taken" in files.read_json(staged.run.refusal)["message"]


# --- several nodes ---


@pytest.mark.parametrize(
    ("together", "before", "waits"), [(True, "", False), (False, "", True), (True, "t1", True), (True, "t0", False)]
)
def test_what_listens_for_the_others_is_an_earlier_rendezvous_unless_all_begin(
    stage: Stage, together: bool, before: str, waits: bool
) -> None:
    """The same token again is a node that came back: the others may not have noticed yet that it was gone."""
    with socket.socket() as first:
        first.bind(("127.0.0.1", 0))
        first.listen()
        staged = stage("beat wait=7", nnodes=2, node_rank=1, master_port=first.getsockname()[1])
        if before:
            files.write_json(staged.run.state, {"state": "interrupted", "token": before})
        staged.start(together=together)
        until(lambda: staged.written().get("state") == "running")
        if waits:
            time.sleep(1.5)
            assert not staged.seen()
        else:
            until(staged.seen)
    until(staged.seen)


def test_where_all_begin_the_first_node_may_still_hold_its_place(stage: Stage) -> None:
    """A listener speaks to whoever calls: torchrun, which would not understand it, waits until it is gone."""
    first = socket.create_server(("127.0.0.1", 0))
    port, calls = first.getsockname()[1], []

    def speak() -> None:
        with contextlib.suppress(OSError):
            while True:
                line = first.accept()[0]
                calls.append(1)
                line.sendall(b"{}")
                line.close()

    threading.Thread(target=speak, daemon=True).start()
    staged = stage("beat wait=7", nnodes=2, node_rank=1, master_port=port)
    staged.start(together=True)
    until(lambda: len(calls) > 3)
    assert not staged.seen()
    first.shutdown(socket.SHUT_RDWR)
    first.close()
    until(staged.seen)


# --- through the module's functions ---


def test_a_start_is_answered_once_the_leases_are_held(stage: Stage) -> None:
    staged = stage("beat wait=7")
    spec = {"folder": str(staged.run.path), "launch": staged.launch, "together": False}
    token = _run.ask_start(spec, _changes.Changes(dry=False))
    pid = _place.spawn(staged.run, spec, "supervisor")
    answer = _run.wait_until_started(staged.run, token, pid)
    assert (answer["state"], answer["attempt"], answer["from_step"]) == ("running", 1, 0)
    assert staged.held()["cpu"]["pid"] == pid
    assert os.getsid(pid) == pid, "it does not die with the session that started it"
    assert _run.ask_start(spec, _changes.Changes(dry=False)) == ""
    assert _run.stop(staged.run, _changes.Changes(dry=False), patience=20)["state"] == "stopped"
    os.waitpid(pid, 0)


# --- stalls ---


def test_a_run_without_a_first_step_is_ended(stage: Stage) -> None:
    staged = stage("rank hang", start_deadline_seconds=0.5, max_restarts=0)
    assert staged.work() == 1
    assert staged.written()["diagnosis"]["kind"] == "stalled"
    assert not any(map(lives, staged.pids()))


@pytest.mark.parametrize(
    ("beat", "began", "says"),
    [
        ({}, 59, ""),
        ({}, 61, "No step was made within 60 s"),
        ({"phase": "loading", "time": 0}, 61, "No step was made within 60 s"),
        ({"median_step_seconds": 1.0, "time": -299}, 1000, ""),
        ({"median_step_seconds": 1.0, "time": -301}, 1000, "No step for 301 s, 300 s allowed"),
        ({"median_step_seconds": 60.0, "time": -599}, 1000, ""),
        ({"median_step_seconds": 60.0, "time": -601}, 1000, "No step for 601 s, 600 s allowed"),
    ],
)
def test_a_stall_is_ten_times_the_usual_step_and_five_minutes(
    tmp_path: Path, beat: dict[str, t.Any], began: float, says: str
) -> None:
    run = state.Run(tmp_path)
    files.write_json(run.launch, {"start_deadline_seconds": 60})
    now = 10_000.0
    if beat:
        files.write_json(run.progress, {**beat, "time": now + beat["time"]})
    assert supervisor.Supervisor(run)._stalled(now - began, now)[: len(says) or None] == says


def test_the_temp_folder_of_a_killed_supervisor_goes_with_the_next_start(stage: Stage) -> None:
    staged = stage("finish")
    left = Path(tempfile.mkdtemp(prefix="llmops-"))
    (left / "torchelastic_x").mkdir()
    files.write_json(staged.run.scratch, {"path": str(left)})
    assert staged.work() == 0
    assert not left.exists()
    assert not Path(files.read_json(staged.run.scratch)["path"]).exists()


def test_only_a_temp_folder_of_ours_is_removed(stage: Stage, tmp_path: Path) -> None:
    staged = stage("finish")
    files.write_json(staged.run.scratch, {"path": str(tmp_path)})
    assert staged.work() == 0
    assert tmp_path.exists()
