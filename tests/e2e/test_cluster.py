# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Three hosts over ssh: one run, ranks by the order of the inventory, and nothing lost when one of them is.

Of three ranks the sums of gradients come out in another order after a resume (DDP lays out its buckets anew): the loss
is that of an undisturbed run as far as it is logged, the weights differ in their last bits.

The hosts are podman containers (machines.py); each builds its environment itself and shares nothing with the others.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import sys
import time
import typing as t
from dataclasses import dataclass

import pytest

from . import machines
from .conftest import BASE, CONTROLLER_ONLY, Outcome
from .machines import NAMES, ROOT, Cluster, hosts, read, sh
from .test_faults import wait_for

SAVE = 10
STEPS: dict[str, t.Any] = {"max_steps": 200, "save_steps": SAVE, "logging_steps": 10, "save_total_limit": 3}
SEED, COUNT = (int(os.environ.get(name, usual)) for name, usual in (("FAULT_SEED", "1"), ("FAULTS", "3")))


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> t.Iterator[Cluster]:
    yield from machines.cluster(request)


def ranks(run_id: str, order: t.Sequence[str] = NAMES) -> list[list[int]]:
    """The ranks that ran on each host, as they said themselves."""
    found = []
    for host in order:
        names = sh(host, f"ls {ROOT}/runs/{run_id}/logs/")
        found.append(sorted(int(rank) for rank in re.findall(r"memory-rank(\d+)\.json", names)))
    return found


def adapters(run_id: str, order: t.Sequence[str] = NAMES) -> set[str]:
    return {sh(host, f"sha256sum < {ROOT}/runs/{run_id}/output/adapter_model.safetensors") for host in order}


def last_loss(run_id: str) -> float:
    log = sh(NAMES[0], f"cat {ROOT}/runs/{run_id}/output/trainer_log.jsonl")
    return float([line["loss"] for line in map(json.loads, log.splitlines()) if "loss" in line][-1])


@dataclass
class First:
    done: Outcome
    again: Outcome

    @property
    def id(self) -> str:
        return str(self.done.plan["id"])


@pytest.fixture(scope="module")
def first(cluster: Cluster) -> First:
    """A run that nothing disturbs, and the same command again."""
    done = cluster.play("train.yml", name="three", **STEPS)
    assert done.rc == 0, done.text
    return First(done, cluster.play("train.yml", name="three", **STEPS))


def test_ranks_are_the_order_of_the_inventory(first: First) -> None:
    assert first.done.plan["resolved"]["world_size"] == 3
    assert ranks(first.id) == [[0], [1], [2]]


def test_a_second_apply_changes_nothing(first: First) -> None:
    assert (first.again.rc, first.again.changed) == (0, []), first.again.text
    assert len(first.again.on_node) <= 4 * len(NAMES)


def test_a_first_apply_executes_at_most_eight_modules_on_a_host(first: First) -> None:
    tasks = [line for line in first.done.results if line["action"].rpartition(".")[2] not in CONTROLLER_ONLY]
    for host in NAMES:
        assert len([line for line in tasks if line["host"] == host]) <= 8
    assert "train_allreduce" not in first.done.on_node


def test_every_node_has_the_results(first: First) -> None:
    assert len(adapters(first.id)) == 1
    status = cluster_status(first.done)
    assert status == []


def test_results_are_fetched_and_none_is_trusted_before_its_digest_is_right(cluster: Cluster, first: First) -> None:
    to = BASE / "fetched"
    shutil.rmtree(to, ignore_errors=True)
    asked = {"train_fetch_to": str(to)}
    predicted = cluster.play("llmops.finetune.fetch", "--check", name="three", asked=asked)
    assert not to.exists()
    path = f"{ROOT}/runs/{first.id}/output/adapter_model.safetensors"
    before = sh(NAMES[0], f"stat -c '%a %z' {path}")
    fetched = cluster.play("llmops.finetune.fetch", name="three", asked=asked)
    assert fetched.rc == 0, fetched.text
    assert sh(NAMES[0], f"stat -c '%a %z' {path}") == before, "the original is left as it is"
    assert sh(NAMES[0], "find /home/admin/.ansible /tmp -name '*.safetensors'") == ""
    assert fetched.changes == predicted.changes and len(fetched.changes) > 5
    adapter = to / first.id / "adapter_model.safetensors"
    assert adapters(first.id) == {f"{hashlib.sha256(adapter.read_bytes()).hexdigest()}  -"}
    assert cluster.play("llmops.finetune.fetch", name="three", asked=asked).changes == []
    adapter.unlink()
    sh(NAMES[0], f"cp {path} /var/kept; printf x | dd of={path} bs=1 seek=99 conv=notrunc 2> /dev/null")
    damaged = cluster.play("llmops.finetune.fetch", name="three", asked=asked)
    sh(NAMES[0], f"cp /var/kept {path}")
    assert damaged.rc != 0 and "adapter_model.safetensors is not what the run left" in damaged.message
    assert not adapter.exists()


def cluster_status(done: Outcome) -> list[str]:
    """What is left of a run that came to its end: processes, units, leases."""
    left = []
    for host in NAMES:
        left += sh(host, "pgrep -u llmops -a", check=False).splitlines()
        left += sh(host, "ls /etc/systemd/system/llmops-* 2>/dev/null", check=False).splitlines()
    return left


def test_the_other_way_round_with_two_processes_and_a_host_left_out(cluster: Cluster) -> None:
    order = (NAMES[2], NAMES[0], NAMES[1])
    asked = {"train_processes_per_node": 2}
    limit = f"{NAMES[2]},{NAMES[0]}"
    short = {**STEPS, "max_steps": 2}
    done = cluster.play("train.yml", "--limit", limit, name="reversed", order=order, asked=asked, **short)
    assert done.rc == 0, done.text
    assert done.plan["resolved"]["world_size"] == 4
    assert ranks(str(done.plan["id"]), order[:2]) == [[0, 1], [2, 3]]


def losses(host: str, run_id: str) -> list[float]:
    log = sh(host, f"cat {ROOT}/runs/{run_id}/output/trainer_log.jsonl")
    return [line["loss"] for line in map(json.loads, log.splitlines()) if "loss" in line]


def test_the_loss_does_not_depend_on_the_number_of_hosts(cluster: Cluster, first: First) -> None:
    """The same data, seed and global batch on one host, two and three."""
    short: dict[str, t.Any] = {
        "max_steps": 20,
        "save_steps": 20,
        "logging_steps": 1,
        "max_samples": 240,
        "lora_dropout": 0.0,
    }
    short["per_device_train_batch_size"] = 1
    found = []
    for count in (1, 2, 3):
        asked = {"train_global_batch_size": 12}
        done = cluster.play("train.yml", name=f"on-{count}", order=NAMES[:count], asked=asked, **short)
        assert done.rc == 0, done.text
        found.append(losses(NAMES[0], str(done.plan["id"])))
        assert len(found[-1]) == 20
    furthest = max(abs(one - other) for one, *others in zip(*found, strict=True) for other in others)
    print(f"largest difference of the loss over 20 steps: {furthest:.1e}", file=sys.stderr)
    assert furthest <= 1e-4


# --- what is lost, and what becomes of it ---


@dataclass
class Live:
    """A run in the background, on all hosts."""

    cluster: Cluster
    name: str
    id: str

    def read(self, host: str, name: str) -> dict[str, t.Any]:
        return read(host, self.id, name)

    def step(self) -> int:
        return int(self.read(NAMES[0], "progress.json").get("step", 0))

    def trains(self) -> int:
        """Which attempt it is, once that has saved a checkpoint of its own or the steps of half of one."""
        attempt = self.attempt(NAMES[0])
        begun = self.step()
        wait_for(lambda: self.step() > begun + SAVE // 2 and all(map(self.rank_process, NAMES)), 300)
        return attempt

    def join(self) -> None:
        """The same command, for the hosts where the run does not run."""
        done = self.cluster.play("train.yml", name=self.name, asked={"train_wait": False}, **STEPS)
        assert done.rc == 0, done.text

    def attempt(self, host: str) -> int:
        return int(self.read(host, "state.json").get("attempt", 0))

    def rank_process(self, host: str) -> str:
        found = sh(host, "pgrep -u llmops -f 'python -u -m engine.rank'", check=False).split()
        return found[0] if found else ""

    def finishes(self, first: First) -> None:
        done = self.cluster.play("train.yml", name=self.name, **STEPS)
        assert done.rc == 0, done.text
        assert done.run["state"] == "finished"
        assert len(adapters(self.id)) == 1, "the same on all hosts"
        assert last_loss(self.id) == last_loss(first.id), "as the trainer logs it: four digits"
        assert cluster_status(done) == []


def gone(live: Live, host: str, before: str, within: float) -> None:
    """The rank that was on the host has left."""
    began = time.monotonic()
    wait_for(lambda: not sh(host, f"ps -o pid= -p {before}", check=False), 60)
    assert time.monotonic() - began < within


def kill_a_rank(live: Live, victim: str) -> None:
    before = {host: live.rank_process(host) for host in NAMES}
    sh(victim, f"kill -9 {before[victim]}")
    began = time.monotonic()
    wait_for(lambda: not any(sh(host, f"ps -o pid= -p {before[host]}", check=False) for host in NAMES), 30)
    assert time.monotonic() - began < 10


def kill_a_supervisor(live: Live, victim: str) -> None:
    """Its ranks go with it, those of the others follow; the same command lets the host join again."""
    witness = next(host for host in NAMES if host != victim)
    before = live.rank_process(witness)
    sh(victim, f"kill -9 $(systemctl show --property=MainPID --value llmops-{live.id}.service)")
    gone(live, witness, before, 10)
    live.join()


def silence(live: Live, victim: str) -> None:
    """Packets are dropped, nothing is reset; this machine is still let in."""
    witness = next(host for host in NAMES if host != victim)
    before = live.rank_process(witness)
    for chain, way in (("INPUT", "-s"), ("OUTPUT", "-d")):
        rules = (f"{way} {machines.address(1)} -j ACCEPT", f"{way} {machines.SUBNET} -j DROP")
        sh(victim, "; ".join(f"iptables -A {chain} {rule}" for rule in rules))
    try:
        gone(live, witness, before, 30)
        wait_for(lambda: re.search(r"Node \d.* (fell silent|is gone)", str(live.read(witness, "state.json"))), 30)
    finally:
        sh(victim, "iptables -F INPUT; iptables -F OUTPUT")


def cut_the_power(live: Live, victim: str) -> None:
    witness = next(host for host in NAMES if host != victim)
    before = live.rank_process(witness)
    assert hosts("kill", victim).returncode == 0
    gone(live, witness, before, 30)
    on = hosts("start", victim)
    assert on.returncode == 0, on.stderr


def replace_the_host(live: Live, victim: str) -> None:
    """Its run, with all checkpoints, is gone; the others have what it needs."""
    units = (
        f"/etc/systemd/system/llmops-* /etc/systemd/system/*/llmops-*; rm -rf {ROOT}/runs; mkdir -m 0777 {ROOT}/runs"
    )
    sh(victim, f"systemctl kill -s KILL llmops-{live.id}.service; sleep 1; rm -f {units}; systemctl daemon-reload")
    live.join()
    assert live.attempt(victim) == 1


FAULTS = (kill_a_rank, kill_a_supervisor, silence, cut_the_power, replace_the_host)


def test_what_befalls_hosts_does_not_change_what_comes_out(cluster: Cluster, first: First) -> None:
    """Faults, in an order and to hosts that the seed picks: each kind once before one comes again."""
    dice = random.Random(SEED)
    started = cluster.play("train.yml", name="faults", asked={"train_wait": False}, **STEPS)
    assert started.rc == 0, started.text
    live = Live(cluster, "faults", str(started.plan["id"]))
    kinds = [fault for again in range(0, COUNT, len(FAULTS)) for fault in dice.sample(FAULTS, len(FAULTS))]
    for fault in kinds[:COUNT]:
        attempt = live.trains()
        victim = dice.choice(NAMES)
        print(f"attempt {attempt}, step {live.step()}: {fault.__name__} on {victim}", file=sys.stderr)
        fault(live, victim)
        wait_for(lambda: live.attempt(NAMES[0]) > attempt, 120)  # noqa: B023 - called at once
    live.finishes(first)


# --- what does not fit together ---


def refused(cluster: Cluster, name: str, **asked: t.Any) -> Outcome:
    done = cluster.play("train.yml", name=name, asked=asked, **STEPS)
    assert done.rc != 0 and "Traceback" not in done.message
    wait_for(lambda: not any(sh(host, "pgrep -u llmops -a", check=False) for host in NAMES), 20)
    return done


def test_a_port_that_is_closed_one_way_is_named_with_both_hosts(cluster: Cluster, first: First) -> None:
    sh(NAMES[1], f"iptables -A INPUT -p tcp --dport 29500 -s {machines.address(11)} -j DROP")
    try:
        done = refused(cluster, "closed")
    finally:
        sh(NAMES[1], "iptables -F INPUT")
    assert re.search(rf"{NAMES[0]} +reach +→ {NAMES[1]}: \S+:29500 does not answer", done.message), done.message
    assert len(re.findall("reach +→", done.message)) == 1


def test_a_port_in_use_and_another_run_are_named(cluster: Cluster, first: First) -> None:
    taken = "import socket, time; s = socket.create_server((str(), 29500)); time.sleep(60)"
    sh(NAMES[2], f'setsid python3 -c "{taken}" > /dev/null 2>&1 < /dev/null & echo $! > /tmp/taken')
    time.sleep(1)
    try:
        done = refused(cluster, "port")
    finally:
        sh(NAMES[2], "kill $(cat /tmp/taken)")
    assert "Port 29500 of this node cannot be used" in done.message and "train_port" in done.message


def test_another_model_on_one_host_is_named(cluster: Cluster, first: First) -> None:
    made = first.done.plan["nodes"][NAMES[0]]["model"]["path"]
    for host in NAMES:
        sh(host, f"cp -r {made} /srv/model; chmod -R a+rX /srv/model")
    sh(
        NAMES[1],
        'sed -i \'s/"hidden_size": 128/"hidden_size": 129/\' /srv/model/config.json; echo >> /srv/model/config.json',
    )
    done = refused(cluster, "model", train_model="/srv/model")
    assert re.search(rf"{NAMES[1]} +model +\w+, the others \w+", done.message), done.message


# --- the way to a host ---


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"ansible_user": "nobody-there"}, "does not let nobody-there in"),
        ({"ansible_ssh_private_key_file": "/no/such/key"}, "There is no key /no/such/key"),
        (
            {"ansible_host": machines.address(99), "ansible_ssh_timeout": 3},
            f"does not answer at {machines.address(99)}",
        ),
        ({"ansible_port": 2222}, "nothing listens for ssh"),
        ({"ansible_python_interpreter": "/opt/no/python3"}, f"There is no Python on {NAMES[1]}"),
    ],
)
def test_a_host_that_cannot_be_worked_on_is_told_with_its_remedy(
    cluster: Cluster, change: dict[str, t.Any], expected: str
) -> None:
    done = cluster.play("llmops.finetune.plan", name="way", of={NAMES[1]: change})
    assert done.rc != 0 and expected in done.message, done.message
    assert "change:" in done.message and "Traceback" not in done.message


def test_a_login_without_sudo_is_told_so(cluster: Cluster) -> None:
    sh(NAMES[1], "mv /etc/sudoers.d/90-login /var/")
    try:
        done = cluster.play("llmops.finetune.plan", name="way")
    finally:
        machines.root_sh(NAMES[1], "mv /var/90-login /etc/sudoers.d/")
    assert done.rc != 0 and f"admin may not become root on {NAMES[1]}" in done.message, done.text


def test_a_login_that_may_not_use_sudo_trains_in_a_folder_of_its_own(cluster: Cluster, first: First) -> None:
    for host in NAMES:
        folder = "mkdir -p /data/own/cache; cp -al /data/llmops/cache/uv /data/own/cache/uv; chown admin /data/own"
        sh(host, f"{folder}; find /data/own/cache -type d -exec chmod 0777 {{}} +; mv /etc/sudoers.d/90-login /var/")
    try:
        asked = {"train_user": "", "train_root": "/data/own"}
        done = cluster.play("train.yml", name="own", asked=asked, **{**STEPS, "max_steps": 4})
    finally:
        for host in NAMES:
            machines.root_sh(host, "mv /var/90-login /etc/sudoers.d/")
    assert done.rc == 0, done.text
    for rank, host in enumerate(NAMES):
        found = sh(host, f"stat -c %U /data/own/runs/{done.plan['id']}/logs/memory-rank{rank}.json")
        assert found == "admin" and not sh(host, "pgrep -u admin -f engine", check=False)
