# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Identity: the id of a request, and the lines that say how two requests differ."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _request

REQUEST: dict[str, t.Any] = {
    "name": "lora-sft",
    "recipe": "lora_sft",
    "args": {"learning_rate": 1e-4, "lora_rank": 8},
    "model": {"name": "org/model", "revision": "main"},
    "datasets": [{"name": "a", "digest": "00"}, {"name": "b", "digest": "11"}],
    "eval_datasets": [],
    "engine": "auto",
    "global_batch_size": "auto",
}


def changed(**inputs: t.Any) -> dict[str, t.Any]:
    return {**REQUEST, **inputs}


def test_the_id_is_the_name_and_eight_digits_and_does_not_move_between_versions() -> None:
    assert _request.run_id(REQUEST) == "lora-sft-8fd1e75d"


def test_order_of_keys_and_spelling_of_numbers_do_not_matter() -> None:
    backwards = dict(reversed(REQUEST.items()))
    backwards["args"] = {"lora_rank": 8.0, "learning_rate": 0.0001}
    backwards["datasets"] = tuple(REQUEST["datasets"])
    assert _request.run_id(backwards) == _request.run_id(REQUEST)


def test_the_name_is_not_in_the_digest() -> None:
    assert _request.run_id(changed(name="other")) == _request.run_id(REQUEST).replace("lora-sft", "other")


@pytest.mark.parametrize(
    "inputs",
    [
        {"recipe": "full_sft"},
        {"args": {"learning_rate": 1e-5, "lora_rank": 8}},
        {"args": {"learning_rate": 1e-4, "lora_rank": 8, "seed": 1}},
        {"args": {"learning_rate": 1e-4, "lora_rank": True}},
        {"model": {"name": "org/model", "revision": "v2"}},
        {"datasets": list(reversed(REQUEST["datasets"]))},
        {"datasets": [{"name": "a", "digest": "00"}, {"name": "b", "digest": "12"}]},
        {"eval_datasets": [{"name": "c", "digest": "22"}]},
        {"engine": "ddp"},
        {"global_batch_size": 8},
    ],
    ids=str,
)
def test_every_other_input_makes_another_run_and_a_line(inputs: dict[str, t.Any]) -> None:
    assert _request.run_id(changed(**inputs)) != _request.run_id(REQUEST)
    lines = _request.difference(REQUEST, changed(**inputs))
    assert lines
    assert all(line.startswith(next(iter(inputs))) for line in lines)


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ({"args": {"a": 1e-4}}, {"args": {"a": 1e-5}}, ["args.a: 0.0001 → 1e-05"]),
        ({"args": {"a": 3.0}}, {"args": {"a": 3}}, []),
        ({"args": {}}, {"args": {"a": 1}}, ["args.a: not set → 1"]),
        ({"args": {"a": 1}}, {"args": {}}, ["args.a: 1 → not set"]),
        ({"args": {"a": {}}}, {"args": {"a": {"b": 1}}}, ["args.a.b: not set → 1"]),
        ({"args": {}}, {"args": {"a": {}}}, ["args.a: not set → {}"]),
        ({"args": {"a": 1}}, {"args": {"a": True}}, ["args.a: 1 → True"]),
        ({"args": {"a": None}}, {"args": {}}, ["args.a: None → not set"]),
        ({"sets": []}, {"sets": [{"name": "x"}]}, ["sets.x.name: not set → x"]),
        (
            {"sets": [{"name": "x", "digest": "1"}, {"name": "y", "digest": "2"}]},
            {"sets": [{"name": "y", "digest": "2"}, {"name": "x", "digest": "9"}]},
            ["sets.x.digest: 1 → 9"],
        ),
        (
            {"datasets": [{"name": "x"}, {"name": "y"}]},
            {"datasets": [{"name": "y"}, {"name": "x"}]},
            ["datasets: in another order"],
        ),
        ({"args": {"t": ["q", "v"]}}, {"args": {"t": ["q", "k"]}}, ["args.t.1: v → k"]),
        ({"b": 1, "a": 1}, {"a": 2, "b": 2}, ["a: 1 → 2", "b: 1 → 2"]),
    ],
)
def test_a_difference_is_one_line_per_input(old: dict[str, t.Any], new: dict[str, t.Any], lines: list[str]) -> None:
    assert _request.difference(old, new) == lines
