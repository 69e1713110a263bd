# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Three hosts over ssh: one run, ranks by the order of the inventory, and nothing lost when one of them is.

The hosts are podman containers (machines.py); each builds its environment itself and shares nothing with the others.
"""

from __future__ import annotations

import json
import typing as t
from dataclasses import dataclass

import pytest
import yaml

from . import machines
from .conftest import BASE, KEEP, Outcome, World
from .machines import hosts, sh

ROOT = "/data/llmops"
NAMES = ("e2e1", "e2e2", "e2e3")


@dataclass
class Cluster:
    world: World
    offline: bool

    def play(
        self,
        playbook: str,
        *arguments: str,
        name: str,
        order: t.Sequence[str] = NAMES,
        asked: dict[str, t.Any] | None = None,
        **short: t.Any,
    ) -> Outcome:
        variables = {
            "train_name": name,
            "train_user": "llmops",
            "train_root": ROOT,
            "train_lease_dir": "",
            "uv_env_offline": self.offline,
            **(asked or {}),
        }
        known = yaml.safe_load(machines.INVENTORY.read_text(encoding="utf-8"))
        known["trainers"]["hosts"] = {host: known["trainers"]["hosts"][host] for host in order}
        inventory = BASE / "cluster.yml"
        inventory.write_text(yaml.safe_dump(known, sort_keys=False), encoding="utf-8")
        return self.world.play(playbook, *arguments, variables=variables, inventory=inventory, **short)


def read(host: str, run_id: str, name: str) -> dict[str, t.Any]:
    text = sh(host, f"cat '{ROOT}/runs/{run_id}/{name}'", check=False)
    return t.cast("dict[str, t.Any]", json.loads(text)) if text else {}


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> t.Iterator[Cluster]:
    world = machines.world(request)
    if not KEEP:
        hosts("down")
    up = hosts("up", str(len(NAMES)))
    assert up.returncode == 0, up.stderr
    for name in NAMES:
        machines.give_packages(world, name, ROOT)
    yield Cluster(world, offline=machines.same_python(world))
    if not KEEP:
        hosts("down")


@dataclass
class First:
    done: Outcome
    again: Outcome

    @property
    def id(self) -> str:
        return str(self.done.plan["id"])


@pytest.fixture(scope="module")
def first(cluster: Cluster) -> First:
    done = cluster.play("train.yml", name="three")
    assert done.rc == 0, done.text
    return First(done, cluster.play("train.yml", name="three"))


def test_ranks_are_the_order_of_the_inventory(first: First) -> None:
    assert first.done.plan["resolved"]["world_size"] == 3
    for rank, host in enumerate(NAMES):
        memory = json.loads(sh(host, f"cat {ROOT}/runs/{first.id}/logs/memory-rank*.json"))
        assert memory["rank"] == rank


def test_a_second_apply_changes_nothing(first: First) -> None:
    assert (first.again.rc, first.again.changed) == (0, []), first.again.text
    assert len(first.again.on_node) <= 4 * len(NAMES)


def test_every_node_has_the_adapter(first: First) -> None:
    digests = {sh(host, f"sha256sum < {ROOT}/runs/{first.id}/output/adapter_model.safetensors") for host in NAMES}
    assert len(digests) == 1
