# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run over three nodes, and nothing lost when one of them is.

They share this machine: each has a root, a place for leases and a loopback address of its own, and there is no ssh.
Supervisors, listeners, torchrun and ranks are those of three hosts. `make cluster` has real ones, and the faults that
only those have (silence, power).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from .conftest import BASE, Demo, Outcome, World, processes
from .test_faults import read, wait_for

NAMES = ("n1", "n2", "n3")
SAVE = 5
STEPS: dict[str, t.Any] = {"max_steps": 40, "save_steps": SAVE, "logging_steps": 5, "save_total_limit": 3}
SEED = int(os.environ.get("FAULT_SEED", "1"))


@dataclass
class Nodes:
    world: World

    def play(self, *, name: str, **asked: t.Any) -> Outcome:
        hosts = {
            host: {
                "ansible_connection": "local",
                "ansible_python_interpreter": "{{ ansible_playbook_python }}",
                "train_address": f"127.0.0.{number}",
                "node": str(place(host)),
            }
            for number, host in enumerate(NAMES, 1)
        }
        inventory = BASE / "nodes.yml"
        inventory.write_text(yaml.safe_dump({"trainers": {"hosts": hosts}}, sort_keys=False), encoding="utf-8")
        places = {"train_root": "{{ node }}", "train_lease_dir": "{{ node }}/leases"}
        variables = {**places, "train_name": name, "train_port": 29571, **asked}
        return self.world.play("train.yml", variables=variables, inventory=inventory, **STEPS)


@dataclass
class Live:
    """A run in the background, on all nodes."""

    nodes: Nodes
    id: str
    name: str
    asked: dict[str, t.Any] = field(default_factory=dict)

    def folder(self, host: str) -> Path:
        return place(host) / "runs" / self.id

    def attempt(self, host: str) -> int:
        return int(read(self.folder(host) / "state.json").get("attempt", 0))

    def step(self) -> int:
        return int(read(self.folder("n1") / "progress.json").get("step", 0))

    def on(self, host: str) -> list[int]:
        """The processes of the run on one of the nodes."""
        found = []
        for pid in processes(self.id):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cwd").readlink() == self.folder(host):
                    found.append(pid)
        return found

    def rank(self, host: str) -> int:
        for pid in self.on(host):
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"engine.rank" in command and b"torch.distributed.run" not in command:
                    return pid
        return 0

    def trains(self) -> None:
        """Every rank is there, and this attempt has saved a checkpoint and made a step since."""
        begun = int(read(self.folder("n1") / "state.json")["from_step"])
        wait_for(lambda: self.step() > begun + SAVE and all(map(self.rank, NAMES)))

    def join(self) -> None:
        """The same command, for the nodes where the run does not run."""
        done = self.nodes.play(name=self.name, train_wait=False, **self.asked)
        assert done.rc == 0, done.text


def place(host: str) -> Path:
    return BASE / "nodes" / host


def kill_a_rank(live: Live, victim: str) -> None:
    os.kill(live.rank(victim), signal.SIGKILL)


def kill_a_supervisor(live: Live, victim: str) -> None:
    """Its ranks go with it; the same command lets the node join again."""
    os.kill(read(live.folder(victim) / "state.json")["pid"], signal.SIGKILL)
    wait_for(lambda: not live.on(victim), 15)
    live.join()


def replace_a_node(live: Live, victim: str) -> None:
    """Its run, with all checkpoints, is gone; the others have what it needs."""
    os.kill(read(live.folder(victim) / "state.json")["pid"], signal.SIGKILL)
    wait_for(lambda: not live.on(victim), 15)
    shutil.rmtree(live.folder(victim))
    live.join()
    assert live.attempt(victim) == 1


Fault = t.Callable[[Live, str], None]
FAULTS: tuple[Fault, ...] = (kill_a_rank, kill_a_supervisor, replace_a_node)


@pytest.fixture(scope="module")
def nodes(world: World, demo: Demo) -> t.Iterator[Nodes]:
    """Environment and model are there: what is looked at is the run."""
    for host in NAMES:
        place(host).mkdir(parents=True)
        place(host).chmod(0o777)
        for shared in ("envs", "models", "cache"):
            (place(host) / shared).symlink_to(world.root / shared)
    yield Nodes(world)
    shutil.rmtree(BASE / "nodes")


@pytest.fixture(scope="module")
def quiet(nodes: Nodes) -> Outcome:
    """A run that nothing disturbed."""
    done = nodes.play(name="quiet")
    assert done.rc == 0, done.text
    return done


def results(run_id: str) -> tuple[set[bytes], float]:
    """The adapters of all nodes, and the last loss that rank 0 logged."""
    outputs = [place(host) / "runs" / run_id / "output" for host in NAMES]
    lines = map(json.loads, (outputs[0] / "trainer_log.jsonl").read_text().splitlines())
    adapters = {(output / "adapter_model.safetensors").read_bytes() for output in outputs}
    return adapters, float([line["loss"] for line in lines if "loss" in line][-1])


def begin(nodes: Nodes, name: str, **asked: t.Any) -> Live:
    started = nodes.play(name=name, train_wait=False, **asked)
    assert started.rc == 0, started.text
    return Live(nodes, str(started.plan["id"]), name, asked)


def test_the_order_of_the_inventory_is_that_of_the_ranks(nodes: Nodes, quiet: Outcome) -> None:
    run_id = str(quiet.plan["id"])
    for rank, host in enumerate(NAMES):
        logs = place(host) / "runs" / run_id / "logs"
        assert [path.name for path in logs.glob("memory-rank*")] == [f"memory-rank{rank}.json"]
    assert quiet.plan["resolved"]["world_size"] == len(NAMES) and len(results(run_id)[0]) == 1


def test_the_same_again_changes_nothing(nodes: Nodes, quiet: Outcome) -> None:
    again = nodes.play(name="quiet")
    assert again.rc == 0, again.text
    assert again.changed == []


def test_what_befalls_nodes_does_not_change_what_comes_out(nodes: Nodes, quiet: Outcome) -> None:
    """Each kind of fault once, in an order and to nodes that the seed picks."""
    dice = random.Random(SEED)
    live = begin(nodes, "faults")
    for fault in dice.sample(FAULTS, len(FAULTS)):
        live.trains()
        victim = dice.choice(NAMES)
        witness = next(host for host in NAMES if host != victim)  # a fresh node counts its attempts anew
        attempt = live.attempt(witness)
        print(f"attempt {attempt}, step {live.step()}: {fault.__name__} on {victim}", file=sys.stderr)
        fault(live, victim)
        wait_for(lambda: live.attempt(witness) > attempt)  # noqa: B023 - called at once
    assert read(live.folder("n1") / "state.json")["from_step"] >= len(FAULTS) * SAVE
    done = nodes.play(name="faults")
    assert done.rc == 0 and done.run["state"] == "finished", done.text
    adapters, last = results(live.id)
    assert len(adapters) == 1, "the same on all nodes"
    assert last == results(str(quiet.plan["id"]))[1], "as the trainer logs it: four digits"
    wait_for(lambda: not processes(live.id), 15)


def test_on_storage_that_all_share_the_first_node_may_be_a_fresh_one(nodes: Nodes, quiet: Outcome) -> None:
    """Checkpoints and results are there once; `absent` leaves none of them."""
    team = BASE / "nodes" / "team"
    team.mkdir()
    team.chmod(0o777)
    live = begin(nodes, "team", train_output_root=str(team))
    live.trains()
    replace_a_node(live, "n1")
    done = nodes.play(name="team", **live.asked)
    assert done.rc == 0 and done.run["state"] == "finished", done.text
    assert read(live.folder("n1") / "state.json")["from_step"] >= SAVE
    assert results(live.id)[1] == results(str(quiet.plan["id"]))[1], "as the trainer logs it: four digits"
    assert {str((live.folder(host) / "output").readlink()) for host in NAMES} == {str(team / live.id)}
    assert not [path for path in team.rglob("*") if ".node-" in path.name], "no mark of a node is left"
    gone = nodes.play(name="team", train_state="absent", **live.asked)
    assert gone.rc == 0 and list(team.iterdir()) == [], gone.text
