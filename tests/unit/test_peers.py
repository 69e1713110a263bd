# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ranks see of the other nodes of their attempt."""

from __future__ import annotations

import functools
import threading
import time
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._engine import files, peers, rank

from .test_exchange import Memory


@pytest.mark.parametrize(
    ("beats", "now", "expected"),
    [
        ({1: 100.0, 2: 100.0}, 111.0, []),
        ({1: 100.0, 2: 100.0}, 113.0, [1, 2]),
        ({1: 100.0, 2: 112.0}, 113.0, [1]),
        ({1: 100.0}, 1000.0, []),  # node 2 has not begun: the clock does not run yet
        ({}, 1000.0, []),
    ],
)
def test_silence(beats: dict[int, float], now: float, expected: list[int]) -> None:
    assert peers.silent(beats, [1, 2], now) == expected


def test_a_node_that_is_done_is_not_waited_for() -> None:
    assert peers.silent({1: 0.0, 2: 100.0}, [2], 101.0) == []


def test_this_rank_is_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": 5, "LOCAL_RANK": 1, "GROUP_RANK": 2, "GROUP_WORLD_SIZE": 3, "WORLD_SIZE": 6}.items():
        monkeypatch.setenv(name, str(value))
    assert peers.here() == (5, 1, 2, 3, 6) and not peers.here().leads
    for name in ("RANK", "LOCAL_RANK", "GROUP_RANK", "GROUP_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.delenv(name)
    assert peers.here() == (0, 0, 0, 1, 1) and peers.here().leads


def test_all_ranks_end_at_the_step_that_rank_0_fixes() -> None:
    store = Memory()
    assert not peers.ends_at(store, 1, 7, wanted=False)
    assert not peers.ends_at(store, 1, 7, wanted=True), "rank 0 has not fixed a step yet"
    assert not peers.ends_at(store, 0, 7, wanted=False), "the next one: another rank may have passed this one"
    assert peers.ends_at(store, 0, 8, wanted=False) and peers.ends_at(store, 1, 8, wanted=True)


def test_a_failing_rank_hears_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "ERRORS_SECONDS", 0.3)
    store = Memory()
    peers.share_error(store, 2, 3, {"rank": 2, "type": "ValueError"})
    found = peers.share_error(store, 0, 3, {"rank": 0, "type": "PeerLost"})
    assert {rank: told["type"] for rank, told in found.items()} == {0: "PeerLost", 2: "ValueError"}


def client_of(store: Memory) -> t.Callable[[], Memory]:
    return lambda: store


def test_a_silent_node_and_a_silent_store_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(peers, "SILENCE_SECONDS", 0.3)

    class Hanging(Memory):
        def check(self, keys: list[str]) -> bool:
            time.sleep(1)
            return False

    for store, expected in ((Memory(), "Node 1 fell silent."), (Hanging(), "Node 0, where ranks meet, fell silent.")):
        told: list[str] = []
        store.set("beat/1", "1")
        liveness = peers.Liveness(client_of(store), peers.Node(0, 0, 0, 2, 2), told.append)
        deadline = time.monotonic() + 5
        while not told and time.monotonic() < deadline:
            time.sleep(0.02)
        liveness.over.set()
        assert told[:1] == [expected]


def test_all_know_whom_one_has_lost_before_it_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who leaves closes its connections, and that would be all that the others see."""
    monkeypatch.setattr(peers, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(peers, "SILENCE_SECONDS", 0.5)
    store, left = Memory(), {}  # type: Memory, dict[int, tuple[str, str]]
    store.set("beat/2", "1")
    nodes: list[peers.Liveness] = []

    def leave(node: int, why: str) -> None:
        left[node] = (why, nodes[1 - node].why)

    for node in (0, 1):
        here = peers.Node(node, 0, node, 3, 3)
        nodes.append(peers.Liveness(lambda: store, here, functools.partial(leave, node)))
    monkeypatch.setattr(peers, "silent", lambda beats, waiting, now: [2] if 2 in waiting and 0 in waiting else [])
    until = time.monotonic() + 5
    while len(left) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    assert left == dict.fromkeys((0, 1), ("Node 2 fell silent.", "Node 2 fell silent."))


def test_what_follows_from_a_lost_node_is_told_as_that() -> None:
    here, closed = peers.Node(1, 0, 1, 3, 3), RuntimeError("Connection closed by peer [10.0.0.1]:4242")
    assert rank.told(here, closed, "Node 2 fell silent.")["message"] == "Node 2 fell silent."
    assert rank.told(here, closed)["message"] == str(closed)
    assert rank.told(here, ValueError("no such column"), "Node 2 fell silent.")["type"] == "ValueError"


@pytest.mark.parametrize(("why", "shared"), [("Node 0, where ranks meet, fell silent.", 0), ("", 1)])
def test_a_silent_store_is_told_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str, shared: int) -> None:
    """Who asks it waits for its answer, and the rank stays."""
    asked: list[int] = []

    def fail(*of: object) -> t.NoReturn:
        raise RuntimeError("Connection closed by peer")

    def share(store: object, number: int, *more: object) -> dict[int, t.Any]:
        asked.append(number)
        return {}

    (tmp_path / "logs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rank, "die_with_parent", lambda: None)
    monkeypatch.setattr(files, "locked", lambda path: True)
    monkeypatch.setattr(rank, "_train", fail)
    monkeypatch.setattr(peers, "here", lambda: peers.Node(1, 0, 1, 3, 3))
    monkeypatch.setattr(peers, "connect", Memory)
    monkeypatch.setattr(peers, "share_error", share)
    monkeypatch.setattr(peers.Liveness, "why", why)
    assert rank.main() == 1 and len(asked) == shared
    assert files.read_json(tmp_path / "logs" / "error-rank1.json")["message"] == (why or "Connection closed by peer")


def test_a_beating_node_is_not_lost_and_one_that_is_done_need_not_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(peers, "SILENCE_SECONDS", 0.3)
    store, told = Memory(), []  # type: Memory, list[str]
    one, two = (peers.Liveness(lambda: store, peers.Node(node, 0, node, 2, 2), told.append) for node in (0, 1))
    time.sleep(0.5)
    leaving = threading.Thread(target=two.farewell)
    leaving.start()
    time.sleep(0.5)
    assert leaving.is_alive(), "it stays until all are done"
    one.farewell()
    leaving.join(5)
    assert told == [] and store.check(["done/0", "done/1"]) and not leaving.is_alive()


def test_a_node_that_is_lost_while_others_are_done_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(peers, "SILENCE_SECONDS", 0.2)
    store, told = Memory(), []  # type: Memory, list[str]
    one, two = (peers.Liveness(lambda: store, peers.Node(node, 0, node, 2, 2), told.append) for node in (0, 1))
    until = time.monotonic() + 5
    while not store.check(["beat/1"]) and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.1)
    leaving = threading.Thread(target=one.farewell, daemon=True)
    leaving.start()
    two.over.set()  # it beats no more, and was not done
    while not told and time.monotonic() < until:
        time.sleep(0.02)
    assert told == ["Node 1 fell silent."]
    two.farewell()


class Client(Memory):
    """One of several clients of a store. As with torchrun's, who waits in `get` keeps it for himself."""

    def __init__(self, values: dict[str, bytes]) -> None:
        super().__init__()
        self.values, self.turn = values, threading.Lock()

    def get(self, key: str) -> bytes:
        with self.turn:
            while key not in self.values:
                time.sleep(0.01)
            return self.values[key]

    def set(self, key: str, value: str) -> None:
        with self.turn:
            super().set(key, value)

    def check(self, keys: list[str]) -> bool:
        with self.turn:
            return super().check(keys)


def test_a_rank_that_waits_for_another_node_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "BEAT_SECONDS", 0.02)
    values: dict[str, bytes] = {}
    store, told = Client(values), []  # type: Client, list[str]
    liveness = peers.Liveness(lambda: Client(values), peers.Node(0, 0, 0, 2, 2), told.append)
    waiting = threading.Thread(target=store.get, args=("ready/1",))
    waiting.start()
    first = int(values.get("beat/0", b"0"))
    time.sleep(0.3)
    assert waiting.is_alive() and int(values["beat/0"]) > first + 3
    store.values["ready/1"] = b"1"
    waiting.join(5)
    liveness.over.set()
    assert told == [] and not waiting.is_alive()
