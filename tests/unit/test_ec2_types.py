# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Instance types, their network cards and what the account allows, decided from described facts."""

from __future__ import annotations

import json
import typing as t

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._ec2 import interfaces, limits, price, types
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

from .ec2_facts import kind


@pytest.mark.parametrize(
    ("name", "gpus", "mib", "cards", "efa", "markets"),
    [
        ("g4dn.xlarge", 1, 16384, 1, 0, {"on-demand", "spot"}),
        ("g5.48xlarge", 8, 22888, 1, 1, {"on-demand", "spot"}),
        ("g6e.48xlarge", 8, 45776, 4, 4, {"on-demand", "spot"}),
        ("p4d.24xlarge", 8, 40960, 4, 4, {"on-demand", "spot", "capacity-block"}),
        ("p5.48xlarge", 8, 81920, 32, 32, {"on-demand", "spot", "capacity-block"}),
        ("p5en.48xlarge", 8, 144384, 16, 16, {"on-demand", "spot", "capacity-block"}),
        ("p6-b300.48xlarge", 8, 275040, 17, 16, {"on-demand", "spot", "capacity-block"}),
    ],
)
def test_types(name: str, gpus: int, mib: int, cards: int, efa: int, markets: set[str]) -> None:
    read = kind(name)
    assert (read.gpus, read.gpu_mib, len(read.cards), read.efa, set(read.markets)) == (gpus, mib, cards, efa, markets)
    assert name in types.described(read)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("m5.large", "no NVIDIA GPU"),
        ("trn1.2xlarge", "no NVIDIA GPU"),
        ("g6f.xlarge", "0.125 of a GPU"),
    ],
)
def test_types_without_a_whole_gpu_are_refused(name: str, why: str) -> None:
    with pytest.raises(FinetuneError, match=why):
        kind(name)
    with pytest.raises(FinetuneError, match="no NVIDIA GPU"):
        types.read({"InstanceType": "g4ad.xlarge", "GpuInfo": {"Gpus": [{"Manufacturer": "AMD"}]}})


@pytest.mark.parametrize(
    ("name", "style", "first", "last", "number"),
    [
        ("g5.48xlarge", "current", [(0, 0, "interface"), (0, 1, "efa-only")], (0, 1, "efa-only"), 2),
        ("p4d.24xlarge", "current", [(0, 0, "interface"), (0, 1, "efa-only")], (3, 0, "efa-only"), 5),
        ("p5.48xlarge", "current", [(0, 0, "interface"), (0, 1, "efa-only")], (31, 0, "efa-only"), 33),
        ("p6-b300.48xlarge", "current", [(0, 0, "interface"), (1, 0, "efa-only")], (16, 0, "efa-only"), 17),
        ("p5.48xlarge", "legacy", [(0, 0, "efa"), (1, 1, "efa-only")], (31, 1, "efa-only"), 32),
        ("p6-b300.48xlarge", "legacy", [(0, 0, "interface"), (1, 1, "efa-only")], (16, 1, "efa-only"), 17),
    ],
)
def test_interfaces(name: str, style: str, first: list[t.Any], last: t.Any, number: int) -> None:
    made = interfaces.layout(kind(name), True, style)
    assert made[:2] == first and made[-1] == last and len(made) == number
    assert sum(one.kind != "interface" for one in made) == kind(name).efa
    assert interfaces.layout(kind(name), False, style) == [(0, 0, "interface")]


@pytest.mark.parametrize(
    ("name", "wish", "count", "is_"),
    [
        ("p5.48xlarge", "auto", 2, True),
        ("p5.48xlarge", "auto", 1, False),
        ("p5.48xlarge", "on", 1, True),
        ("p5.48xlarge", "off", 2, False),
        ("g5.xlarge", "auto", 2, False),
        ("g5.xlarge", "on", 2, "has no EFA"),
    ],
)
def test_efa_is_had_where_it_helps(name: str, wish: str, count: int, is_: bool | str) -> None:
    if isinstance(is_, str):
        with pytest.raises(FinetuneError, match=is_):
            interfaces.wanted(kind(name), wish, count)
    else:
        assert interfaces.wanted(kind(name), wish, count) is is_


@pytest.mark.parametrize(
    ("given", "is_"),
    [
        (["203.0.113.7"], ["203.0.113.7/32"]),
        (["203.0.113.0/24", "2001:db8::/32"], ["203.0.113.0/24", "2001:db8::/32"]),
        ([], []),
        (["0.0.0.0/0"], "open to 0.0.0.0/0"),
        (["0.0.0.0/1", "128.0.0.0/1"], "open to 0.0.0.0/1"),
        (["::/0"], "open to ::/0"),
        (["203.0.113.7/24"], "is no network"),
        (["home"], "is no network"),
    ],
)
def test_who_may_log_in(given: list[str], is_: list[str] | str) -> None:
    if isinstance(is_, str):
        with pytest.raises(FinetuneError, match=is_):
            limits.networks(given)
    else:
        assert limits.networks(given) == is_


@pytest.mark.parametrize(
    ("nodes", "most", "why"), [(0, 8, "at least 1"), (-1, 8, "at least 1"), (9, 8, "ec2_max_nodes")]
)
def test_number_of_nodes(nodes: int, most: int, why: str) -> None:
    with pytest.raises(FinetuneError, match=why):
        limits.count(nodes, most)
    limits.count(8, 8)


@pytest.mark.parametrize(
    ("name", "market", "reservation", "spot", "why"),
    [
        ("g5.xlarge", "capacity-block", "cr-1", 0, "one of on-demand, spot"),
        ("p5.48xlarge", "capacity-block", "", 0, "ec2_capacity_reservation_id"),
        ("p5.48xlarge", "spot", "cr-1", 0, "do not run in a reservation"),
        ("p5.48xlarge", "on-demand", "", 1.5, "ec2_spot_max_usd is for spot"),
        ("p5.48xlarge", "capacity-block", "cr-1", 0, ""),
        ("p5.48xlarge", "on-demand", "cr-1", 0, ""),
        ("g5.xlarge", "spot", "", 1.5, ""),
    ],
)
def test_markets(name: str, market: str, reservation: str, spot: float, why: str) -> None:
    if why:
        with pytest.raises(FinetuneError, match=why):
            limits.market(kind(name), market, reservation, spot)
    else:
        limits.market(kind(name), market, reservation, spot)


@pytest.mark.parametrize(
    ("name", "market", "code"),
    [
        ("p5.48xlarge", "on-demand", "L-417A185B"),
        ("g6e.xlarge", "on-demand", "L-DB2E81BA"),
        ("gr6.4xlarge", "spot", "L-3819A6DF"),
        ("p4d.24xlarge", "spot", "L-7212CCBC"),
        ("p5en.48xlarge", "spot", "L-C4BD4855"),
        ("p6-b200.48xlarge", "spot", ""),
        ("p5.48xlarge", "capacity-block", ""),
    ],
)
def test_which_quota(name: str, market: str, code: str) -> None:
    assert limits.quota_code(kind(name), market) == code


@pytest.mark.parametrize(
    ("allowed", "used", "more", "is_"),
    [
        (192.0, 0, 1, ""),
        (192.0, 1, 1, "need 192"),
        (0.0, 0, 1, "may run 0 vCPUs"),
        (0.0, 0, 0, ""),
        (None, 0, 1, "is unknown"),
    ],
)
def test_quota(allowed: float | None, used: int, more: int, is_: str) -> None:
    if "need" in is_ or "may" in is_:
        with pytest.raises(FinetuneError, match=is_):
            limits.quota(kind("p5.48xlarge"), "on-demand", allowed, used, more)
    else:
        assert is_ in limits.quota(kind("p5.48xlarge"), "on-demand", allowed, used, more)
    assert limits.same_quota("p4d", kind("p5.48xlarge"), "on-demand")
    assert not limits.same_quota("g5", kind("p5.48xlarge"), "on-demand")
    assert not limits.same_quota("p4d", kind("p5.48xlarge"), "spot")


@pytest.mark.parametrize(
    ("name", "market", "region", "given", "asked", "usd", "source"),
    [
        ("p5.48xlarge", "on-demand", "us-east-1", 0, 55.04, 55.04, "AWS, list"),
        ("p5.48xlarge", "on-demand", "eu-west-1", 0, 60.0, 60.0, "AWS, list"),
        ("p5.48xlarge", "spot", "us-east-1", 0, 20.0, 20.0, "AWS, spot, now"),
        ("p5.48xlarge", "on-demand", "us-east-1", 40, 55.04, 40, "ec2_price_usd"),
        ("p5.48xlarge", "on-demand", "us-east-1", 0, None, 55.04, "list of 2026-07-20"),
        ("p5.48xlarge", "capacity-block", "eu-west-1", 0, None, 0, "paid already"),
        ("p5.48xlarge", "on-demand", "eu-west-1", 0, None, None, ""),
        ("p5.48xlarge", "spot", "us-east-1", 0, None, None, ""),
        ("p3dn.24xlarge", "on-demand", "us-east-1", 0, None, None, ""),
    ],
)
def test_price(
    name: str, market: str, region: str, given: float, asked: float | None, usd: float | None, source: str
) -> None:
    if usd is None:
        with pytest.raises(FinetuneError, match="ec2_price_usd"):
            price.choose(name, market, region, given, asked)
    else:
        chosen = price.choose(name, market, region, given, asked)
        assert chosen.usd == usd and source in chosen.source


def test_price_against_the_most_that_is_allowed() -> None:
    assert price.check(price.Price(10, "x"), 3, 30) == 30
    with pytest.raises(FinetuneError, match=r"3 nodes cost 30\.00 USD"):
        price.check(price.Price(10, "x"), 3, 29.99)


def test_prices_as_aws_tells_them() -> None:
    def product(unit: str, usd: str) -> str:
        return json.dumps(
            {"terms": {"OnDemand": {"a": {"priceDimensions": {"b": {"unit": unit, "pricePerUnit": {"USD": usd}}}}}}}
        )

    assert price.on_demand([product("Hrs", "0"), product("Quantity", "9"), product("Hrs", "1.5")]) == 1.5
    assert price.on_demand([json.dumps({"product": {}})]) is None
    history = [
        {"AvailabilityZone": zone, "Timestamp": when, "SpotPrice": usd}
        for zone, when, usd in (("a", "2", "1.0"), ("a", "1", "9.0"), ("b", "1", "2.0"), ("c", "1", "3.0"))
    ]
    assert price.spot(history, ["a", "b"]) == 2.0 and price.spot([], ["a"]) is None
