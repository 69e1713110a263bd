# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kills of everything that can be killed, in the middle of real training. The last weights are those of a quiet run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import typing as t
from dataclasses import dataclass
from pathlib import Path

import pexpect
import pytest

from .conftest import BASE, LINES, SHORT, Demo, Outcome, World, processes, weights

LONG: dict[str, t.Any] = {"max_steps": 4000, "save_steps": 20, "save_total_limit": 2, "lr_scheduler_type": "constant"}
"""Minutes of training, of which only the first seconds are seen."""


@pytest.fixture(scope="module")
def quiet(world: World, demo: Demo) -> str:
    """The weights of a run that nothing disturbed."""
    done = world.play(variables={"train_name": "quiet"})
    assert done.rc == 0, done.text
    return weights(world.folder(done))


def start(world: World, name: str, **short: t.Any) -> tuple[Outcome, Path]:
    started = world.play(variables={"train_name": name, "train_wait": False}, **short)
    assert started.rc == 0, started.text
    return started, world.folder(started)


def wait_for(what: t.Callable[[], t.Any], seconds: float = 180) -> t.Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := what():
            return answer
        time.sleep(0.1)
    raise AssertionError("it did not come about")


def step(folder: Path) -> int:
    return int(read(folder / "progress.json").get("step", 0))


def read(path: Path) -> dict[str, t.Any]:
    try:
        return t.cast("dict[str, t.Any]", json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def rank_process(folder: Path) -> int:
    """The trainer itself: the process that is `engine.rank` but not torchrun, which names it too."""
    for pid in processes(folder.name):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"engine.rank" in command and b"torch.distributed.run" not in command:
            return pid
    return 0


@dataclass
class Left:
    """A run whose play was interrupted."""

    status: int
    folder: Path


@pytest.fixture(scope="module")
def left(world: World, quiet: str) -> t.Iterator[Left]:
    """In a terminal, in the middle of an interval, while the node is asked."""
    record = BASE / "interrupted-play.jsonl"
    extra = json.dumps({**world.variables, **LINES, "train_name": "left", "train_args": {**SHORT, **LONG}})
    play = pexpect.spawn(
        "ansible-playbook",
        ["train.yml", "-i", "inventory", "-e", extra],
        cwd=world.clone,
        env=world.environment(record),
        timeout=180,
    )
    play.expect(rb"Following (left-\w+)\. Ctrl-C ends the following, not the run\.")
    run_id = play.match.group(1).decode()
    play.expect(rb"step +\d+/4000")
    time.sleep(1)
    play.sendintr()
    play.expect(pexpect.EOF, timeout=20)
    play.close()
    yield Left(play.exitstatus, world.root / "runs" / run_id)
    for pid in processes(run_id):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_ctrl_c_ends_the_following_at_once_and_not_the_run(left: Left) -> None:
    assert left.status == 99, "Ansible's status for an interruption by its user"
    assert rank_process(left.folder), "it trains on"


def test_a_second_run_is_refused_and_stop_leaves_nothing(world: World, left: Left) -> None:
    wait_for(lambda: step(left.folder) > 2)
    second = world.play(variables={"train_name": "second"})
    assert second.rc != 0
    assert left.folder.name in second.message and "stop" in second.message
    assert not (world.root / "runs" / second.plan["id"]).exists(), "refused before anything is staged"
    held = f"held    The CPUs of this node are held by run {left.folder.name}"
    checked = world.play("train.yml", "--check", variables={"train_name": "second"})
    assert checked.rc == 0 and held in checked.text

    stopped = world.play("llmops.finetune.stop", variables={"train_name": "left"})
    assert stopped.rc == 0 and stopped.changes == [("stop", str(left.folder))]
    assert processes(left.folder.name) == []
    state = read(left.folder / "state.json")
    newest = max((left.folder / "output").glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    assert state["state"] == "stopped" and (newest / "complete.json").exists()
    assert world.play("llmops.finetune.stop", variables={"train_run_id": "left-*"}).changed == []

    kept = world.play(variables={"train_name": "left"}, **LONG)
    assert kept.rc == 0 and kept.changed == [] and "stays so" in kept.text
    free = world.play("train.yml", "--check", variables={"train_name": "second"})
    assert free.rc == 0 and "are held by" not in free.text, free.text


def plays_of(record: str) -> list[str]:
    """Processes of the play that records there: Ansible's workers outlive a killed play."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (
                    f"/{record}\0".encode() in (entry / "environ").read_bytes()
                    and b"ansible" in (entry / "cmdline").read_bytes()
                ):
                    found.append(entry.name)
    return found


def test_the_play_may_be_killed_and_the_next_one_adopts_the_run(world: World, quiet: str) -> None:
    extra = json.dumps({**world.variables, "train_name": "adopted", "train_args": SHORT})
    log = open(BASE / "killed-play.log", "wb")
    play = subprocess.Popen(
        ["ansible-playbook", "train.yml", "-i", "inventory", "-e", extra],
        cwd=world.clone,
        env=world.environment(BASE / "killed-play.jsonl"),
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    folder = wait_for(lambda: next((world.root / "runs").glob("adopted-*"), None))
    wait_for(lambda: read(folder / "state.json").get("state") == "running")
    os.killpg(play.pid, signal.SIGKILL)
    play.wait()
    assert processes(folder.name)
    adopted = world.play(variables={"train_name": "adopted"})
    assert adopted.rc == 0, adopted.text
    assert adopted.changed == []
    assert adopted.run["state"] == "finished" and adopted.run["attempt"] == 1
    for worker in plays_of("killed-play.jsonl"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(worker), signal.SIGKILL)
    assert weights(folder) == quiet


def test_a_killed_trainer_goes_on_from_its_newest_whole_checkpoint(world: World, quiet: str) -> None:
    """Once when a save is half written, once after one; deaths after all other files of a save are in `make soak`. With
    data that was tokenized when it was staged, by no rank: the weights are those of a run without."""
    plan = BASE / "killer-trainer.json"
    write_plan(plan, [["checkpoint-8", "optimizer.pt"], ["checkpoint-16", "complete.json"]])
    variables = {"train_name": "killed", "train_tokenized": True}
    shutil.rmtree(world.root / "tokenized", ignore_errors=True)
    predicted = world.play("train.yml", "--check", variables=variables)
    done = world.play(variables={**variables, **LINES}, environment=killer(plan))
    assert done.rc == 0, done.text
    assert len(list(deaths_of(plan).iterdir())) == 2
    assert done.run["attempt"] == 3 and done.run["from_step"] == 16
    assert weights(world.folder(done)) == quiet
    assert "attempt 2 from step 0" in done.text and "attempt 3 from step 16" in done.text
    log = [json.loads(line) for line in (world.folder(done) / "output/trainer_log.jsonl").read_text().splitlines()]
    steps = [line["current_steps"] for line in log if "loss" in line]
    assert steps == sorted(set(steps))
    (tokens,) = (world.root / "tokenized").iterdir()
    assert ("build", str(tokens)) in done.changes and ("build", str(tokens)) in predicted.changes
    told = (world.folder(done) / "logs/attempt-1.log").read_text(encoding="utf-8")
    assert f"Loaded tokenized dataset from {tokens}" in told and "Running tokenizer" not in told


def test_tokens_are_shared_by_runs_that_would_make_the_same_and_made_again_where_damaged(
    world: World, quiet: str
) -> None:
    variables = {"train_name": "other-rate", "train_tokenized": True, "train_state": "staged"}
    other = world.play(variables=variables, learning_rate=1e-4)
    assert other.rc == 0, other.text
    (tokens,) = (world.root / "tokenized").iterdir()
    assert not [path for _action, path in other.changes if path == str(tokens)]
    data = next(tokens.glob("train/*.arrow"))
    whole = data.read_bytes()
    data.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    mended = world.play(variables=variables, learning_rate=1e-4)
    assert mended.changes == [("update", str(tokens))], mended.text
    assert data.stat().st_size == len(whole) and list((world.root / "tokenized").iterdir()) == [tokens]


def killer(plan: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(BASE / "killer"), "KILLER_PLAN": str(plan)}


def write_plan(plan: Path, deaths: list[list[str]]) -> None:
    plan.write_text(json.dumps(deaths))
    done = deaths_of(plan)
    shutil.rmtree(done, ignore_errors=True)
    done.mkdir()
    done.chmod(0o777)


def deaths_of(plan: Path) -> Path:
    """The folder with a file per death that was carried out."""
    return Path(f"{plan}.done")


def test_a_killed_supervisor_leaves_no_orphan_and_the_next_apply_resumes(world: World, quiet: str) -> None:
    plan = BASE / "killer-supervisor.json"
    write_plan(plan, [])
    _, folder = start(world, "orphan")
    wait_for(lambda: (folder / "output/checkpoint-8/complete.json").exists())
    os.kill(int(read(folder / "state.json")["pid"]), signal.SIGKILL)
    wait_for(lambda: not processes(folder.name), 10)
    status = world.play("llmops.finetune.status", variables={"train_run_id": "orphan-*"})
    lines = next(line["result"]["lines"] for line in status.results if line["action"].endswith("train_status"))
    assert len(lines) == 1 and "interrupted" in lines[0]
    resumed = world.play(variables={"train_name": "orphan"})
    assert resumed.rc == 0, resumed.text
    assert resumed.run["attempt"] == 2 and resumed.run["from_step"] >= 8
    assert weights(folder) == quiet
