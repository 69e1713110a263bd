# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts of a test: podman containers that boot systemd and run sshd (tests/hosts), each with a disk of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import typing as t
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from .conftest import BASE, KEEP, REPOSITORY, SHORT, Outcome, World

HOSTS = REPOSITORY / "tests" / "hosts" / "hosts.sh"
STATE = Path(os.environ.get("HOSTS_STATE") or BASE / "hosts")
PREFIX = os.environ.get("HOSTS_PREFIX") or "e2e"
SUBNET = os.environ.get("HOSTS_SUBNET") or "10.213.9.0/24"
"""The three may be given, for a second checkout on the same machine."""
SETTINGS = {**os.environ, "HOSTS_STATE": str(STATE), "HOSTS_PREFIX": PREFIX, "HOSTS_SUBNET": SUBNET}
INVENTORY = STATE / "inventory.yml"
HOST_PYTHON = "3.11"
ROOT = "/data/llmops"
NAMES = tuple(f"{PREFIX}{number}" for number in (1, 2, 3))


def address(last: int) -> str:
    """An address of the hosts' network: their first is .20, this machine is .1."""
    return f"{SUBNET.rpartition('.')[0]}.{last}"


def address_of(host: str) -> str:
    return address(19 + int(host.removeprefix(PREFIX)))


def hosts(*arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([HOSTS, *arguments], env=SETTINGS, input=typed, capture_output=True, text=True, check=False)


def sh(host: str, command: str, check: bool = True) -> str:
    """What a shell of root on the host answers; sudo notes its arguments in the journal, so there are none."""
    done = hosts("ssh", host, "sudo sh", typed=command)
    assert done.returncode == 0 or not check, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


def root_sh(host: str, command: str) -> str:
    """The same without the host's sshd and sudo."""
    return podman("exec", host, "sh", "-c", command)


def podman(*arguments: str) -> str:
    settings = {**os.environ, "CONTAINERS_CONF": str(STATE / "containers.conf")}
    done = subprocess.run(["podman", *arguments], env=settings, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def replaced(host: str) -> None:
    """Another machine comes up at the address of one that is gone: with its disk at /data, all else anew."""
    subprocess.run(["ssh-keygen", "-R", address_of(host), "-f", STATE / "known_hosts"], capture_output=True, check=True)
    up = hosts("up", str(len(NAMES)))
    assert up.returncode == 0, up.stderr


def read(host: str, run_id: str, name: str) -> dict[str, t.Any]:
    text = sh(host, f"cat '{ROOT}/runs/{run_id}/{name}'", check=False)
    return t.cast("dict[str, t.Any]", json.loads(text)) if text else {}


def world(request: pytest.FixtureRequest) -> World:
    """The world of the tests. Who asks for tests on hosts (make systemd, make cluster) is told what lacks for them."""
    usable = hosts("check")
    assert usable.returncode == 0, usable.stderr
    found = request.getfixturevalue("world")
    request.getfixturevalue("demo")
    assert isinstance(found, World)
    return found


def variables(name: str, root: str, *, offline: bool) -> dict[str, object]:
    """How runs on hosts are asked for: as an account of their own, in the place for leases that hosts have."""
    return {
        "train_name": name,
        "train_user": "llmops",
        "train_root": root,
        "train_lease_dir": "",
        "uv_env_offline": offline,
    }


def give_packages(world: World, host: str, root: str) -> None:
    """Put the packages of the demo's environment on the disk of a host as the cache of its uv."""
    cache = STATE / "disks" / host / Path(root).name / "cache"
    if not cache.exists():
        cache.mkdir(parents=True)
        subprocess.run(["cp", "-al", world.root / "cache" / "uv", cache / "uv"], check=True)
        subprocess.run(["find", cache.parent, "-type", "d", "-exec", "chmod", "0777", "{}", "+"], check=True)


def same_python(world: World) -> bool:
    """Whether those packages are for the Python of the hosts: then they need no index."""
    built_on = re.findall(r"version_info = (\d+\.\d+)", sorted(world.root.glob("envs/*/pyvenv.cfg"))[0].read_text())
    return built_on == [HOST_PYTHON]


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
        of: dict[str, dict[str, t.Any]] | None = None,
        asked: dict[str, t.Any] | None = None,
        **short: t.Any,
    ) -> Outcome:
        given = {**variables(name, ROOT, offline=self.offline), **(asked or {})}
        inventory = self._inventory(order, of)
        return self.world.play(playbook, *arguments, variables=given, inventory=inventory, **short)

    def begin(self, name: str, **short: t.Any) -> subprocess.Popen[bytes]:
        """The same as a process of its own."""
        given = {
            **self.world.variables,
            **variables(name, ROOT, offline=self.offline),
            "train_args": {**SHORT, **short},
        }
        return subprocess.Popen(
            ["ansible-playbook", "train.yml", "-i", self._inventory(NAMES, None), "-e", json.dumps(given)],
            cwd=self.world.clone,
            env=self.world.environment(BASE / "follow.jsonl"),
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _inventory(self, order: t.Sequence[str], of: dict[str, dict[str, t.Any]] | None) -> Path:
        known = yaml.safe_load(INVENTORY.read_text(encoding="utf-8"))
        known["trainers"]["hosts"] = {
            host: {**known["trainers"]["hosts"][host], **(of or {}).get(host, {})} for host in order
        }
        inventory = BASE / "cluster.yml"
        inventory.write_text(yaml.safe_dump(known, sort_keys=False), encoding="utf-8")
        return inventory


SAVE = 10
STEPS: dict[str, t.Any] = {"max_steps": 200, "save_steps": SAVE, "logging_steps": 10, "save_total_limit": 3}


@dataclass
class First:
    """A run over all hosts that nothing disturbed, and the same command again."""

    done: Outcome
    again: Outcome

    @property
    def id(self) -> str:
        return str(self.done.plan["id"])


def first(cluster: Cluster) -> First:
    done = cluster.play("train.yml", name="three", **STEPS)
    assert done.rc == 0, done.text
    return First(done, cluster.play("train.yml", name="three", **STEPS))


def ranks(run_id: str, order: t.Sequence[str] = NAMES) -> list[list[int]]:
    """The ranks that ran on each host, as they said themselves."""
    found = []
    for host in order:
        names = sh(host, f"ls {ROOT}/runs/{run_id}/logs/")
        found.append(sorted(int(rank) for rank in re.findall(r"memory-rank(\d+)\.json", names)))
    return found


def adapters(run_id: str, order: t.Sequence[str] = NAMES) -> set[str]:
    return {sh(host, f"sha256sum < {ROOT}/runs/{run_id}/output/adapter_model.safetensors") for host in order}


def losses(host: str, run_id: str) -> list[float]:
    log = sh(host, f"cat {ROOT}/runs/{run_id}/output/trainer_log.jsonl")
    return [line["loss"] for line in map(json.loads, log.splitlines()) if "loss" in line]


def left() -> list[str]:
    """What is left of a run that came to its end: processes, units, leases."""
    left = []
    for host in NAMES:
        left += sh(host, "pgrep -u llmops -a", check=False).splitlines()
        left += sh(host, "ls /etc/systemd/system/llmops-* 2>/dev/null", check=False).splitlines()
    return left


def cluster(request: pytest.FixtureRequest) -> t.Iterator[Cluster]:
    """Three hosts, each with the packages of the demo's environment."""
    made = world(request)
    if not KEEP:
        hosts("down")
    up = hosts("up", str(len(NAMES)))
    assert up.returncode == 0, up.stderr
    for name in NAMES:
        give_packages(made, name, ROOT)
    yield Cluster(made, offline=same_python(made))
    if not KEEP:
        hosts("down")
