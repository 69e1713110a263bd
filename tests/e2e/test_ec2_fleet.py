# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module ec2_gpu_fleet against a real endpoint, moto behind it: what it sends, and what it leaves alone.

What EC2 really does with a request this cannot show; docs/ec2.md lists what else.
"""

from __future__ import annotations

import base64
import typing as t
from pathlib import Path

import boto3
import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._ec2 import deadline, host_keys

from ..aws import IMAGE
from .ec2 import REGION, Account, no_capacity


def test_a_fleet_is_made_once(account: Account) -> None:
    made = account.apply()
    assert made["changes"] == ["launch node 0", "launch node 1", "launch node 2"]
    assert [node["name"] for node in made["nodes"]] == ["demo-000", "demo-001", "demo-002"]
    assert len(account.endpoint.sent("RunInstances")) == 1, "all nodes come from one request"
    before = account.nodes
    account.endpoint.requests.clear()
    again = account.apply()
    assert again["changes"] == [] and account.endpoint.mutations == [] and account.nodes == before
    assert again["plan"]["steps"]["keep"] == [0, 1, 2] and again["plan"]["hourly"] == 7.5


def test_a_plan_says_whether_there_is_anything_to_do(account: Account, tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"

    def settled(**given: t.Any) -> t.Any:
        return account.apply(state="planned", **{"known_hosts": str(path), "public_ip": True, **given})["settled"]

    def learned(*indexes: str) -> str:
        return host_keys.written({(f"demo-00{index}", account.nodes[index]): ["ssh-rsa AAAA"] for index in indexes})

    assert not settled(known_hosts="")
    account.apply(public_ip=True)
    account.endpoint.requests.clear()
    assert settled(known_hosts="") and not settled(), "no file of keys"
    path.write_text(learned("0", "1"))
    assert not settled(), "a key lacks"
    path.write_text(learned("0", "1", "2") + "demo-003 ssh-rsa AAAA i-3\n")
    assert not settled(), "of a node that is gone"
    path.write_text(learned("0", "1", "2"))
    assert (
        settled()
        and not settled(tags={"team": "nlp"})
        and not settled(extend=True, ttl_hours=48)
        and not settled(idle_minutes=9)
    )
    assert not settled(count=2, allow_scale_down=True) and not settled(count=4)
    account.ec2.allocate_address(
        TagSpecifications=[{"ResourceType": "elastic-ip", "Tags": [{"Key": "llmops_fleet", "Value": "demo"}]}]
    )
    assert not settled() and settled(public_ip=False), "an address to be released"
    account.ec2.stop_instances(InstanceIds=[account.nodes["2"]])
    assert not settled(public_ip=False) and account.endpoint.mutations == ["AllocateAddress", "StopInstances"]


def test_the_launch_of_a_node_with_one_card_is_this_and_nothing_else(account: Account) -> None:
    boto3.client("iam", region_name=REGION).create_instance_profile(InstanceProfileName="nodes")
    asked: dict[str, t.Any] = {"instance_profile": "nodes", "public_ip": True, "root_iops": 6000, "kms_key_id": "key"}
    account.apply(count=1, metadata_hops=2, root_throughput=500, on_shutdown="stop", idle_minutes=45, **asked)
    (sent,) = account.endpoint.sent("RunInstances")
    told = {name: value for name, value in sent.params.items() if not name.startswith("TagSpecification.")}
    expires = sent.tags("TagSpecification.1")["llmops_expires"]
    assert base64.b64decode(told.pop("UserData")).decode() == deadline.user_data(expires, 45)
    assert len(told.pop("ClientToken")) == 64 and told.pop("Version")
    assert told == {
        "Action": "RunInstances",
        "MinCount": "1",
        "MaxCount": "1",
        "ImageId": IMAGE,
        "InstanceType": "g5.xlarge",
        "InstanceInitiatedShutdownBehavior": "stop",
        "IamInstanceProfile.Name": "nodes",
        "MetadataOptions.HttpTokens": "required",
        "MetadataOptions.HttpEndpoint": "enabled",
        "MetadataOptions.HttpPutResponseHopLimit": "2",
        "MetadataOptions.InstanceMetadataTags": "enabled",
        "BlockDeviceMapping.1.DeviceName": "/dev/sda1",
        "BlockDeviceMapping.1.Ebs.VolumeType": "gp3",
        "BlockDeviceMapping.1.Ebs.VolumeSize": "200",
        "BlockDeviceMapping.1.Ebs.Encrypted": "true",
        "BlockDeviceMapping.1.Ebs.DeleteOnTermination": "true",
        "BlockDeviceMapping.1.Ebs.Iops": "6000",
        "BlockDeviceMapping.1.Ebs.Throughput": "500",
        "BlockDeviceMapping.1.Ebs.KmsKeyId": "key",
        "NetworkInterface.1.NetworkCardIndex": "0",
        "NetworkInterface.1.DeviceIndex": "0",
        "NetworkInterface.1.InterfaceType": "interface",
        "NetworkInterface.1.SubnetId": account.subnets[0],
        "NetworkInterface.1.SecurityGroupId.1": account.group,
        "NetworkInterface.1.DeleteOnTermination": "true",
        "NetworkInterface.1.AssociatePublicIpAddress": "true",
    }


def test_the_launch_says_all_that_moto_drops(account: Account) -> None:
    account.endpoint.groups["demo"] = {"strategy": "cluster"}
    account.apply(
        count=2, instance_type="p5.48xlarge", key_name="", tags={"team": "nlp"}, root_gib=500, max_hourly_usd=150
    )
    (sent,) = account.endpoint.sent("RunInstances")
    told = sent.params
    assert (told["MinCount"], told["MaxCount"]) == ("2", "2") and len(told["ClientToken"]) == 64
    assert (
        told["MetadataOptions.HttpTokens"] == "required" and told["MetadataOptions.InstanceMetadataTags"] == "enabled"
    )
    assert told["InstanceInitiatedShutdownBehavior"] == "terminate"
    root = {
        name.rpartition(".")[2]: value for name, value in told.items() if name.startswith("BlockDeviceMapping.1.Ebs")
    }
    assert root == {"VolumeType": "gp3", "VolumeSize": "500", "Encrypted": "true", "DeleteOnTermination": "true"}
    assert told["BlockDeviceMapping.1.DeviceName"] == "/dev/sda1", "the image's own, else the root is a second volume"
    cards = [
        tuple(
            told[f"NetworkInterface.{number}.{name}"] for name in ("NetworkCardIndex", "DeviceIndex", "InterfaceType")
        )
        for number in range(1, 34)
    ]
    assert (
        cards[:3] == [("0", "0", "interface"), ("0", "1", "efa-only"), ("1", "0", "efa-only")] and cards[-1][0] == "31"
    )
    assert "NetworkInterface.34.DeviceIndex" not in told and "NetworkInterface.1.AssociatePublicIpAddress" not in told
    assert told["NetworkInterface.33.SecurityGroupId.1"] == account.group
    assert told["Placement.GroupName"] == "demo" and "SubnetId" not in told
    kinds = [told[f"TagSpecification.{number}.ResourceType"] for number in (1, 2, 3)]
    assert kinds == ["instance", "volume", "network-interface"]
    for number in (1, 2, 3):
        tags = sent.tags(f"TagSpecification.{number}")
        assert tags["llmops_fleet"] == "demo" and tags["team"] == "nlp" and tags["llmops_expires"].endswith(":00:00Z")
    assert not [word for word in ("secret", "somebody") if word in str(told)]


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (
            {"market": "spot", "spot_max_usd": 0.9},
            {
                "InstanceMarketOptions.MarketType": "spot",
                "InstanceMarketOptions.SpotOptions.SpotInstanceType": "one-time",
                "InstanceMarketOptions.SpotOptions.InstanceInterruptionBehavior": "terminate",
                "InstanceMarketOptions.SpotOptions.MaxPrice": "0.9",
                "TagSpecification.4.ResourceType": "spot-instances-request",
            },
        ),
        (
            {"market": "capacity-block", "capacity_reservation_id": "cr-1", "instance_type": "p5.48xlarge"},
            {
                "InstanceMarketOptions.MarketType": "capacity-block",
                "CapacityReservationSpecification.CapacityReservationTarget.CapacityReservationId": "cr-1",
            },
        ),
        (
            {"capacity_reservation_id": "cr-2"},
            {"CapacityReservationSpecification.CapacityReservationTarget.CapacityReservationId": "cr-2"},
        ),
    ],
)
def test_markets(account: Account, given: dict[str, t.Any], sent: dict[str, str]) -> None:
    account.apply(count=2, **given)
    (request,) = account.endpoint.sent("RunInstances")
    assert {name: request.params.get(name) for name in sent} == sent
    if given.get("market") == "capacity-block":
        assert "Placement.GroupName" not in request.params, "a block is close together by itself"


def test_the_next_zone_is_taken_at_once_and_then_kept(account: Account) -> None:
    account.endpoint.faults.append(no_capacity(account.subnets[0]))
    account.apply(count=2)
    assert len(account.endpoint.sent("RunInstances")) == 2, "a zone without capacity is asked once"
    assert {one["Placement"]["AvailabilityZone"] for one in account.instances()} == {account.zones[1]}
    account.endpoint.faults.clear()
    grown = account.apply(count=3)
    assert grown["changes"] == [f"tag node {index} ({account.nodes[str(index)]}): llmops_nodes" for index in (0, 1)] + [
        "launch node 2"
    ]
    assert {one["Placement"]["AvailabilityZone"] for one in account.instances()} == {account.zones[1]}


def test_a_lost_node_comes_back_as_itself(account: Account) -> None:
    account.apply()
    before = account.nodes
    account.ec2.terminate_instances(InstanceIds=[before["1"]])
    account.endpoint.requests.clear()
    healed = account.apply()
    assert healed["changes"] == ["launch node 1"] and healed["plan"]["steps"]["keep"] == [0, 2]
    after = account.nodes
    assert list(after) == ["0", "1", "2"] and after["1"] != before["1"]
    assert (after["0"], after["2"]) == (before["0"], before["2"])
    (sent,) = account.endpoint.sent("RunInstances")
    assert sent.tags("TagSpecification.1")["llmops_index"] == "1", "one alone has its index from the start"
    assert not account.endpoint.sent("GetParameter"), "a replacement has the image of the nodes beside it"


def test_a_stopped_node_is_started(account: Account) -> None:
    account.apply(count=1)
    account.ec2.stop_instances(InstanceIds=[account.nodes["0"]])
    assert account.apply(count=1)["changes"] == [f"start {account.nodes['0']}"]
    assert [one["State"]["Name"] for one in account.instances()] == ["running"]
    assert account.apply(count=1)["changes"] == []


def test_the_time_of_a_node_that_is_started_is_counted_anew(account: Account) -> None:
    """Else one whose time is over would end itself at once."""
    account.apply(count=2)
    for node, expires in zip(account.nodes.values(), ("2020-01-01T00:00:00Z", "never"), strict=True):
        account.ec2.create_tags(Resources=[node], Tags=[{"Key": "llmops_expires", "Value": expires}])
        account.ec2.stop_instances(InstanceIds=[node])
    first, second = account.nodes.values()
    changes = account.apply(count=2)["changes"]
    assert changes == [f"tag node 0 ({first}): llmops_expires", f"start {first}", f"start {second}"]
    sent = account.endpoint.sent("StartInstances")[0]
    tagged = account.endpoint.sent("CreateTags")[-1]
    assert account.endpoint.requests.index(tagged) < account.endpoint.requests.index(sent)
    assert tagged.tags()["llmops_expires"] > "2026"


def test_what_is_not_this_fleets_is_left_on_its_nodes(account: Account) -> None:
    account.apply(count=1, tags={"team": "nlp"})
    node = account.nodes["0"]
    account.ec2.create_tags(Resources=[node], Tags=[{"Key": "owner", "Value": "somebody"}])
    assert account.apply(count=1, tags={"team": "nlp"})["changes"] == []
    assert account.apply(count=1, tags={"team": "speech"})["changes"] == [f"tag node 0 ({node}): team"]
    tags = {tag["Key"]: tag["Value"] for tag in account.instances()[0]["Tags"]}
    assert (tags["owner"], tags["team"]) == ("somebody", "speech")


def test_another_type_image_or_market_is_told_and_touches_no_node(account: Account) -> None:
    """No second fleet for another image, and no node that is stopped to be resized."""
    account.apply(count=2)
    before = account.nodes
    account.endpoint.requests.clear()
    asked: dict[str, t.Any] = {"instance_type": "g5.2xlarge", "image_id": "ami-other", "market": "spot"}
    made = account.apply(count=2, **asked)
    assert made["changes"] == [] and account.endpoint.mutations == [] and account.nodes == before
    assert len([line for line in made["plan"]["lines"] if line.startswith("notice  node")]) == 6


def test_fewer_nodes_need_a_word_and_the_highest_go_first(account: Account) -> None:
    account.apply()
    before = account.nodes
    assert "demo-001, demo-002 would be terminated" in account.refused(count=1)
    assert account.nodes == before
    account.endpoint.requests.clear()
    account.apply(count=1, allow_scale_down=True)
    (sent,) = account.endpoint.sent("TerminateInstances")
    assert sent.values("InstanceId") == [before["2"], before["1"]] and list(account.nodes) == ["0"]


def test_check_mode_sends_nothing_that_changes(account: Account) -> None:
    assert account.apply(check=True)["changes"] == [f"launch node {index}" for index in range(3)]
    assert account.endpoint.mutations == []
    (sent,) = account.endpoint.sent("RunInstances")
    assert sent.params["DryRun"] == "true", "parameters and permissions are proved"
    account.apply()
    account.ec2.terminate_instances(InstanceIds=[account.nodes["2"]])
    account.endpoint.requests.clear()
    assert account.apply(check=True)["changes"] == ["launch node 2"]
    assert account.apply(check=True, state="absent")["changes"] and account.endpoint.mutations == []


def test_check_mode_without_a_network_tells_the_plan(account: Account) -> None:
    made = account.apply(check=True, subnet_ids=[], security_group_ids=[])
    assert made["changes"] == [f"launch node {index}" for index in range(3)] and not account.endpoint.sent(
        "RunInstances"
    )
    assert [subnet["cidr"] for subnet in made["plan"]["subnets"]][:2] == ["10.64.0.0/19", "10.64.32.0/19"]


def test_a_longer_time_is_a_tag(account: Account) -> None:
    account.apply(count=1, ttl_hours=1)
    longer = account.apply(count=1, ttl_hours=48, extend=True)
    assert longer["changes"] == [f"tag node 0 ({account.nodes['0']}): llmops_expires"]
    assert account.apply(count=1, ttl_hours=1)["changes"] == [], "an apply alone changes no time"
    idle = account.apply(count=1, idle_minutes=45)
    assert idle["changes"] == [f"tag node 0 ({account.nodes['0']}): llmops_idle"]


def test_nodes_with_several_cards_get_addresses_that_last(account: Account) -> None:
    given: dict[str, t.Any] = {"instance_type": "p4d.24xlarge", "count": 2, "public_ip": True}
    made = account.apply(**given)
    assert made["changes"][-2:] == ["address node 0", "address node 1"]
    (launch,) = account.endpoint.sent("RunInstances")
    assert not [name for name in launch.params if "AssociatePublicIp" in name]
    (first, second) = account.endpoint.sent("AllocateAddress")
    assert second.tags("TagSpecification.1") == {"llmops_fleet": "demo", "llmops_index": "1", "Name": "demo-001"}
    before = {one["NetworkInterfaceId"]: one["PublicIp"] for one in account.ec2.describe_addresses()["Addresses"]}
    assert account.apply(**given)["changes"] == []
    account.ec2.terminate_instances(InstanceIds=[account.nodes["1"]])
    healed = account.apply(**given)
    assert healed["changes"] == ["launch node 1", "address node 1"]
    after = {one["NetworkInterfaceId"]: one["PublicIp"] for one in account.ec2.describe_addresses()["Addresses"]}
    assert set(after.values()) == set(before.values()) and len(account.endpoint.sent("AllocateAddress")) == 2
    fewer = account.apply(**{**given, "count": 1}, allow_scale_down=True)["changes"]
    assert fewer[-1].startswith("release eipalloc-") and len(account.ec2.describe_addresses()["Addresses"]) == 1
    assert [change.split()[0] for change in account.apply(state="absent")["changes"]] == ["terminate", "release"]
    assert first.params and not account.ec2.describe_addresses()["Addresses"]


def test_absent_ends_everything_that_costs_and_only_of_this_fleet(account: Account) -> None:
    account.apply(count=2)
    account.apply(name="other", count=1)
    orphan = account.nodes["1"]
    account.ec2.delete_tags(Resources=[orphan], Tags=[{"Key": "llmops_index"}])
    address = account.ec2.allocate_address(
        TagSpecifications=[{"ResourceType": "elastic-ip", "Tags": [{"Key": "llmops_fleet", "Value": "demo"}]}]
    )
    account.ec2.create_volume(
        AvailabilityZone=account.zones[0],
        Size=1,
        TagSpecifications=[{"ResourceType": "volume", "Tags": [{"Key": "llmops_fleet", "Value": "demo"}]}],
    )
    account.endpoint.requests.clear()
    ended = account.apply(state="absent")["changes"]
    assert [change.split()[0] for change in ended] == ["terminate", "terminate", "release", "delete"]
    assert account.endpoint.mutations == ["TerminateInstances", "ReleaseAddress", "DeleteVolume"]
    assert [one["Tags"][0]["Value"] for one in account.instances()] and len(account.instances()) == 1
    assert address["AllocationId"] not in str(account.ec2.describe_addresses()["Addresses"])
    account.endpoint.requests.clear()
    assert account.apply(state="absent")["changes"] == [] and account.endpoint.mutations == []
