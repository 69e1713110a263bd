# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Three hosts over ssh that have storage in common: checkpoints and results are there once, for all of them.

The storage is a folder of this machine in all containers. It shows each host at once what another one wrote; that
NFS shows it late is for the unit tests.
"""

from __future__ import annotations

import json
import re
import shutil
import typing as t
from dataclasses import dataclass

import pytest

from .conftest import BASE, Outcome
from .machines import NAMES, ROOT, SAVE, Cluster, adapters, left, read, sh
from .test_cluster_faults import Live, replace_the_host
from .test_faults import wait_for

SHARED = "/shared/runs"
SHORT: dict[str, t.Any] = {"max_steps": 6 * SAVE, "save_steps": SAVE, "logging_steps": SAVE, "save_total_limit": 2}
ENGINES = ("ddp", "zero3")


@pytest.fixture(scope="module", autouse=True)
def _shared(cluster: Cluster) -> t.Iterator[None]:
    for host in NAMES:
        sh(host, f"rm -rf {SHARED} {ROOT}/runs/calm-* {ROOT}/runs/shared-* {ROOT}/runs/apart-* {ROOT}/runs/alone-*")
    sh(NAMES[0], f"mkdir -m 0777 {SHARED}")
    yield
    sh(NAMES[0], f"rm -rf {SHARED}")


def asked(engine: str = "ddp", **more: t.Any) -> dict[str, t.Any]:
    return {"train_output_root": SHARED, "train_engine": engine, **more}


@dataclass
class Calm:
    engine: str
    done: Outcome
    again: Outcome

    @property
    def id(self) -> str:
        return str(self.done.plan["id"])


@pytest.fixture(scope="module", params=ENGINES)
def calm(request: pytest.FixtureRequest, cluster: Cluster) -> Calm:
    """A run that nothing disturbed, and the same command again."""
    name = f"calm-{request.param}"
    done = cluster.play("train.yml", name=name, asked=asked(request.param), **SHORT)
    assert done.rc == 0, done.text
    return Calm(request.param, done, cluster.play("train.yml", name=name, asked=asked(request.param), **SHORT))


def losses(run_id: str) -> list[float]:
    lines = map(json.loads, sh(NAMES[0], f"cat {SHARED}/{run_id}/trainer_log.jsonl").splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def listed(folder: str, host: str = NAMES[0]) -> list[str]:
    return sh(host, f"ls -A {folder}").splitlines()


def test_checkpoints_and_results_are_there_once(calm: Calm) -> None:
    folder = f"{SHARED}/{calm.id}"
    assert {f"checkpoint-{step}" for step in (5 * SAVE, 6 * SAVE)} == {
        name for name in listed(folder) if name.startswith("checkpoint")
    }
    assert {"adapter_model.safetensors", "trainer_log.jsonl", "artefacts.json"} <= set(listed(folder))
    assert not [name for name in listed(folder) if name.startswith(".")], "no mark of a node is left"
    shards = [name for name in sh(NAMES[0], f"find {folder}/checkpoint-{6 * SAVE} -type f").split() if "rank_" in name]
    assert len([name for name in shards if "optim_states" in name]) == (3 if calm.engine == "zero3" else 0)
    for host in NAMES:
        assert sh(host, f"readlink {ROOT}/runs/{calm.id}/output") == folder
        assert "artefacts.json" not in listed(f"{ROOT}/runs/{calm.id}", host)
    assert len(losses(calm.id)) == 6


def test_a_second_apply_changes_nothing(calm: Calm) -> None:
    assert (calm.again.rc, calm.again.changed) == (0, []), calm.again.text
    assert len(calm.again.on_node) <= 4 * len(NAMES)
    assert left() == []


@pytest.mark.parametrize("calm", ENGINES[:1], indirect=True)
def test_results_are_fetched_once_and_damage_is_named(cluster: Cluster, calm: Calm) -> None:
    to = BASE / "fetched"
    shutil.rmtree(to, ignore_errors=True)
    name = f"calm-{calm.engine}"
    got = cluster.play("llmops.finetune.fetch", name=name, asked={"train_fetch_to": str(to)})
    assert got.rc == 0 and (to / calm.id / "adapter_model.safetensors").exists(), got.text
    assert len({change[1] for change in got.changes}) == len(got.changes)
    adapter = f"{SHARED}/{calm.id}/adapter_model.safetensors"
    sh(NAMES[1], f"cp {adapter} /var/kept; printf x | dd of={adapter} bs=1 seek=99 conv=notrunc 2> /dev/null")
    damaged = cluster.play("train.yml", name=name, asked=asked(calm.engine), **SHORT)
    sh(NAMES[1], f"cat /var/kept > {adapter}")
    assert damaged.rc != 0 and "adapter_model.safetensors has other content" in damaged.message, damaged.text
    well = cluster.play("train.yml", name=name, asked=asked(calm.engine), **SHORT)
    assert (well.rc, well.changed) == (0, []), well.text


def test_a_killed_rank_and_a_fresh_host_do_not_change_what_comes_out(cluster: Cluster, calm: Calm) -> None:
    name, victim = f"shared-{calm.engine}", NAMES[0] if calm.engine == "ddp" else NAMES[2]
    wanted = asked(calm.engine)
    started = cluster.play("train.yml", name=name, asked={**wanted, "train_wait": False}, **SHORT)
    assert started.rc == 0, started.text
    live = Live(cluster, name, str(started.plan["id"]), SHORT, wanted)
    for fault, host in ((kill_a_rank, NAMES[1]), (replace_the_host, victim)):
        witness = NAMES[1]
        attempt = live.attempt(witness)
        wait_for(lambda: marked(live) and all(map(live.rank_process, NAMES)), 300)  # noqa: B023 - called at once
        assert live.read(witness, "state.json")["state"] == "running", "not over yet"
        fault(live, host)
        wait_for(lambda: live.attempt(witness) > attempt, 120)  # noqa: B023 - called at once
    done = cluster.play("train.yml", name=name, asked=wanted, **SHORT)
    assert done.rc == 0 and done.run["state"] == "finished", done.text
    assert losses(live.id) == losses(calm.id), "as the trainer logs them: four digits"
    assert left() == []
    assert live.read(victim, "state.json")["from_step"] >= SAVE, "the fresh host went on from what the others had saved"
    assert not [name for name in listed(f"{SHARED}/{live.id}") if name.startswith(".")]
    check_that_absent_leaves_nothing(cluster, name, wanted, live.id)


def kill_a_rank(live: Live, victim: str) -> None:
    sh(victim, f"kill -9 {live.rank_process(victim)}")


def marked(live: Live) -> bool:
    """A checkpoint of this attempt is whole."""
    step = live.step()
    return step > SAVE and f"checkpoint-{step // SAVE * SAVE}" in listed(f"{SHARED}/{live.id}")


def check_that_absent_leaves_nothing(cluster: Cluster, name: str, wanted: dict[str, t.Any], run_id: str) -> None:
    gone = {**wanted, "train_state": "absent"}
    part = cluster.play("train.yml", "--limit", NAMES[2], name=name, asked=gone, **SHORT)
    assert part.rc == 0 and f"{SHARED}/{run_id} stays" in part.text, part.text
    assert run_id in listed(SHARED) and run_id not in listed(f"{ROOT}/runs", NAMES[2])
    predicted = cluster.play("train.yml", "--check", name=name, asked=gone, **SHORT)
    assert run_id in listed(SHARED)
    done = cluster.play("train.yml", name=name, asked=gone, **SHORT)
    assert done.rc == 0, done.text
    assert predicted.changes == done.changes and ("remove", f"{SHARED}/{run_id}") in done.changes
    assert run_id not in listed(SHARED)
    assert not any(run_id in listed(f"{ROOT}/runs", host) for host in NAMES)
    again = cluster.play("train.yml", name=name, asked=gone, **SHORT)
    assert (again.rc, again.changed) == (0, []), again.text


def test_a_host_that_has_another_folder_there_is_named(cluster: Cluster) -> None:
    sh(NAMES[1], "mount -t tmpfs -o mode=0777 none /shared; mkdir -m 0777 /shared/runs")
    try:
        done = cluster.play("train.yml", name="apart", asked=asked(), **SHORT)
    finally:
        sh(NAMES[1], "umount /shared")
    assert done.rc != 0 and "Traceback" not in done.message
    found = re.findall(r"(\S+) +output +(.*)", done.message)
    assert found == [(NAMES[1], f"is not the folder that {NAMES[0]} has")], done.message
    assert "train_output_root" in done.message
    wait_for(lambda: not any(sh(host, "pgrep -u llmops -a", check=False) for host in NAMES), 20)


@pytest.mark.parametrize(
    ("place", "told"),
    [(SHARED, "llmops may not write in it"), ("/shared", "there is no such folder")],
    ids=["not ours", "not mounted"],
)
def test_storage_that_cannot_be_used_is_told_before_anything_is_touched(
    cluster: Cluster, place: str, told: str
) -> None:
    sh(NAMES[2], f"mount -t tmpfs -o mode=0755 none {place}")
    try:
        done = cluster.play("train.yml", name="unusable", asked=asked(), **SHORT)
    finally:
        sh(NAMES[2], f"umount {place}")
    assert done.rc != 0 and f"{NAMES[2]}: {told}" in done.message and not done.changed, done.message
    assert not [path for host in NAMES for path in listed(f"{ROOT}/runs", host) if path.startswith("unusable")]


def test_one_host_has_its_results_there_too(cluster: Cluster) -> None:
    """As a laptop with storage in its network: a run that has begun does not begin anew where that is not mounted."""
    one: dict[str, t.Any] = {"name": "alone", "order": NAMES[:1], "asked": asked()}
    short = {**SHORT, "max_steps": 4}
    done = cluster.play("train.yml", **one, **short)
    assert done.rc == 0, done.text
    run_id = str(done.plan["id"])
    assert "adapter_model.safetensors" in listed(f"{SHARED}/{run_id}") and len(adapters(run_id, NAMES[:1])) == 1
    elsewhere = cluster.play("train.yml", **{**one, "asked": {"train_engine": "ddp"}}, **short)
    assert (elsewhere.rc, elsewhere.changed) == (0, []), "a run keeps its place"
    assert f"The results stay in {SHARED}/{run_id}" in elsewhere.text
    other = cluster.play("train.yml", **{**one, "order": NAMES[1:2]}, **short)
    assert other.rc != 0 and "of hosts that are not in this play" in other.message, other.text
    sh(NAMES[0], f"mount -t tmpfs -o mode=0777 none {SHARED}")
    try:
        unmounted = cluster.play("train.yml", **one, **short)
        assert listed(SHARED) == []
    finally:
        sh(NAMES[0], f"umount {SHARED}")
    assert unmounted.rc != 0 and f"results of run {run_id} are not there" in unmounted.message, unmounted.text
    assert read(NAMES[0], run_id, "state.json")["state"] == "finished"
