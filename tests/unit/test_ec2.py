# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a fleet on EC2 is to be, decided from described facts: tables, no endpoint."""

from __future__ import annotations

import base64
import datetime
import hashlib
import http.server
import json
import os
import subprocess
import threading
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._ec2 import (
    deadline,
    errors,
    fleet,
    host_keys,
    interfaces,
    limits,
    naming,
    plan,
    price,
    request,
    survey,
    types,
)
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from moto.ec2.models.instance_types import INSTANCE_TYPES

NOW = datetime.datetime(2026, 11, 23, 10, 20, 30)


def kind(name: str) -> types.GpuType:
    """As DescribeInstanceTypes tells of it; moto has a copy of that."""
    return types.read(INSTANCE_TYPES[name])


# Types


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


# Network interfaces


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


# Nodes


def node(index: int | None, state: str = "running", zone: str = "a", name: str = "", at: int = 0) -> fleet.Instance:
    tags = {
        naming.FLEET: "demo",
        **({naming.INDEX: str(index)} if index is not None else {}),
        **({"Name": name} if name else {}),
    }
    identity = f"i-{index}{state[0]}{name}{at}"
    return fleet.Instance(
        identity, state, "g5.xlarge", "ami-1", zone, ("2026", at), tags, "", "", "on-demand", "eni-1", 1, ""
    )


@pytest.mark.parametrize(
    ("found", "count", "keep", "adopt", "missing", "start"),
    [
        ([], 2, [], [], [0, 1], 0),
        ([node(0), node(1)], 2, [0, 1], [], [], 0),
        ([node(0), node(2)], 3, [0, 2], [], [1], 0),
        ([node(0), node(1, "terminated")], 2, [0], [], [1], 0),
        ([node(0), node(1, "shutting-down")], 2, [0], [], [1], 0),
        ([node(0), node(1, "stopped")], 2, [0, 1], [], [], 1),
        ([node(0, "pending")], 1, [0], [], [], 0),
        ([node(None, at=0), node(None, at=1)], 2, [0, 1], [0, 1], [], 0),
        ([node(0), node(None)], 3, [0, 1], [1], [2], 0),
        ([node(None, name="demo-002")], 3, [2], [2], [0, 1], 0),
        ([node(None, name="other-002")], 3, [0], [0], [1, 2], 0),
        ([node(2), node(None, name="demo-002")], 3, [0, 2], [0], [1], 0),
    ],
)
def test_what_to_do(
    found: list[fleet.Instance], count: int, keep: list[int], adopt: list[int], missing: list[int], start: int
) -> None:
    steps = fleet.reconcile(found, "demo", count)
    assert (sorted(steps.nodes), sorted(steps.adopt), steps.missing, len(steps.start)) == (keep, adopt, missing, start)
    assert not steps.extra


def test_adopted_in_the_order_of_their_launch() -> None:
    steps = fleet.reconcile([node(None, at=2), node(None, at=0), node(None, at=1)], "demo", 3)
    assert [steps.adopt[index].launched[1] for index in range(3)] == [0, 1, 2]


def test_more_nodes_than_asked_for() -> None:
    found = [node(index) for index in range(4)]
    with pytest.raises(FinetuneError, match="demo-002, demo-003 would be terminated"):
        fleet.reconcile(found, "demo", 2)
    steps = fleet.reconcile(found, "demo", 2, may_shrink=True)
    assert list(steps.extra) == [3, 2] and sorted(steps.nodes) == [0, 1]


def test_an_index_twice() -> None:
    with pytest.raises(FinetuneError, match="are its node 1"):
        fleet.reconcile([node(1, at=1), node(1, at=2)], "demo", 2)
    assert fleet.reconcile([node(1), node(1, "terminated")], "demo", 2).missing == [0]


def test_nodes_in_two_zones() -> None:
    steps = fleet.reconcile([node(0), node(1, zone="b")], "demo", 2)
    with pytest.raises(FinetuneError, match="a, b"):
        fleet.zone(steps.nodes.values())


def test_what_differs_is_told() -> None:
    steps = fleet.reconcile([node(0)], "demo", 1)
    assert fleet.drift(steps, "g5.xlarge", "", "on-demand") == []
    told = fleet.drift(steps, "p5.48xlarge", "ami-2", "spot")
    assert [text.rpartition(" has ")[2] for text in told] == [
        "type g5.xlarge, not p5.48xlarge",
        "image ami-1, not ami-2",
        "market on-demand, not spot",
    ]


@pytest.mark.parametrize("name", ["", "a", "Demo", "1demo", "demo-", "a" * 31, "de mo", "demo_1"])
def test_names(name: str) -> None:
    with pytest.raises(FinetuneError, match="ec2_name"):
        naming.checked(name)
    assert naming.checked("demo-1") == "demo-1" and naming.node("demo", 7) == "demo-007"


def test_tags_of_ours_are_not_taken() -> None:
    assert naming.own("demo", {"team": 7}) == {"team": "7", naming.FLEET: "demo"}
    with pytest.raises(FinetuneError, match="llmops_index"):
        naming.own("demo", {"llmops_index": "0"})
    for bad in ("cost centre", "a/b", "_index", ""):
        with pytest.raises(FinetuneError, match="metadata service"):
            naming.own("demo", {bad: "x"})


# The launch


def spec(**changes: t.Any) -> request.Spec:
    given = request.Spec(
        fleet="demo",
        type="g5.xlarge",
        image="ami-1",
        root_device="/dev/sda1",
        root_gib=200,
        root_iops=0,
        root_throughput=0,
        kms_key="",
        interfaces=tuple(interfaces.layout(kind("g5.xlarge"), False)),
        security_groups=("sg-1",),
        public_ip=True,
        key_name="",
        profile="",
        placement_group="",
        market="on-demand",
        reservation="",
        spot_max_usd=0.0,
        user_data="",
        hops=1,
        tags={naming.FLEET: "demo"},
    )
    return given._replace(**changes)


def test_a_token_stands_for_one_launch() -> None:
    def token(
        subnet: str = "s",
        indexes: t.Sequence[int] = (0, 1),
        seen: t.Sequence[str] = ("i-1", "i-2"),
        hour: str = "10",
        **changes: t.Any,
    ) -> str:
        return str(request.launch(spec(**changes), subnet, indexes, seen, hour)["ClientToken"])

    same = token()
    assert same == token() == token(seen=["i-2", "i-1"])
    others = [token("t"), token(indexes=(0, 2)), token(seen=["i-1"]), token(hour="11"), token(image="ami-2")]
    assert len({same, *others}) == 6, "what is another launch has another token"


def test_what_is_not_given_is_not_sent() -> None:
    asked = request.launch(spec(), "s", [0, 1], [], "10")
    assert not {"KeyName", "IamInstanceProfile", "UserData", "Placement", "InstanceMarketOptions", "SubnetId"} & set(
        asked
    )
    assert asked["NetworkInterfaces"][0]["AssociatePublicIpAddress"] is True
    refused = request.launch(spec(public_ip=False), "s", [0, 1], [], "10")
    assert refused["NetworkInterfaces"][0]["AssociatePublicIpAddress"] is False, "a subnet may give one by itself"
    told = request.launch(spec(root_iops=6000, kms_key="k"), "s", [0], [], "10")["BlockDeviceMappings"][0]["Ebs"]
    assert told["Iops"] == 6000 and told["KmsKeyId"] == "k" and "Throughput" not in told and told["Encrypted"] is True


def test_a_launch_again_within_the_hour_expires_at_the_same_time() -> None:
    assert request.expires(NOW, 24) == request.expires(NOW.replace(minute=59), 24) == "2026-11-24T11:00:00Z"
    assert request.expires(NOW, 0) == ""


# Limits


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


# Price


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


# Plan


WANTED: dict[str, t.Any] = {
    "name": "demo",
    "count": 2,
    "max_nodes": 4,
    "max_hourly_usd": 200.0,
    "allow_scale_down": False,
    "ssh_cidrs": [],
    "zones": [],
    "cidr": "10.64.0.0/16",
    "efa": "auto",
    "public_ip": False,
    "market": "on-demand",
    "placement_group": "auto",
    "ttl_hours": 10.0,
    "image_id": "",
    "tags": {},
    "public_key": "",
}


def facts(**changes: t.Any) -> survey.Facts:
    known = survey.Facts(
        account="1",
        partition="aws",
        kind=kind("p5.48xlarge"),
        zones=["a", "b", "c", "d"],
        offered=["b", "d"],
        instances=[],
        quota=768.0,
        used=0,
        price=price.Price(55.04, "AWS, list"),
        subnets=[],
        key="",
    )
    return known._replace(**changes)


def make(known: survey.Facts | None = None, **given: t.Any) -> plan.Plan:
    return plan.make({**WANTED, **given}, known or facts(), "us-east-1")


def test_the_plan_tells_what_it_costs() -> None:
    made = make()
    assert made.hourly == 110.08 and made.total == 1100.8
    text = "\n".join(made.lines)
    for words in (
        "2 × p5.48xlarge",
        "b or d",
        "110.08 USD an hour, 1100.80 in 10 h",
        "launch 0 1",
        "EFA on 32",
        "ends itself 10 h",
    ):
        assert words in text
    assert made.as_dict()["steps"]["launch"] == [0, 1]


@pytest.mark.parametrize(
    ("given", "known", "zones"),
    [
        ({}, {}, ["b", "d"]),
        ({"zones": ["d", "b"]}, {}, ["d", "b"]),
        ({"zones": ["d", "a"]}, {}, ["d"]),
        ({"zones": ["a"]}, {}, "not offered in a"),
        ({}, {"offered": []}, "not offered in this region"),
        ({}, {"instances": [node(0, zone="d")]}, ["d"]),
        ({"zones": ["b"]}, {"instances": [node(0, zone="d")]}, "The fleet is in d"),
        ({}, {"subnets": [survey.Subnet("s1", "d", "v", 9), survey.Subnet("s2", "b", "v", 9)]}, ["d", "b"]),
    ],
)
def test_zones(given: dict[str, t.Any], known: dict[str, t.Any], zones: list[str] | str) -> None:
    if isinstance(zones, str):
        with pytest.raises(FinetuneError, match=zones):
            make(facts(**known), **given)
    else:
        assert make(facts(**known), **given).zones == zones


@pytest.mark.parametrize(
    ("cidr", "zones", "is_"),
    [
        ("10.64.0.0/16", [], [("b", "10.64.32.0/19"), ("d", "10.64.96.0/19")]),
        ("10.64.0.0/25", [], [("b", "10.64.0.16/28"), ("d", "10.64.0.48/28")]),
        ("10.213.8.8/29", ["b"], [("b", "10.213.8.8/29")]),
        ("10.213.8.8/29", [], "too small"),
        ("10.64.0.1/16", [], "no network"),
    ],
)
def test_subnets_keep_their_place(cidr: str, zones: list[str], is_: list[tuple[str, str]] | str) -> None:
    if isinstance(is_, str):
        with pytest.raises(FinetuneError, match=is_):
            make(cidr=cidr, zones=zones)
    else:
        assert [(one["zone"], one["cidr"]) for one in make(cidr=cidr, zones=zones).subnets] == is_


@pytest.mark.parametrize(
    ("given", "group"),
    [
        ({}, "demo"),
        ({"count": 1}, ""),
        ({"placement_group": "none"}, ""),
        ({"placement_group": "mine", "count": 1}, "mine"),
        ({"market": "capacity-block"}, ""),
    ],
)
def test_placement_groups(given: dict[str, t.Any], group: str) -> None:
    assert make(**given).placement_group == group


def test_rules_of_the_group() -> None:
    made = make(ssh_cidrs=["203.0.113.7", "2001:db8::/32"])
    each_other = {"proto": "all", "group_name": "llmops-demo"}
    assert [{**rule, "rule_desc": ""} for rule in made.ingress[:2]] == [
        {"proto": "tcp", "ports": ["22"], "cidr_ip": "203.0.113.7/32", "rule_desc": ""},
        {"proto": "tcp", "ports": ["22"], "cidr_ipv6": "2001:db8::/32", "rule_desc": ""},
    ]
    assert made.ingress[2] == made.egress[1] == each_other and make().ingress == [each_other]
    with pytest.raises(FinetuneError, match="ec2_ssh_cidrs"):
        make(ssh_cidrs=["0.0.0.0/0"])


@pytest.mark.parametrize(
    ("there", "wanted", "is_"),
    [
        ("", "", False),
        ("", "ssh-ed25519 A me", True),
        ("ssh-ed25519 A", "ssh-ed25519 A me", False),
        ("ssh-ed25519 B", "ssh-ed25519 A", True),
    ],
)
def test_keys_that_are_imported(there: str, wanted: str, is_: bool) -> None:
    assert make(facts(key=there), public_key=wanted).import_key is is_


# Errors


@pytest.mark.parametrize(
    ("code", "kind_"),
    [
        ("InsufficientInstanceCapacity", "capacity"),
        ("Unsupported", "capacity"),
        ("VcpuLimitExceeded", "quota"),
        ("ExpiredToken", "credentials"),
        ("UnauthorizedOperation", "permission"),
        ("RequestLimitExceeded", "throttled"),
        ("InvalidAMIID.NotFound", "image"),
        ("InvalidSubnetID.NotFound", "network"),
        ("DependencyViolation", "busy"),
        ("SomethingNew", ""),
    ],
)
def test_errors_are_told_with_a_remedy(code: str, kind_: str) -> None:
    assert errors.kind(code) == kind_
    told = errors.explained(code, "as AWS\n says it.", "RunInstances", zone="a", type="p5")
    assert code in told.what and "as AWS says it" in told.what and "{" not in told.what
    assert told.change or kind_ == "capacity"


# On the node


def console(*keys: str, prefix: str = "[   10.2] cloud-init[812]: ") -> str:
    lines = ["-----BEGIN SSH HOST KEY KEYS-----", *keys, "-----END SSH HOST KEY KEYS-----", "login:"]
    return "".join(f"{prefix}{line}\r\n" for line in lines)


def key(seed: str) -> str:
    blob = b"\0\0\0\x0bssh-ed25519\0\0\0 " + hashlib.sha256(seed.encode()).digest()
    return f"ssh-ed25519 {base64.b64encode(blob).decode()}"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (console(f"{key('a')} root@ip-10"), [key("a")]),
        (console(key("a"), key("b"), prefix=""), [key("a"), key("b")]),
        (console(key("a")) + console(key("b")), [key("b")]),
        (console(key("a")).partition("-----END")[0], []),
        (console(key("a")[:-9]), []),
        (f"{key('a')}\n", []),
        ("", []),
    ],
)
def test_host_keys_on_a_console(text: str, found: list[str]) -> None:
    assert host_keys.printed(text) == found


def test_known_hosts_are_read_as_written() -> None:
    keys = {("demo-000", "i-1"): [key("a"), key("b")], ("demo-001", "i-2"): [key("c")]}
    assert host_keys.known(host_keys.written(keys)) == keys
    assert host_keys.written(keys).splitlines()[0] == f"demo-000 {key('a')} i-1"
    assert host_keys.known("somebody else's\n") == {}


class Metadata(http.server.BaseHTTPRequestHandler):
    """Version 2 of the metadata service: no answer without a token."""

    expires = ""

    def do_PUT(self) -> None:
        self.answer(b"t0ken" if self.path == "/api/token" else b"")

    def do_GET(self) -> None:
        fits = (
            self.path == "/meta-data/tags/instance/llmops_expires"
            and self.headers["X-aws-ec2-metadata-token"] == "t0ken"
        )
        self.answer(self.expires.encode() if fits else b"")

    def answer(self, body: bytes) -> None:
        self.send_response(200 if body else 404)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: t.Any) -> None:
        pass


@pytest.mark.parametrize(
    ("tag", "fallback", "ends"),
    [
        ("2020-01-01T00:00:00Z", "2999-01-01T00:00:00Z", True),
        ("2999-01-01T00:00:00Z", "2020-01-01T00:00:00Z", False),
        ("", "2020-01-01T00:00:00Z", True),
        ("", "2999-01-01T00:00:00Z", False),
        ("never", "2020-01-01T00:00:00Z", False),
    ],
)
def test_a_node_ends_itself_in_time(tag: str, fallback: str, ends: bool, tmp_path: Path) -> None:
    server = http.server.HTTPServer(("127.0.0.1", 0), type("Told", (Metadata,), {"expires": tag}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    script = tmp_path / "llmops-expire"
    script.write_text(deadline.script(fallback))
    (tmp_path / "systemctl").write_text('#!/bin/sh\necho "$@" >>"$(dirname "$0")/called"\n')
    for tool in (script, tmp_path / "systemctl"):
        tool.chmod(0o755)
    known = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LLMOPS_IMDS": f"http://127.0.0.1:{server.server_port}"}
    subprocess.run([script], env=known, check=False, capture_output=True)
    server.shutdown()
    assert (tmp_path / "called").exists() is ends
    if ends:
        assert (tmp_path / "called").read_text() == "poweroff\n"


def test_user_data_installs_the_timer_and_is_a_script() -> None:
    text = deadline.user_data("2026-11-24T11:00:00Z")
    assert text.startswith("#!/bin/sh\n") and "systemctl enable --now llmops-expire.timer" in text
    assert "expires=2026-11-24T11:00:00Z" in text and "@" not in text.replace("$@", "")
    assert len(text) < 16384, "EC2 takes no more"
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    assert deadline.user_data("") == ""
