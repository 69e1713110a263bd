# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes of a fleet: what to do with those that are there, and the one request that launches the others."""

from __future__ import annotations

import datetime
import typing as t

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._ec2 import fleet, interfaces, naming, request
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

from .ec2_facts import kind, node

NOW = datetime.datetime(2026, 11, 23, 10, 20, 30)


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
        on_shutdown="terminate",
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
