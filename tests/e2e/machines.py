# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts of a test: podman containers that boot systemd and run sshd (tests/hosts), each with a disk of its own."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from .conftest import BASE, REPOSITORY, World

HOSTS = REPOSITORY / "tests" / "hosts" / "hosts.sh"
INVENTORY = BASE / "hosts" / "inventory.yml"
HOST_PYTHON = "3.11"
SUBNET = "10.213.9.0/24"
SETTINGS = {**os.environ, "HOSTS_STATE": str(BASE / "hosts"), "HOSTS_PREFIX": "e2e", "HOSTS_SUBNET": SUBNET}


def hosts(*arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([HOSTS, *arguments], env=SETTINGS, input=typed, capture_output=True, text=True, check=False)


def sh(host: str, command: str, check: bool = True) -> str:
    """What a shell of root on the host answers; sudo notes its arguments in the journal, so there are none."""
    done = hosts("ssh", host, "sudo sh", typed=command)
    assert done.returncode == 0 or not check, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


def root_sh(host: str, command: str) -> str:
    """The same without the host's sshd and sudo."""
    settings = {**os.environ, "CONTAINERS_CONF": str(BASE / "hosts" / "containers.conf")}
    done = subprocess.run(
        ["podman", "exec", host, "sh", "-c", command], env=settings, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


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
    cache = BASE / "hosts" / "disks" / host / Path(root).name / "cache"
    if not cache.exists():
        cache.mkdir(parents=True)
        subprocess.run(["cp", "-al", world.root / "cache" / "uv", cache / "uv"], check=True)
        subprocess.run(["find", cache.parent, "-type", "d", "-exec", "chmod", "0777", "{}", "+"], check=True)


def same_python(world: World) -> bool:
    """Whether those packages are for the Python of the hosts: then they need no index."""
    built_on = re.findall(r"version_info = (\d+\.\d+)", sorted(world.root.glob("envs/*/pyvenv.cfg"))[0].read_text())
    return built_on == [HOST_PYTHON]
