# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module ec2_gpu_fleet against a real endpoint, moto behind it: what it sends, and what becomes of faults.

What EC2 really does with a request this cannot show; docs/ec2.md lists what else.
"""

from __future__ import annotations

import typing as t

import boto3
import botocore.loaders
import botocore.session
import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.llmops.finetune.plugins.module_utils._ec2 import apply, client
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.modules import ec2_gpu_fleet

from ..aws import Endpoint, Request

REGION = "us-east-1"
GONE = ("terminated", "shutting-down")
LOADER = botocore.loaders.create_loader()
"""Descriptions of services, which each session would read anew: most of the time that a call takes."""


class Account:
    """An account with a network, asked by the module and, to see what is true, by boto3."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.ec2 = boto3.client("ec2", region_name=REGION)
        vpc = self.ec2.create_vpc(CidrBlock="10.64.0.0/16")["Vpc"]["VpcId"]
        self.zones = [f"{REGION}{letter}" for letter in "abc"]
        self.subnets = [
            self.ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.64.{number}.0/24", AvailabilityZone=zone)["Subnet"][
                "SubnetId"
            ]
            for number, zone in enumerate(self.zones)
        ]
        self.group = self.ec2.create_security_group(GroupName="nodes", Description="x", VpcId=vpc)["GroupId"]
        endpoint.groups["demo"] = {"strategy": "cluster"}
        endpoint.requests.clear()

    def apply(self, *, check: bool = False, **given: t.Any) -> dict[str, t.Any]:
        asked = {
            "name": "demo",
            "region": REGION,
            "instance_type": "g5.xlarge",
            "count": 3,
            "subnet_ids": self.subnets,
            "security_group_ids": [self.group],
            "max_hourly_usd": 100,
            "timeout": 5,
            **given,
        }
        checked = ArgumentSpecValidator(ec2_gpu_fleet.OPTIONS).validate(asked)
        assert not checked.error_messages, checked.error_messages
        result = ec2_gpu_fleet.run(checked.validated_parameters, check)
        return {**result, "changes": [f"{change.action} {change.path}" for change in result["changes"]]}

    def refused(self, **given: t.Any) -> str:
        with pytest.raises(FinetuneError) as refusal:
            self.apply(**given)
        text = str(refusal.value)
        assert "change:" in text, "every refusal says what to change"
        return text

    def instances(self) -> list[dict[str, t.Any]]:
        found = [one for some in self.ec2.describe_instances()["Reservations"] for one in some["Instances"]]
        return [one for one in found if one["State"]["Name"] not in GONE]

    @property
    def nodes(self) -> dict[str, str]:
        """Instance by index."""
        tags = {
            one["InstanceId"]: {tag["Key"]: tag["Value"] for tag in one.get("Tags", [])} for one in self.instances()
        }
        return {tag["llmops_index"]: identity for identity, tag in sorted(tags.items(), key=lambda one: one[1]["Name"])}


@pytest.fixture(scope="module")
def endpoint() -> t.Iterator[Endpoint]:
    served = Endpoint()
    served.start()
    yield served
    served.stop()


@pytest.fixture
def account(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> t.Iterator[Account]:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in endpoint.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(botocore.session, "create_loader", lambda _path=None: LOADER)
    monkeypatch.setattr(apply, "_POLL", 0.05)
    monkeypatch.setattr(apply, "_PATIENCE", 1.5)
    yield Account(endpoint)
    endpoint.reset()


def no_capacity(*zones: str) -> t.Callable[[Request], tuple[str, str] | None]:
    def fault(request: Request) -> tuple[str, str] | None:
        if request.action == "RunInstances" and request.params.get("DryRun") != "true":
            subnet = request.params["NetworkInterface.1.SubnetId"]
            if subnet in zones:
                return "InsufficientInstanceCapacity", f"We currently do not have sufficient capacity in {subnet}."
        return None

    return fault


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


def test_no_capacity_anywhere_launches_nothing_and_says_where_it_asked(account: Account) -> None:
    account.endpoint.faults.append(no_capacity(*account.subnets))
    text = account.refused()
    assert "nothing was launched" in text and all(zone in text for zone in account.zones) and "ec2_market" in text
    assert account.instances() == [] and len(account.endpoint.sent("RunInstances")) == 3
    account.endpoint.faults.clear()
    assert len(account.apply()["nodes"]) == 3


def test_a_crash_between_launch_and_tagging_leaves_nodes_that_are_taken_up(account: Account) -> None:
    def crash(request: Request) -> tuple[str, str] | None:
        return ("AuthFailure", "AWS was not able to validate") if request.action == "CreateTags" else None

    account.endpoint.faults.append(crash)
    assert "goes on with the next apply" in account.refused()
    launched = {one["InstanceId"] for one in account.instances()}
    assert len(launched) == 3, "they run, and carry the fleet's tag"
    account.endpoint.faults.clear()
    made = account.apply()
    assert made["plan"]["steps"]["adopt"] == [0, 1, 2] and {node["id"] for node in made["nodes"]} == launched
    assert len(account.endpoint.sent("RunInstances")) == 1 and account.apply()["changes"] == []


def test_a_launch_whose_answer_was_lost_is_the_same_launch(account: Account) -> None:
    """The instances are not described yet; the token keeps a second apply from a second launch."""
    account.apply()
    hidden = {one["InstanceId"] for one in account.instances()}
    account.ec2.delete_tags(Resources=sorted(hidden), Tags=[{"Key": "llmops_fleet"}])
    with pytest.raises(FinetuneError, match="unknown"):
        account.apply(timeout=0)
    assert {one["InstanceId"] for one in account.instances()} == hidden


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


def test_fewer_nodes_need_a_word_and_the_highest_go_first(account: Account) -> None:
    account.apply()
    before = account.nodes
    assert "demo-001, demo-002 would be terminated" in account.refused(count=1)
    assert account.nodes == before
    account.endpoint.requests.clear()
    account.apply(count=1, allow_scale_down=True)
    (sent,) = account.endpoint.sent("TerminateInstances")
    assert sent.values("InstanceId") == [before["2"], before["1"]] and list(account.nodes) == ["0"]


def test_an_index_twice_is_not_guessed_about(account: Account) -> None:
    account.apply(count=2)
    first, second = account.nodes.values()
    account.ec2.create_tags(Resources=[second], Tags=[{"Key": "llmops_index", "Value": "0"}])
    text = account.refused(count=2)
    assert first in text and second in text and "node 0" in text
    assert len(account.instances()) == 2


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


def test_a_dry_run_that_is_refused_is_told(account: Account) -> None:
    account.endpoint.faults.append(
        lambda request: (
            ("UnauthorizedOperation", "You are not authorized") if request.action == "RunInstances" else None
        )
    )
    assert "These credentials may not do this" in account.refused(check=True)


def once(action: str, code: str, times: int = 2) -> t.Callable[[Request], tuple[str, str] | None]:
    left = [times]

    def fault(request: Request) -> tuple[str, str] | None:
        if request.action == action and left[0]:
            left[0] -= 1
            return (
                code,
                "Invalid IAM Instance Profile name" if code == "InvalidParameterValue" else "Request limit exceeded.",
            )
        return None

    return fault


@pytest.mark.parametrize(
    ("action", "code"),
    [
        ("RunInstances", "RequestLimitExceeded"),
        ("RunInstances", "InvalidParameterValue"),
        ("CreateTags", "InvalidInstanceID.NotFound"),
        ("DescribeInstances", "RequestLimitExceeded"),
    ],
)
def test_what_passes_is_waited_for(account: Account, action: str, code: str) -> None:
    account.endpoint.faults.append(once(action, code, 1))
    assert len(account.apply()["nodes"]) == 3
    assert len(account.instances()) == 3


def test_throttling_without_end_is_told_and_goes_on_later(account: Account) -> None:
    account.endpoint.faults.append(once("RunInstances", "RequestLimitExceeded", 99))
    text = account.refused()
    assert "takes no more requests for now" in text and "goes on" in text and account.instances() == []
    account.endpoint.faults.clear()
    assert len(account.apply()["nodes"]) == 3


@pytest.mark.parametrize("code", ["ExpiredToken", "RequestExpired", "InvalidClientTokenId"])
def test_credentials_that_ran_out(account: Account, code: str) -> None:
    account.endpoint.faults.append(lambda request: (code, "The security token included in the request is expired"))
    text = account.refused()
    assert "does not take the credentials" in text and "AWS_PROFILE" in text and account.endpoint.mutations == []


def test_no_credentials_at_all(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "There are no credentials" in account.refused()
    assert "ec2_profile" in account.refused(profile="nobody")


def test_a_region_that_is_not_one(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "ec2_region" in account.refused(region="us-esat-1", subnet_ids=[])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(client, "TRIES", 1)
    assert "cannot be asked" in account.refused()


def test_a_subnet_of_another_region(account: Account) -> None:
    assert "ec2_subnet_ids" in account.refused(region="us-west-2")


@pytest.mark.parametrize("quota", [0.0, 8.0])
def test_a_quota_that_does_not_suffice(account: Account, quota: float) -> None:
    account.endpoint.quota = quota
    text = account.refused()
    assert f"may run {quota:g} vCPUs" in text and "L-DB2E81BA" in text and account.endpoint.mutations == []


def test_what_runs_counts_for_the_quota(account: Account) -> None:
    account.endpoint.quota = 16.0
    account.apply()
    assert "12 are in use, and 2 × g5.xlarge need 8" in account.refused(count=5)
    account.endpoint.quota = None
    assert any("is unknown" in line for line in account.apply(count=5)["plan"]["lines"])


def test_the_price_is_checked_before_anything(account: Account) -> None:
    text = account.refused(max_hourly_usd=7.4)
    assert "3 nodes cost 7.50 USD an hour" in text and "ec2_max_hourly_usd" in text
    account.endpoint.price = None
    assert "1.006 a node: list of 2026-07-20" in " ".join(account.apply(check=True)["plan"]["lines"])
    assert "ec2_price_usd" in account.refused(instance_type="p3dn.24xlarge")
    assert "2.000 a node: ec2_price_usd" in " ".join(account.apply(check=True, price_usd=2)["plan"]["lines"])
    assert account.endpoint.mutations == []


def test_instances_that_die_at_once_are_told(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    run = apply._run

    def dies(aws: client.Aws, asked: dict[str, t.Any], dry: bool) -> list[t.Any]:
        found = run(aws, asked, dry)
        account.ec2.terminate_instances(InstanceIds=[found[0]["InstanceId"]])
        return found

    with monkeypatch.context() as short:
        short.setattr(apply, "_run", dies)
        assert "ended while they started: node 0" in account.refused()
    assert account.apply()["changes"] == ["launch node 0"], "the others are kept"


def test_a_longer_time_is_a_tag(account: Account) -> None:
    account.apply(count=1, ttl_hours=1)
    longer = account.apply(count=1, ttl_hours=48, extend=True)
    assert longer["changes"] == [f"tag node 0 ({account.nodes['0']}): llmops_expires"]
    assert account.apply(count=1, ttl_hours=1)["changes"] == [], "an apply alone changes no time"


def test_nodes_with_several_cards_get_addresses_that_last(account: Account) -> None:
    given = {"instance_type": "p4d.24xlarge", "count": 2, "public_ip": True, "max_hourly_usd": 100}
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
