# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Detached nodes of Ray, with a program in Ray's place that has a child in its session as Ray has."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _ray, _ray_node, _user
from ansible_collections.llmops.finetune.plugins.module_utils._changes import Changes
from ansible_collections.llmops.finetune.plugins.module_utils._engine import files
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

RAY = """
import os, subprocess, sys
if sys.argv[1] == "broken":
    sys.exit("no such option: --broken")
child = subprocess.Popen(["sleep", "600"])
print("Ray runtime started.", flush=True)
child.wait()
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Host:
    """One host, on which the account is the one that runs the tests."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder / "root" / "ray", free_port()

    def spec(self, head: bool = True, word: str = "works") -> dict[str, t.Any]:
        command = [sys.executable, "-c", RAY, word, f"--port={self.port}"]
        return {
            "user": _user.login(),
            "folder": str(self.folder),
            "head": head,
            "address": "127.0.0.1",
            "port": self.port,
            "systemd": False,
            "command": command,
            "environment": {"PATH": os.environ["PATH"]},
            "files": {_ray.ACTIVATE: f"# {word}\n", _ray.LAUNCH: f'"--port={self.port}" {word}\n'},
        }

    def apply(self, token: str = "", dry: bool = False, **how: t.Any) -> tuple[str, list[tuple[str, str]]]:
        changes = Changes(dry)
        known = _ray_node.present(self.spec(**how), token, changes)
        return known, [(change["action"], Path(change["path"]).name) for change in changes.made]

    def remove(self, dry: bool = False) -> list[tuple[str, str]]:
        changes = Changes(dry)
        _ray_node.absent(self.spec(), changes)
        return [(change["action"], Path(change["path"]).name) for change in changes.made]

    @property
    def processes(self) -> list[int]:
        leader = files.read_json(self.folder / _ray_node.LEADER).get("pid")
        return _ray_node._session(leader) if leader else []


@pytest.fixture
def host(tmp_path: Path) -> t.Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.remove()


NEW = [("create", "activate"), ("create", "node.json"), ("create", "token"), ("start", "ray")]


def test_a_node_is_started_once(host: Host) -> None:
    assert host.apply(dry=True) == ("", NEW)
    assert not host.folder.exists()
    token, made = host.apply()
    assert made == NEW and len(token) == 64 and len(host.processes) == 2
    assert (host.folder / "token").stat().st_mode & 0o777 == 0o600
    assert host.folder.stat().st_mode & 0o777 == 0o700
    before = host.processes
    assert host.apply() == (token, []) and host.processes == before


def test_absent_leaves_no_process_and_no_folder(host: Host) -> None:
    host.apply()
    before = host.processes
    assert host.remove(dry=True) == [("remove", "ray")] and host.processes == before
    assert host.remove() == [("remove", "ray")]
    assert not host.folder.exists() and not [pid for pid in before if Path(f"/proc/{pid}/cwd").exists()]
    assert host.remove() == []


def test_a_node_that_is_to_be_another_is_restarted_and_keeps_its_token(host: Host) -> None:
    token = host.apply()[0]
    before = host.processes
    assert host.apply(word="other") == (token, [("update", "activate"), ("update", "node.json"), ("restart", "ray")])
    assert len(host.processes) == 2 and not set(host.processes) & set(before)


def test_what_a_killed_leader_left_is_ended_before_another_start(host: Host) -> None:
    host.apply()
    leader, child = sorted(host.processes)
    os.kill(leader, signal.SIGKILL)
    os.waitpid(leader, 0)
    assert host.processes == [child]
    assert host.apply()[1] == [("start", "ray")]
    assert child not in host.processes and len(host.processes) == 2


def test_the_others_take_the_token_of_the_head(host: Host) -> None:
    assert host.apply(token="a" * 64, head=False) == ("a" * 64, NEW)
    assert host.apply(token="a" * 64, head=False)[1] == []
    assert host.apply(token="b" * 64, head=False) == ("b" * 64, [("update", "token"), ("restart", "ray")])


def test_a_torn_token_is_made_anew(host: Host) -> None:
    host.apply()
    (host.folder / "token").write_text("a" * 10, encoding="utf-8")
    token, made = host.apply()
    assert len(token) == 64 and made == [("update", "token"), ("restart", "ray")]


def test_what_does_not_start_says_its_last_words_and_is_taken_down(host: Host) -> None:
    with pytest.raises(FinetuneError, match=r"Ray did not start\.(.|\n)*no such option: --broken(.|\n)*change:"):
        host.apply(word="broken")
    assert host.processes == []


def test_a_port_in_use_is_refused_before_anything_is_written(host: Host) -> None:
    with socket.create_server(("127.0.0.1", host.port)), pytest.raises(FinetuneError, match="ray_port"):
        host.apply()
    assert not host.folder.exists()


def test_a_host_without_the_account_is_no_node(tmp_path: Path) -> None:
    changes = Changes(False)
    _ray_node.absent({"user": "nobody-of-that-name", "folder": str(tmp_path / "ray")}, changes)
    assert changes.made == []


def test_a_pid_that_is_another_process_now_is_left_alone(host: Host) -> None:
    host.folder.mkdir(parents=True)
    other = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        files.write_json(host.folder / _ray_node.LEADER, {"pid": other.pid})
        assert host.remove() == [("remove", "ray")]
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
