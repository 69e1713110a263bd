# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node that holds its place, and another one that tries it: real sockets on loopback."""

from __future__ import annotations

import os
import shutil
import socket
import socketserver
import sys
import threading
import time
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _engine, _place
from ansible_collections.llmops.finetune.plugins.module_utils._engine import files, lease, probe, state
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError


def free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return int(door.getsockname()[1])


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
    ports = _place.hold(run, place)["ports"]
    assert ports[0] == place["launch"]["master_port"] and len(ports) == 2
    (finding,) = probe.probe([peer(ports)])
    assert finding["why"] == "" and abs(finding["clock"]) < 1
    leases = Path(place["launch"]["lease_dir"])
    assert lease.holders(["cpu"], leases)["cpu"]["staging"] is True
    (wrong,) = probe.probe([peer(ports, run="y-11111111")])
    assert "answers for run x-00000000, node 0" in wrong["why"]
    (half,) = probe.probe([peer([ports[0], free_port()])])
    assert half["why"].endswith("refuses the connection, a port of the kernel's choice as NCCL and gloo use them")
    _place.release(run)
    assert lease.holders(["cpu"], leases) == {} and not run.listening.exists()
    (gone,) = probe.probe([peer(ports)])
    assert gone["why"].endswith("refuses the connection")


def test_the_port_of_the_rendezvous_is_that_of_the_first_node_alone(place: dict[str, t.Any]) -> None:
    run = state.Run(Path(place["folder"]))
    files.write_json(run.launch, {**files.read_json(run.launch), "node_rank": 1})
    with socket.create_server(("", place["launch"]["master_port"])):
        (chosen,) = _place.hold(run, place)["ports"]
    assert chosen != place["launch"]["master_port"]
    assert probe.probe([peer([chosen], node_rank=1)])[0]["why"] == ""


def test_a_second_staging_takes_the_place_over(place: dict[str, t.Any]) -> None:
    run = state.Run(Path(place["folder"]))
    _place.hold(run, place)
    first = files.read_json(run.listening)["pid"]
    ports = _place.hold(run, place)["ports"]
    assert files.read_json(run.listening)["pid"] != first
    assert probe.probe([peer(ports)])[0]["why"] == ""


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
        (finding,) = probe.probe([peer([door.getsockname()[1]])])
    assert "something else listens" in finding["why"]


def test_a_silent_peer_takes_no_longer_than_the_patience(place: dict[str, t.Any], monkeypatch: t.Any) -> None:
    monkeypatch.setattr(probe, "PATIENCE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as door:
        began = time.monotonic()
        found = probe.probe([peer([door.getsockname()[1]]) for number in range(8)])
    assert time.monotonic() - began < 3
    assert all("does not answer" in finding["why"] for finding in found)


@pytest.fixture
def places(place: dict[str, t.Any]) -> t.Iterator[list[dict[str, t.Any]]]:
    """Three nodes as a survey takes them: this one, and two whose places are held."""
    runs = [state.Run(Path(place["folder"]))]
    for node_rank in (1, 2):
        folder = Path(place["folder"]).parents[node_rank - 1] / f"other-{node_rank}" / runs[0].path.name
        shutil.copytree(runs[0].path, folder)
        leases = {"leases": [f"cpu-{node_rank}"], "node_rank": node_rank}
        files.write_json(folder / "launch.json", {**place["launch"], **leases})
        runs.append(state.Run(folder))
    held = [_place.hold(run, {**place, "folder": str(run.path)}) for run in runs]
    yield [{**peer([]), "host": name, "node_rank": rank, **held[rank]} for rank, name in enumerate("abc")]
    for run in runs:
        _place.release(run)


def test_one_node_tells_what_all_of_them_see(places: list[dict[str, t.Any]]) -> None:
    found = probe.survey("a", places)
    assert {host: [(one["host"], one["why"]) for one in seen] for host, seen in found.items()} == {
        "a": [("b", ""), ("c", "")],
        "b": [("a", ""), ("c", "")],
        "c": [("a", ""), ("b", "")],
    }
    assert all(abs(one["clock"]) < 1 for seen in found.values() for one in seen)
    assert probe.survey("a", []) == {}


def test_what_another_node_cannot_reach_is_its_finding(places: list[dict[str, t.Any]]) -> None:
    """Ports that only the others are told are closed: what they say is what they tried themselves."""
    closed = free_port()
    seen = probe._ask(places[1], [places[0], {**places[2], "ports": [closed]}])
    assert seen is not None and [(one["host"], bool(one["why"])) for one in seen] == [("a", False), ("c", True)]
    assert f"127.0.0.1:{closed} refuses the connection" in seen[1]["why"]


def test_a_listener_tries_nothing_for_one_that_does_not_know_its_token(places: list[dict[str, t.Any]]) -> None:
    places[1]["token"] = "another"
    found = probe.survey("a", places)
    assert found["b"] == [] and found["a"][0]["why"] == "does not say which nodes it gets through to"
    assert [one["why"] for one in found["c"]] == ["", ""], "it goes on holding its place"


@pytest.mark.parametrize("said", [b"[1]\n", b'{"why": ""}\n', b'[{"host": "a"}]\n', b"no JSON\n", b""])
def test_an_answer_that_is_none_is_asked_for_again_and_then_told(said: bytes) -> None:
    questions: list[bytes] = []

    class Other(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b'{"run": "x-00000000", "node_rank": 1, "time": 0}\n')
            if question := self.rfile.readline():
                questions.append(question)
                self.wfile.write(said)

    with socketserver.TCPServer(("127.0.0.1", 0), Other) as door:
        threading.Thread(target=door.serve_forever, daemon=True).start()
        nodes = [
            {**peer([free_port()]), "host": "a", "token": "ours"},
            {**peer([door.server_address[1]]), "host": "b", "node_rank": 1, "token": "theirs"},
        ]
        found = probe.survey("a", nodes)
        door.shutdown()
    assert found["b"] == [] and found["a"][0]["why"] == "does not say which nodes it gets through to"
    assert len(questions) == 2 and b"theirs" in questions[0] and b"ours" not in questions[0]


def test_a_node_that_is_not_there_is_the_finding_of_the_others(places: list[dict[str, t.Any]]) -> None:
    places[2]["ports"] = [free_port()]
    found = probe.survey("a", places)
    assert found["c"] == []
    assert [bool(one["why"]) for one in [*found["a"], *found["b"]]] == [False, True, False, True]


@pytest.mark.parametrize("question", [b"", b"\n", b"no JSON\n", b"[1]\n", b'{"peers": []}\n', b'{"token": "t"}\n'])
def test_what_is_no_question_is_not_answered(places: list[dict[str, t.Any]], question: bytes) -> None:
    address = ("127.0.0.1", places[1]["ports"][-1])
    with socket.create_connection(address, timeout=5) as line, line.makefile("rb") as file:
        assert b'"node_rank": 1' in file.readline()
        line.sendall(question)
        line.shutdown(socket.SHUT_WR)
        assert file.read() == b""
    assert probe.probe([places[1]])[0]["why"] == "", "it goes on holding its place"
