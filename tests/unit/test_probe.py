# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node that holds its place, and another one that tries it: real sockets on loopback."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import threading
import time
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _engine, _place, _probe
from ansible_collections.llmops.finetune.plugins.module_utils._engine import files, lease, state
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def place(tmp_path: Path) -> t.Iterator[dict[str, t.Any]]:
    """A staged run as _run._listen has it, and its port."""
    folder = tmp_path / "runs" / "x-00000000"
    (folder / "logs").mkdir(parents=True)
    shutil.copytree(Path(str(_engine.__file__)).parent, folder / "engine")
    launch = {"leases": ["cpu"], "lease_dir": str(tmp_path / "leases"), "master_port": free_port(), "node_rank": 0}
    files.write_json(folder / "launch.json", launch)
    spec = {"folder": str(folder), "user": "me", "launch": {**launch, "python": sys.executable, "environment": {}}}
    yield spec
    _place.release(state.Run(folder))


def peer(ports: list[int], **other: t.Any) -> dict[str, t.Any]:
    return {"host": "b", "address": "127.0.0.1", "ports": ports, "run": "x-00000000", "node_rank": 0, **other}


def test_a_node_that_holds_its_place_is_reached_and_has_the_lease(place: dict[str, t.Any]) -> None:
    run = state.Run(Path(place["folder"]))
    ports = _place.hold(run, place)
    assert ports[0] == place["launch"]["master_port"] and len(ports) == 2
    (finding,) = _probe.probe([peer(ports)])
    assert finding["why"] == "" and abs(finding["clock"]) < 1
    leases = Path(place["launch"]["lease_dir"])
    assert lease.holders(["cpu"], leases)["cpu"]["staging"] is True
    (wrong,) = _probe.probe([peer(ports, run="y-11111111")])
    assert "answers for run x-00000000, node 0" in wrong["why"]
    (half,) = _probe.probe([peer([ports[0], free_port()])])
    assert half["why"].endswith("refuses the connection, a port of the kernel's choice as NCCL and gloo use them")
    _place.release(run)
    assert lease.holders(["cpu"], leases) == {} and not run.listening.exists()
    (gone,) = _probe.probe([peer(ports)])
    assert gone["why"].endswith("refuses the connection")


def test_the_port_of_the_rendezvous_is_that_of_the_first_node_alone(place: dict[str, t.Any]) -> None:
    run = state.Run(Path(place["folder"]))
    files.write_json(run.launch, {**files.read_json(run.launch), "node_rank": 1})
    with socket.create_server(("", place["launch"]["master_port"])):
        (chosen,) = _place.hold(run, place)
    assert chosen != place["launch"]["master_port"]
    assert _probe.probe([peer([chosen], node_rank=1)])[0]["why"] == ""


def test_a_second_staging_takes_the_place_over(place: dict[str, t.Any]) -> None:
    run = state.Run(Path(place["folder"]))
    _place.hold(run, place)
    first = files.read_json(run.listening)["pid"]
    ports = _place.hold(run, place)
    assert files.read_json(run.listening)["pid"] != first
    assert _probe.probe([peer(ports)])[0]["why"] == ""


def test_a_lease_that_another_run_has_is_told_with_its_holder(place: dict[str, t.Any]) -> None:
    taken = lease.acquire(["cpu"], {"run": "other-1", "user": "u", "pid": 7}, Path(place["launch"]["lease_dir"]))
    with pytest.raises(FinetuneError, match="run other-1"):
        _place.hold(state.Run(Path(place["folder"])), place)
    os.close(taken[0])


def test_a_port_in_use_is_told(place: dict[str, t.Any]) -> None:
    in_use = pytest.raises(FinetuneError, match="cannot be used: Address already in use")
    with socket.create_server(("", place["launch"]["master_port"])), in_use as refusal:
        _place.hold(state.Run(Path(place["folder"])), place)
    assert refusal.value.where == "train_port"


def test_something_else_that_listens_is_told_apart(place: dict[str, t.Any]) -> None:
    def serve(door: socket.socket) -> None:
        caller = door.accept()[0]
        caller.sendall(b"SSH-2.0-OpenSSH\n")
        caller.close()

    with socket.create_server(("127.0.0.1", 0)) as door:
        threading.Thread(target=serve, args=(door,), daemon=True).start()
        (finding,) = _probe.probe([peer([door.getsockname()[1]])])
    assert "something else listens" in finding["why"]


def test_a_silent_peer_takes_no_longer_than_the_patience(place: dict[str, t.Any], monkeypatch: t.Any) -> None:
    monkeypatch.setattr(_probe, "PATIENCE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as door:
        began = time.monotonic()
        found = _probe.probe([peer([door.getsockname()[1]]) for number in range(8)])
    assert time.monotonic() - began < 3
    assert all("does not answer" in finding["why"] for finding in found)
