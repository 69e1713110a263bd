# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which address each host uses towards the others."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _addresses
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

LO = {"name": "lo", "address": "127.0.0.1", "prefix": 8, "speed": 0, "default": False}


def one(name: str, address: str, speed: int = 0, default: bool = False, prefix: int = 24) -> dict[str, t.Any]:
    return {"name": name, "address": address, "prefix": prefix, "speed": speed, "default": default}


def host(last: int, *more: dict[str, t.Any]) -> list[dict[str, t.Any]]:
    """On a management network with the default route."""
    return [LO, one("eth0", f"192.0.2.{last}", 1000, default=True), *more]


CASES: list[tuple[str, dict[str, t.Any], dict[str, str], list[tuple[str, str]]]] = [
    ("the network all are on", {"a": host(1), "b": host(2)}, {}, [("192.0.2.1", "eth0"), ("192.0.2.2", "eth0")]),
    (
        "the faster of two",
        {
            "a": host(1, one("ib0", "10.1.0.1", 100_000)),
            "b": [LO, one("ens9", "10.1.0.2", 100_000), one("ens1", "192.0.2.2", 1000, default=True)],
        },
        {},
        [("10.1.0.1", "ib0"), ("10.1.0.2", "ens9")],
    ),
    (
        "a fast one that only some are on does not count",
        {"a": host(1, one("ib0", "10.1.0.1", 100_000)), "b": host(2)},
        {},
        [("192.0.2.1", "eth0"), ("192.0.2.2", "eth0")],
    ),
    (
        "container bridges lead nowhere, alike as they are",
        {
            "a": [LO, one("docker0", "172.17.0.1", 10_000, prefix=16), one("ens5", "10.0.1.7", default=True)],
            "b": [LO, one("docker0", "172.17.0.1", 10_000, prefix=16), one("ens5", "10.0.2.8", default=True)],
        },
        {},
        [("10.0.1.7", "ens5"), ("10.0.2.8", "ens5")],
    ),
    (
        "no network in common: each its default route",
        {"a": [one("x", "10.9.0.1"), one("y", "10.0.1.7", default=True)], "b": [one("y", "10.0.2.8", default=True)]},
        {},
        [("10.0.1.7", "y"), ("10.0.2.8", "y")],
    ),
    (
        "nodes that share a machine",
        {"a": host(1), "b": host(1)},
        {"a": "127.0.0.1", "b": "127.0.0.2"},
        [("127.0.0.1", "lo"), ("127.0.0.2", "lo")],
    ),
    (
        "train_address of a host",
        {"a": host(1, one("ib0", "10.1.0.1")), "b": host(2)},
        {"a": "10.1.0.1"},
        [("10.1.0.1", "ib0"), ("192.0.2.2", "eth0")],
    ),
    (
        "train_address that is not the host's own is rank 0's towards the world",
        {"a": host(1), "b": host(2)},
        {"a": "198.51.100.1", "b": "198.51.100.1"},
        [("198.51.100.1", ""), ("192.0.2.2", "eth0")],
    ),
]


@pytest.mark.parametrize(("hosts", "asked", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_choice(hosts: dict[str, t.Any], asked: dict[str, str], expected: list[tuple[str, str]]) -> None:
    assert [place[:2] for place in _addresses.choose(hosts, asked).values()] == expected


def test_the_speed_of_the_link_is_known_where_the_interface_is() -> None:
    chosen = _addresses.choose({"a": host(1), "b": host(2)}, {"a": "198.51.100.1"})
    assert [place.speed for place in chosen.values()] == [0, 1000]


def test_a_host_that_nobody_reaches_is_named() -> None:
    with pytest.raises(FinetuneError, match="b has no address") as refusal:
        _addresses.choose({"a": host(1), "b": [LO]}, {})
    assert "train_address of b" in refusal.value.where


def test_interfaces_are_exported_for_nccl_and_gloo() -> None:
    exported = _addresses.variables(_addresses.Address("10.1.0.1", "ib0"))
    assert exported == {"NCCL_SOCKET_IFNAME": "ib0", "GLOO_SOCKET_IFNAME": "ib0"}
    assert _addresses.variables(_addresses.LOOPBACK) == {}
