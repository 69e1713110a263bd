# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Three hosts over ssh, and nothing lost when one of them is.

Of three ranks the sums of gradients come out in another order after a resume (DDP lays out its buckets anew): the loss
is that of an undisturbed run as far as it is logged, the weights differ in their last bits.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from . import machines
from .machines import NAMES, ROOT, SAVE, STEPS, Cluster, First, adapters, hosts, left, read, sh
from .test_faults import wait_for

SEED = int(os.environ.get("FAULT_SEED", "1"))
KILLED_AFTER = random.Random(SEED)


def last_loss(run_id: str) -> float:
    log = sh(NAMES[0], f"cat {ROOT}/runs/{run_id}/output/trainer_log.jsonl")
    return float([line["loss"] for line in map(json.loads, log.splitlines()) if "loss" in line][-1])


@dataclass
class Live:
    """A run in the background, on all hosts."""

    cluster: Cluster
    name: str
    id: str
    steps: dict[str, t.Any]
    asked: dict[str, t.Any] = field(default_factory=dict)

    def read(self, host: str, name: str) -> dict[str, t.Any]:
        return read(host, self.id, name)

    def step(self) -> int:
        return int(self.read(NAMES[0], "progress.json").get("step", 0))

    def trains(self) -> None:
        """This attempt has saved a checkpoint of its own, or made the steps of half of one, and every rank is there."""
        states = [self.read(host, "state.json") for host in NAMES]
        assert any(state["state"] != "finished" for state in states), "the run has more steps than it makes meanwhile"
        begun = max(self.step(), *(int(state.get("from_step", 0)) for state in states))
        wait_for(lambda: self.step() > begun + SAVE // 2 and all(map(self.rank_process, NAMES)), 300)

    def join(self) -> None:
        """The same command, for the hosts where the run does not run."""
        done = self.cluster.play("train.yml", name=self.name, asked={**self.asked, "train_wait": False}, **self.steps)
        assert done.rc == 0, done.text

    def attempt(self, host: str) -> int:
        return int(self.read(host, "state.json").get("attempt", 0))

    def rank_process(self, host: str) -> str:
        found = sh(host, "pgrep -u llmops -f 'python -u -m engine.rank'", check=False).split()
        return found[0] if found else ""

    def finishes(self, loss: float) -> None:
        done = self.cluster.play("train.yml", name=self.name, **self.steps)
        assert done.rc == 0, done.text
        assert done.run["state"] == "finished"
        assert len(adapters(self.id)) == 1, "the same on all hosts"
        assert last_loss(self.id) == loss, "as the trainer logs it: four digits"
        assert left() == []


def witness_of(victim: str) -> str:
    return next(host for host in NAMES if host != victim)


def gone(live: Live, host: str, before: str, within: float) -> None:
    """The rank that was on the host has left."""
    began = time.monotonic()
    wait_for(lambda: not sh(host, f"ps -o pid= -p {before}", check=False), 60)
    assert time.monotonic() - began < within


def kill_a_rank(live: Live, victim: str) -> None:
    """The hosts themselves, whose clock is one, say when: asking them one after the other takes seconds."""
    before = {host: live.rank_process(host) for host in NAMES}

    def leaves(host: str) -> float:
        wait = f"timeout 60 sh -c 'while [ -e /proc/{before[host]} ]; do sleep 0.1; done'; date +%s.%N"
        return float(sh(host, wait))

    with ThreadPoolExecutor(len(NAMES)) as pool:
        leaving = [pool.submit(leaves, host) for host in NAMES]
        killed = float(sh(victim, f"date +%s.%N; kill -9 {before[victim]}"))
        assert max(done.result() for done in leaving) - killed < 10


def kill_a_supervisor(live: Live, victim: str) -> None:
    """Its ranks go with it, those of the others follow; the same command lets the host join again."""
    witness = witness_of(victim)
    before = live.rank_process(witness)
    sh(victim, f"kill -9 $(systemctl show --property=MainPID --value llmops-{live.id}.service)")
    gone(live, witness, before, 10)
    live.join()


def silence(live: Live, victim: str) -> None:
    """Packets are dropped, nothing is reset; this machine is still let in."""
    witness = witness_of(victim)
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
    witness = witness_of(victim)
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


def kill_the_controller(live: Live, victim: str) -> None:
    """A play that is about the run, at some moment; the run goes on as it was."""
    attempt, play = live.attempt(victim), live.cluster.begin(live.name, **live.steps)
    time.sleep(KILLED_AFTER.uniform(1, 4))
    assert play.poll() is None, "it was at work"
    os.killpg(play.pid, signal.SIGKILL)
    play.wait()
    step = live.step()
    wait_for(lambda: live.step() > step)
    assert live.attempt(victim) == attempt


FAULTS = (kill_a_rank, kill_a_supervisor, silence, cut_the_power, replace_the_host, kill_the_controller)


def befall(cluster: Cluster, loss: float, count: int, steps: dict[str, t.Any]) -> None:
    """Faults, in an order and to hosts that the seed picks: each kind once before one comes again.

    loss: the last one of as many steps that nothing disturbed, asked for before a replaced host has lost that run too;
    an attempt makes about 10 of them.
    """
    dice = random.Random(SEED)
    started = cluster.play("train.yml", name="faults", asked={"train_wait": False}, **steps)
    assert started.rc == 0, started.text
    live = Live(cluster, "faults", str(started.plan["id"]), steps)
    kinds = [fault for again in range(0, count, len(FAULTS)) for fault in dice.sample(FAULTS, len(FAULTS))]
    for number, fault in enumerate(kinds[:count], 1):
        live.trains()
        victim = dice.choice(NAMES)
        witness = witness_of(victim)  # a fresh host counts its attempts anew
        attempt = live.attempt(witness)
        told = f"{number}: attempt {attempt}, step {live.step()}: {fault.__name__} on {victim}"
        print(told, file=sys.stderr, flush=True)
        fault(live, victim)
        if fault is not kill_the_controller:
            wait_for(lambda: live.attempt(witness) > attempt, 120)  # noqa: B023 - called at once
    live.finishes(loss)


def test_what_befalls_hosts_does_not_change_what_comes_out(cluster: Cluster, first: First) -> None:
    befall(cluster, last_loss(first.id), len(FAULTS), STEPS)
