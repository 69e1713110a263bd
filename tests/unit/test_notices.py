# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What EC2 says of an instance's end, from a stand-in of its metadata, and what a supervisor does about it; with the
sender beside the ranks."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
import time
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _changes, _explain, _run
from ansible_collections.llmops.finetune.plugins.module_utils._engine import checkpoint, files, notices, state

from . import processes, stored
from .fake_torchrun import Staged
from .stored import S3, Metadata

TERMINATE = {"action": "terminate", "time": "2026-11-29T05:02:00Z"}
REBALANCE = {"noticeTime": "2026-11-29T05:00:00Z"}
RECOMMENDED = "EC2 recommends since 2026-11-29T05:00:00Z to leave this spot instance (rebalance recommendation)."
TERMINATES = "EC2 terminates this spot instance at 2026-11-29T05:02:00Z."


@pytest.fixture
def metadata() -> t.Iterator[Metadata]:
    served = Metadata()
    yield served
    served.close()


s3 = stored.server  # a fixture


@pytest.fixture
def stage(tmp_path: Path, s3: S3) -> t.Iterator[t.Callable[..., Staged]]:
    made: list[Staged] = []

    def make(*acts: str, secrets: dict[str, str] | None = None, store: bool = True, **launch: t.Any) -> Staged:
        url = f"s3://runs/{tmp_path.name}/{len(made)}"
        told = {"store": {"url": url, "python": sys.executable, "keep": 0}} if store else {}
        staged = Staged(tmp_path / str(len(made)), acts, notices=["interruption", "rebalance"], **told, **launch)
        source = staged.run.path / "engine" / "notices.py"
        source.write_text(source.read_text().replace("POLL_SECONDS = 5.0", "POLL_SECONDS = 0.2"))
        staged.run.secrets.parent.mkdir()
        files.write_json(staged.run.secrets, {**s3.variables, "AWS_MAX_ATTEMPTS": "1", **(secrets or {})})
        made.append(staged)
        return staged

    yield make
    for staged in made:
        for process in staged.started:
            process.kill()
            process.wait()
        for pid in staged.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


Stage = t.Callable[..., Staged]


def hears(metadata: Metadata) -> dict[str, str]:
    return {notices.DISABLED: "false", notices.ENDPOINT: metadata.address}


until = functools.partial(processes.until, within=120)


def steps(s3: S3, staged: Staged) -> list[str]:
    """Steps of the checkpoints that count in the store."""
    prefix = f"{staged.launch['store']['url'].removeprefix('s3://runs/')}/manifests/"
    found = s3.client.list_objects_v2(Bucket="runs", Prefix=prefix).get("Contents", ())
    return sorted(entry["Key"].removeprefix(prefix).partition("-")[0] for entry in found)


# What is said


@pytest.mark.parametrize(
    ("vendor", "hypervisor", "variables", "where"),
    [
        ("Amazon EC2", "", {}, "http://169.254.169.254"),
        ("Xen", "ec2e1916-9099-7caf-fd21-012345abcdef", {}, "http://169.254.169.254"),
        ("QEMU", "", {}, ""),
        ("Xen", "00e1916-9099", {}, ""),
        ("QEMU", "", {notices.ENDPOINT: "http://127.0.0.1:8/"}, "http://127.0.0.1:8"),
        ("Amazon EC2", "", {notices.DISABLED: "true"}, ""),
        ("Amazon EC2", "", {notices.DISABLED: "True", notices.ENDPOINT: "http://127.0.0.1:8"}, ""),
    ],
)
def test_instances_of_ec2_are_asked_and_no_other_host(
    tmp_path: Path, vendor: str, hypervisor: str, variables: dict[str, str], where: str
) -> None:
    for name, text in (("class/dmi/id/sys_vendor", vendor), ("hypervisor/uuid", hypervisor)):
        if text:
            (tmp_path / name).parent.mkdir(parents=True)
            (tmp_path / name).write_text(text + "\n")
    assert notices.address(variables, tmp_path) == where


@pytest.mark.parametrize(
    ("kind", "told", "sentence"),
    [
        ("interruption", TERMINATE, TERMINATES),
        ("interruption", {**TERMINATE, "action": "hibernate"}, TERMINATES.replace("terminates", "hibernates")),
        ("interruption", {"action": "new", "time": "x"}, "EC2 takes back this spot instance at x."),
        ("rebalance", REBALANCE, RECOMMENDED),
    ],
)
def test_a_notice_is_a_sentence(kind: str, told: dict[str, str], sentence: str) -> None:
    assert notices.sentence(kind, told) == sentence


def test_the_metadata_tell_with_a_token_that_is_renewed(metadata: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    asked = notices.Metadata(metadata.address)
    assert asked.notice("interruption") == {} and asked.notice("rebalance") == {}
    assert metadata.asked == [f"/latest/meta-data/{path}" for path in notices.PATHS.values()]
    metadata.said = {"spot/instance-action": TERMINATE, "events/recommendations/rebalance": REBALANCE}
    assert asked.notice("interruption") == TERMINATE and asked.notice("rebalance") == REBALANCE
    metadata.token = 7
    assert asked.notice("interruption") == TERMINATE and metadata.token == 8
    assert notices.Metadata("http://127.0.0.1:9").notice("rebalance") == {}


# What a supervisor does


@pytest.mark.parametrize(
    ("path", "said", "sentence"),
    [("spot/instance-action", TERMINATE, TERMINATES), ("events/recommendations/rebalance", REBALANCE, RECOMMENDED)],
)
def test_a_notice_leads_to_a_checkpoint_in_the_store_and_the_run_is_interrupted(
    stage: Stage, metadata: Metadata, s3: S3, path: str, said: dict[str, str], sentence: str
) -> None:
    staged = stage("beat wait=7", "save=9 finish", secrets=hears(metadata))
    process = staged.start()
    until(lambda: "step" in files.read_json(staged.run.progress))
    metadata.said = {path: said}
    assert process.wait(180) == 2
    assert state.observe(staged.run) == "interrupted" and steps(s3, staged) == ["7"]
    report = _run.report(staged.run)
    assert report["diagnosis"]["what"] == sentence and report["progress"]["stored"] == 7
    refusal = str(_explain.why({"a": report}))
    assert f"was interrupted. {sentence}" in refusal and "the same command again" in refusal
    assert staged.work("t2") == 0, "the same notice, which was heard, does not end it again"
    assert staged.resumed_from() == ["", "checkpoint-7"] and steps(s3, staged) == ["7", "9"]
    assert "diagnosis" not in staged.written()


def test_only_what_is_asked_for_is_obeyed(stage: Stage, metadata: Metadata) -> None:
    staged = stage("beat nap=1 finish", secrets=hears(metadata), store=False)
    files.write_json(staged.run.launch, {**staged.launch, "notices": ["interruption"]})
    metadata.said = {"events/recommendations/rebalance": REBALANCE}
    assert staged.work() == 0
    assert set(metadata.asked) == {"/latest/meta-data/spot/instance-action"}
    before = len(metadata.asked)
    files.write_json(staged.run.launch, {**staged.launch, "notices": []})
    assert staged.work("t2") == 0 and len(metadata.asked) == before


def test_checkpoints_go_up_while_ranks_train_and_results_at_the_end(stage: Stage, s3: S3) -> None:
    staged = stage("save=5 beat wait=9", "save=12 finish")
    process = staged.start()
    until(lambda: steps(s3, staged) == ["5"])
    assert process.poll() is None and state.observe(staged.run) == "running"
    process.terminate()
    assert process.wait(180) == 2 and steps(s3, staged) == ["5", "9"]
    assert staged.work("t2") == 0 and steps(s3, staged) == ["12", "5", "9"]
    summary = _run.report(staged.run)["summary"]
    assert summary["stored"] == f"{staged.launch['store']['url']}/results"
    assert not (staged.run.logs / "store.log").read_text()


def test_a_store_that_is_out_of_reach_ends_no_run_and_is_told(stage: Stage) -> None:
    staged = stage("save=5 error=ValueError", "finish", secrets={"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"})
    supervisor = staged.run.path / "engine" / "uploads.py"
    text = supervisor.read_text().replace(
        "END_SECONDS, RESULTS_SECONDS = 60.0, 600.0", "END_SECONDS = RESULTS_SECONDS = 0"
    )
    supervisor.write_text(text)
    assert staged.work() == 1 and staged.written()["diagnosis"]["kind"] == "error"
    assert staged.work("t2") == 0
    told = _run.report(staged.run)["summary"]["stored"]
    assert told.startswith(f"not in {staged.launch['store']['url']}: ") and "127.0.0.1:9" in told


def test_a_sender_that_cannot_be_started_ends_no_run_and_is_told(stage: Stage) -> None:
    staged = stage("save=5 finish")
    staged.launch["store"]["python"] = "/nowhere/python"
    files.write_json(staged.run.launch, staged.launch)
    assert staged.work() == 0
    told = _run.report(staged.run)["summary"]["stored"]
    assert "the sender cannot be started" in told and "/nowhere/python" in told


def test_a_stop_waits_as_long_as_something_is_sent(stage: Stage) -> None:
    staged = stage("")
    held = files.lock(staged.run.lock)
    assert held is not None

    def send() -> None:
        for sent in range(50):
            files.write_json(staged.run.stored, {"sent": sent})
            time.sleep(0.1)
        os.close(held)

    sender = threading.Thread(target=send)
    sender.start()
    _run.stop(staged.run, _changes.Changes(dry=False), patience=3)
    sender.join()
    assert not files.locked(staged.run.lock)


def test_the_sender_goes_with_its_supervisor(stage: Stage, s3: S3) -> None:
    staged = stage("save=5 beat rank hang")
    process = staged.start()
    until(lambda: steps(s3, staged) == ["5"])
    assert files.locked(staged.run.upload_lock)
    process.kill()
    process.wait()
    until(lambda: not files.locked(staged.run.upload_lock))


def test_of_what_nodes_share_one_of_them_sends(stage: Stage, s3: S3, tmp_path: Path) -> None:
    (tmp_path / "team").mkdir()
    staged = stage("save=5 finish", nnodes=2, node_rank=1, shared=str(tmp_path / "team"))
    staged.run.output.symlink_to(tmp_path / "team")
    assert staged.work() == 0
    assert steps(s3, staged) == [] and not (staged.run.logs / "store.log").exists()
    assert checkpoint.newest_complete(staged.run.output)
