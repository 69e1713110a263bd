# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The accounts and versions people come with."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

from .conftest import BASE, SYSTEM_PATH, Demo, World

AS_ROOT = os.getuid() == 0
OWNER = "llmops" if AS_ROOT else pwd.getpwuid(os.getuid()).pw_name
"""Whose the runs are: root makes an account for them, anybody else is that account."""


def python_at(version: str) -> str | None:
    """An interpreter of that version: on PATH, or among those that pyenv keeps."""
    found = shutil.which(f"python{version}")
    kept = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"))
    candidates = [path for path in (found, *map(str, kept)) if path]
    return next((path for path in candidates if subprocess.run([path, "-c", ""], check=False).returncode == 0), None)


def test_ansible_core_2_21_on_python_3_12(world: World, demo: Demo) -> None:
    newer = python_at("3.12") or python_at("3.13")
    assert newer, "no Python 3.12 or 3.13 on this machine: install one to test ansible-core 2.21"
    venv = BASE / "core-2.21"
    if not venv.exists():
        uv, lock = world.clone / ".venv/bin/uv", world.clone / "requirements/controller.txt"
        subprocess.run([uv, "venv", "--quiet", "--python", newer, venv], check=True)
        into = ["--quiet", "--require-hashes", "--python", venv]
        subprocess.run([uv, "pip", "sync", *map(str, into), lock], check=True)
    version = subprocess.run([venv / "bin/ansible", "--version"], capture_output=True, text=True, check=True).stdout
    print(version.splitlines()[0], newer, file=sys.stderr)
    assert "core 2.21" in version
    environment = {**world.environment(BASE / "newer.jsonl"), "PATH": f"{venv}/bin:{SYSTEM_PATH}"}
    play = [venv / "bin/ansible-playbook", "train.yml", "-i", "inventory", "-e", json.dumps(world.variables)]
    done = world.shell([*map(str, play)], env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "changed=0" in done.stdout and demo.folder.name in done.stdout
    short = ["-e", 'train_name=newer train_set="max_steps=4 save_steps=2"']
    trained = world.shell([*map(str, play), *short], env=environment)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert "Run newer-" in trained.stdout and "is finished." in trained.stdout


def test_a_laptop_user_without_root(world: World, demo: Demo) -> None:
    """The account of the runs is the login user itself: nothing asks for root, and the same run is found."""
    record = BASE / "laptop.jsonl"
    record.touch()
    record.chmod(0o666)
    environment = {**world.environment(record), "HOME": pwd.getpwnam(OWNER).pw_dir}
    play = ["runuser", "-u", OWNER, "--"] if AS_ROOT else []
    play += ["ansible-playbook", "train.yml", "-i", "inventory", "-e", json.dumps(world.variables)]
    done = world.shell(play, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "changed=0" in done.stdout and demo.folder.name in done.stdout
    trained = world.shell([*play, "-e", 'train_name=laptop train_set="max_steps=4 save_steps=2"'], env=environment)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    folder = next((world.root / "runs").glob("laptop-*"))
    assert "is finished." in trained.stdout and folder.owner() == OWNER


def test_the_account_that_is_named_is_the_one_that_runs_belong_to(world: World, demo: Demo) -> None:
    """Ranks never run as root: what the demo left belongs to the account, for which root acts."""
    owners = {path.owner() for path in [demo.folder, *demo.folder.rglob("*")]}
    assert owners == {OWNER} and OWNER != "root"
    asked = {"train_name": "demo", "train_user": OWNER, "train_become": AS_ROOT, "train_args": {"lora_rank": 16}}
    named = world.play(variables=asked)
    assert named.rc == 0, named.text
    assert named.plan["id"] == demo.folder.name and named.changed == []


def test_a_user_that_is_not_there_is_refused_by_name(world: World, demo: Demo) -> None:
    refused = world.play(variables={"train_user": "nobody-of-that-name", "train_become": False})
    assert refused.rc != 0
    assert "nobody-of-that-name" in refused.message and "train_user" in refused.message
