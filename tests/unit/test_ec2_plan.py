# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of a fleet, and what errors of AWS mean."""

from __future__ import annotations

import typing as t
from unittest import mock

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._ec2 import apply, errors, naming, plan, survey
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

from .ec2_facts import facts, node

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
    "idle_minutes": 0,
    "on_shutdown": "terminate",
    "image_id": "",
    "tags": {},
    "public_key": "",
    "bucket": "",
}


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
    ("given", "is_"),
    [
        ({}, "ends    each node ends itself 10 h after its launch"),
        ({"idle_minutes": 45}, "ends    each node ends itself 10 h after its launch or 45 min after its last run"),
        ({"ttl_hours": 0, "idle_minutes": 45}, "ends    each node ends itself 45 min after its last run"),
        ({"ttl_hours": 0}, "ends    nodes run until llmops.finetune.teardown"),
        ({"on_shutdown": "stop"}, "ends    each node stops itself 10 h after its launch"),
    ],
)
def test_how_nodes_end(given: dict[str, t.Any], is_: str) -> None:
    assert is_ in make(**given).lines


@pytest.mark.parametrize(
    ("tags", "why"),
    [
        (None, ""),
        ({"llmops_fleet": "demo", "team": "nlp"}, ""),
        ({"llmops_fleet": "other"}, "of fleet other"),
        ({}, "was not made for this fleet"),
    ],
)
def test_a_bucket_of_others_is_not_taken(tags: dict[str, str] | None, why: str) -> None:
    if why:
        with pytest.raises(FinetuneError, match=why):
            make(facts(bucket=tags), bucket="runs")
    else:
        make(facts(bucket=tags), bucket="runs")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"market": "spot", "on_shutdown": "stop"}, "ec2_on_shutdown"),
        ({"idle_minutes": -1}, "ec2_idle_minutes"),
    ],
)
def test_ends_that_there_are_not(given: dict[str, t.Any], why: str) -> None:
    with pytest.raises(FinetuneError, match=why):
        make(**given)


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
        ("10.213.8.16/28", ["b"], [("b", "10.213.8.16/28")]),
        ("10.213.8.16/28", [], "too small"),
        ("10.213.8.8/29", ["b"], "no size of a network on EC2"),
        ("10.0.0.0/8", [], "from /16 to /28"),
        ("fd00::/20", [], "no size of a network on EC2"),
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


@pytest.mark.parametrize(
    ("state", "tags", "settled"),
    [("running", {}, True), ("pending", {}, False), ("running", {"team": "nlp"}, False)],
)
def test_a_node_that_still_starts_is_waited_for(state: str, tags: dict[str, str], settled: bool) -> None:
    there = node(0, state, name="demo-000")
    there.tags.update({naming.NODES: "1", naming.IDLE: "0"})
    known = facts(instances=[there], offered=["a"])
    wanted = {**WANTED, "count": 1, "tags": tags, "known_hosts": "", "extend": False}
    made = plan.make(wanted, known, "us-east-1")
    assert apply.settled(mock.Mock(), wanted, made, known) is settled
