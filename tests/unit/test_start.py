# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When nodes are given something before a run is staged (tasks/furnish.yml of the role)."""

from __future__ import annotations

import typing as t
from dataclasses import replace

import pytest

from .plans import DATA, eth0, make, node

BARE: list[tuple[str, dict[str, t.Any], dict[str, t.Any], bool]] = [
    ("nothing is lacking", {}, {}, False),
    ("an environment", {"environment_whole": False}, {}, True),
    ("the account", {"account_exists": False}, {}, True),
    ("what speaks to S3", {}, {"train_store": "s3://bucket/runs"}, True),
]


@pytest.mark.parametrize(("lacks", "wish", "expected"), [case[1:] for case in BARE], ids=[case[0] for case in BARE])
def test_a_plan_says_whether_one_of_its_nodes_lacks_something(
    lacks: dict[str, t.Any], wish: dict[str, t.Any], expected: bool
) -> None:
    facts = {host: node(interfaces=eth0(f"10.0.0.{number}")) for number, host in enumerate("abc", 1)}
    facts["b"] |= lacks
    assert make(facts, **wish).bare is expected


def test_so_do_records_that_the_environment_alone_can_read() -> None:
    assert make({"a": node()}, [replace(DATA, unread="a: no reader")]).bare is True
