# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which checkpoint several nodes go on from, and which files move."""

from __future__ import annotations

import json
import threading
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._engine import checkpoint, exchange, peers
from ansible_collections.llmops.finetune.plugins.module_utils._engine.exchange import Held, Move

ALIKE = {"adapter.safetensors": 10, "optimizer.pt": 20, "trainer_state.json": 5}


def ddp(nodes: int = 3) -> list[dict[str, int]]:
    """What each node writes of replicated state: all alike but the random state of its rank."""
    return [{**ALIKE, f"rng_state_{node}.pth": 3} for node in range(nodes)]


def zero(nodes: int = 3) -> list[dict[str, int]]:
    return [{**files, f"global_step8/zero_rank_{node}.pt": 50} for node, files in enumerate(ddp(nodes))]


def had(saved: list[dict[str, int]], node: int, mirrored: bool = True) -> Held:
    """What a node holds: its own files and its neighbour's."""
    before = (node - 1) % len(saved)
    copies = {move.name: move.size for move in exchange.mirror(saved) if move.target == node and mirrored}
    assert all(move.source == before for move in exchange.mirror(saved) if move.target == node)
    return Held({**saved[node], **copies}, saved)


def whole(saved: list[dict[str, int]]) -> list[dict[int, Held]]:
    return [{8: had(saved, node)} for node in range(len(saved))]


def test_what_all_have_stays_where_it_is() -> None:
    assert exchange.agree(whole(ddp()))[:3] == (8, [], [])
    assert exchange.agree(whole(zero()))[:3] == (8, [], [])
    assert exchange.agree([{}, {}, {}])[:3] == (0, [], [])


def test_a_checkpoint_that_one_node_did_not_finish_is_completed_from_the_others() -> None:
    nodes = whole(ddp())
    nodes[0][16] = had(ddp(), 0)
    agreed = exchange.agree(nodes)
    assert agreed.step == 16 and agreed.lost == []
    alike = {Move(name, size, 0, target) for name, size in ALIKE.items() for target in (1, 2)}
    copied = {Move("rng_state_2.pth", 3, 0, 2)}
    assert set(agreed.moves) == alike | copied, "the random state of rank 1 is in no copy, and can be done without"


@pytest.mark.parametrize("gone", [0, 1, 2])
@pytest.mark.parametrize("saved", [ddp(), zero()], ids=["replicated", "sharded"])
def test_a_fresh_node_gets_all_it_needs(saved: list[dict[str, int]], gone: int) -> None:
    nodes = whole(saved)
    nodes[gone] = {}
    agreed = exchange.agree(nodes)
    assert (agreed.step, agreed.lost) == (8, [])
    assert {(move.name, move.size) for move in agreed.moves} == set(saved[gone].items())
    assert all(move.target == gone and move.name in nodes[move.source][8].files for move in agreed.moves)


def test_two_lost_neighbours_lose_shards_and_these_are_named() -> None:
    nodes = whole(zero())
    nodes[0] = nodes[1] = {}
    assert exchange.agree(nodes)[:3] == (0, [], ["checkpoint-8/global_step8/zero_rank_0.pt"])
    assert exchange.agree([{}, {}, {8: had(ddp(), 2)}]).step == 8, "replicated state needs one node"


def test_files_of_two_savings_of_a_step_are_not_put_together() -> None:
    """One node has what was saved after the run went back, the other what was saved before."""
    nodes = [{8: had(ddp(2), node)._replace(save=save)} for node, save in enumerate((2, 1))]
    agreed = exchange.agree(nodes)
    assert (agreed.step, agreed.save) == (8, 2)
    assert {move.name for move in agreed.moves if (move.source, move.target) == (0, 1)} >= ALIKE.keys()
    shards = [{8: had(zero(2), node, mirrored=False)._replace(save=save)} for node, save in enumerate((2, 1))]
    assert exchange.agree(shards).step == 0


def test_an_older_checkpoint_that_is_whole_is_taken() -> None:
    nodes = whole(zero())
    nodes[2][16] = had(zero(), 2)
    agreed = exchange.agree(nodes)
    assert agreed.step == 8 and "checkpoint-16/global_step8/zero_rank_0.pt" in agreed.lost


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_another_number_of_nodes_takes_replicated_state_and_no_shards(nodes: int) -> None:
    some = [*whole(ddp()), {}][:nodes]
    agreed = exchange.agree(some)
    assert (agreed.step, agreed.lost) == (8, [])
    assert {move.name for move in agreed.moves} == (set(ALIKE) if nodes == 4 else set())
    if nodes < 3:
        shards = exchange.agree([{8: had(zero(), node, mirrored=False)} for node in range(nodes)])
        assert shards.step == 0 and shards.lost


def test_what_rank_0_writes_for_all_is_brought_to_every_node() -> None:
    for_all = {"latest": 12, "global_step8/mp_rank_00_model_states.pt": 90}
    shards = [f"global_step8/zero_pp_rank_{node}_mp_rank_00_optim_states.pt" for node in range(3)]
    saved = [{**files, shard: 50} for files, shard in zip(ddp(), shards, strict=True)]
    saved[0].update(for_all)
    agreed = exchange.agree(whole(saved))
    assert agreed.lost == []
    assert set(agreed.moves) == {Move(name, size, 0, 2) for name, size in for_all.items()}, "node 1 has the copies"


def test_files_alike_by_name_may_differ_in_length() -> None:
    saved = [{**ALIKE, "training_args.bin": 100 + node} for node in range(2)]
    nodes = [{8: Held(saved[0], saved)}, {}]
    assert Move("training_args.bin", 100, 0, 1) in exchange.agree(nodes).moves
    assert exchange.agree([{8: Held(files, saved)} for files in saved]).moves == []


def test_neighbours_keep_what_one_node_alone_has() -> None:
    assert {(move.source, move.target) for move in exchange.mirror(zero())} == {(0, 1), (1, 2), (2, 0)}
    assert all("rank_" in move.name or "rng" in move.name for move in exchange.mirror(zero()))


class Memory:
    """A store that several threads share, like that of torchrun."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.changed = threading.Condition()

    def set(self, key: str, value: str) -> None:
        with self.changed:
            self.values[key] = value.encode()
            self.changed.notify_all()

    def get(self, key: str) -> bytes:
        with self.changed:
            assert self.changed.wait_for(lambda: key in self.values, 10)
            return self.values[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)


def test_all_nodes_rewind_to_the_step_they_agree_on(tmp_path: Path) -> None:
    """Newer checkpoints and log lines go on every node; nothing moves here."""
    store, nodes = Memory(), 2
    for node in range(nodes):
        output = tmp_path / str(node)
        for step in (4, 8) if node else (4,):
            path = output / f"checkpoint-{step}"
            path.mkdir(parents=True)
            (path / "trainer_state.json").write_text("{}")
            (path / f"rank_{node}").write_text("x")
            checkpoint.mark(path, [{"trainer_state.json": 2, f"rank_{rank}": 1} for rank in range(nodes)], save=step)
        log = "".join(json.dumps({"current_steps": step}) + "\n" for step in (4, 8, 9))
        (output / "trainer_log.jsonl").write_text(log)
    agreed: dict[int, t.Any] = {}

    def restore(node: int) -> None:
        agreed[node] = exchange.restore(tmp_path / str(node), peers.Node(node, 0, node, nodes, nodes), store)

    threads = [threading.Thread(target=restore, args=(node,)) for node in range(nodes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert agreed[0] == agreed[1] and agreed[0].step == 4
    for node in range(nodes):
        assert [path.name for path in checkpoint.found(tmp_path / str(node))] == ["checkpoint-4"]
        assert (tmp_path / str(node) / "trainer_log.jsonl").read_text() == '{"current_steps": 4}\n'


def test_nothing_is_removed_where_shards_are_lost(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-8"
    path.mkdir()
    (path / "trainer_state.json").write_text("{}")
    checkpoint.mark(path, [{"trainer_state.json": 2}, {"trainer_state.json": 2, "shard": 9}])
    agreed = exchange.restore(tmp_path, peers.Node(0, 0, 0, 1, 1), Memory())
    assert agreed[:3] == (0, [], ["checkpoint-8/shard"]) and checkpoint.is_complete(path)
