# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names in the store of a run, and what is decided by them."""

from __future__ import annotations

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._engine import (
    restore,
    store,
)
from ansible_collections.llmops.finetune.plugins.module_utils._engine.store import Save


def manifests(*saves: tuple[int, int, str]) -> list[str]:
    """(step, save, nodes that have written theirs, as `01/3`)"""
    found = []
    for step, save, there in saves:
        written, _slash, nodes = there.partition("/")
        found += [Save(save, step).manifest(int(node), int(nodes)) for node in written]
    return found


@pytest.mark.parametrize(
    ("there", "whole"),
    [
        ([], []),
        ([(8, 1, "0/1")], [Save(1, 8)]),
        ([(8, 1, "01/3"), (16, 2, "2/3")], []),
        ([(8, 1, "012/3"), (16, 2, "01/3")], [Save(1, 8)]),
        ([(16, 2, "012/3"), (8, 1, "012/3")], [Save(1, 8), Save(2, 16)]),
        ([(16, 1, "0/1"), (8, 2, "0/1")], [Save(1, 16), Save(2, 8)]),  # it went back: the lower step is the newer one
        ([(8, 1, "0/2"), (8, 2, "1/2")], []),  # halves of two savings are no whole
        ([(8, 1, "0/2"), (8, 1, "1/3")], []),
    ],
)
def test_a_checkpoint_counts_when_all_nodes_have_written_their_manifest(
    there: list[tuple[int, int, str]], whole: list[Save]
) -> None:
    names = [*manifests(*there), "manifests/x/0-of-1.json", "manifests/8-1/0-of-1.json.part", "run.json"]
    assert store.complete(names) == whole


@pytest.mark.parametrize(
    ("there", "whole", "keep", "gone"),
    [
        ("1 2 3", "", 1, ""),  # nothing counts yet: nothing goes
        ("1 2 3 4", "1 2 3", 1, "1 2"),
        ("1 2 3 4", "1 2 3", 2, "1"),
        ("1 2 3 4", "1 2 3", 0, ""),
        ("1 2 3 4", "1 3", 0, "2"),  # it was outrun, and nobody sends it any more
        ("1 2 3 4", "1 3", 1, "1 2"),
        ("1 2", "1 2", 9, ""),
    ],
)
def test_what_goes_was_begun_before_the_newest_that_counts(there: str, whole: str, keep: int, gone: str) -> None:
    saves = {number: Save(int(number), 8 * int(number)) for number in there.split()}
    found = store.outlived(saves.values(), [saves[number] for number in whole.split()], keep)
    assert found == [saves[number] for number in gone.split()]


@pytest.mark.parametrize(
    ("there", "local", "lacking", "step"),
    [
        ([], [], False, 0),
        ([(8, 1, "0/1")], [], False, 8),
        ([(8, 1, "0/1")], [8], False, 0),
        ([(8, 1, "0/1")], [16], False, 0),  # what is here is newer
        ([(8, 1, "0/1")], [16], True, 8),  # and of no use where another node has nothing
        ([(8, 1, "0/1")], [8, 16], True, 0),
        ([(8, 1, "0/1"), (16, 2, "0/2")], [], False, 8),
    ],
)
def test_the_newest_one_is_fetched_unless_there_is_a_newer_one_here(
    there: list[tuple[int, int, str]], local: list[int], lacking: bool, step: int
) -> None:
    save = restore.wanted(manifests(*there), local, lacking=lacking)
    assert (save.step if save else 0) == step


def test_each_file_is_sent_by_the_first_node_that_wrote_it() -> None:
    alike = {"model": 5, "trainer_state.json": 1}
    nodes = [{**alike, "latest": 1, "rank_0": 9}, {**alike, "rank_1": 9}]
    mark = {"files": {**nodes[1], "rank_0": 9}, "nodes": nodes}
    assert store.sent_by(0, mark) == ["latest", "model", "rank_0", "trainer_state.json"]
    assert store.sent_by(1, mark) == ["rank_1"]
    assert store.sent_by(2, mark) == [], "a node that was added since"
    assert store.sent_by(0, {"files": alike}) == ["model", "trainer_state.json"]


def test_the_place_of_a_run() -> None:
    assert store.split("s3://runs/team/x-1") == ("runs", "team/x-1/")
    assert store.split("s3://runs") == ("runs", "")
