# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From an empty account to a fleet and back, by the playbooks that a user types, against moto."""

from __future__ import annotations

import os
import typing as t

import boto3
import pytest

from ..aws import Endpoint
from ..unit import ec2_facts
from .conftest import Outcome
from .ec2_site import REGION, Site

ORDER = [
    "TerminateInstances",
    "DeletePlacementGroup",
    "DeleteSecurityGroup",
    "DeleteVpcEndpoints",
    "DeleteRouteTable",
    "DeleteSubnet",
    "DetachInternetGateway",
    "DeleteInternetGateway",
    "DeleteVpc",
    "DeleteInstanceProfile",
    "DeleteRole",
    "DeleteKeyPair",
]
FLEETS: list[t.Any] = [{"Name": "tag:llmops_fleet", "Values": ["demo"]}]
KINDS = {
    "describe_vpcs": "Vpcs",
    "describe_subnets": "Subnets",
    "describe_route_tables": "RouteTables",
    "describe_internet_gateways": "InternetGateways",
    "describe_vpc_endpoints": "VpcEndpoints",
    "describe_security_groups": "SecurityGroups",
    "describe_volumes": "Volumes",
    "describe_network_interfaces": "NetworkInterfaces",
    "describe_key_pairs": "KeyPairs",
    "describe_placement_groups": "PlacementGroups",
}


def fleets_own() -> dict[str, list[dict[str, t.Any]]]:
    """What has the fleet's tag, by kind. Endpoints that were deleted are told of for a while."""
    ec2 = boto3.client("ec2", region_name=REGION)
    told = {key: getattr(ec2, action)(Filters=FLEETS)[key] for action, key in KINDS.items()}
    return {key: [one for one in found if one.get("State") != "deleted"] for key, found in told.items()}


def console(instance: str) -> str:
    """Each node has its own key."""
    return ec2_facts.console(f"{ec2_facts.key(instance)} root@node")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Site]:
    endpoint = Endpoint(console=console)
    endpoint.start()
    before = dict(os.environ)
    os.environ.update(endpoint.environment())
    yield Site(endpoint, tmp_path_factory.mktemp("controller"))
    os.environ.clear()
    os.environ.update(before)
    endpoint.stop()


def teardown(site: Site, *arguments: str, **variables: t.Any) -> Outcome:
    return site.play("llmops.finetune.teardown", *arguments, ec2_teardown_confirm="demo", **variables)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"ec2_ssh_cidrs": ["0.0.0.0/0"]}, "Port 22 would be open to 0.0.0.0/0"),
        ({"ec2_max_hourly_usd": None}, "ec2_max_hourly_usd"),
    ],
)
def test_what_is_refused_is_refused_before_anything_is_made(site: Site, given: dict[str, t.Any], why: str) -> None:
    refused = site.play("llmops.finetune.provision", **given)
    assert refused.rc != 0 and why in refused.message and site.endpoint.mutations == []


@pytest.fixture(scope="module")
def provisioned(site: Site) -> Outcome:
    """Check mode on the empty account, then the fleet, and what was sent for it."""
    predicted = site.play("llmops.finetune.provision", "--check")
    assert predicted.rc == 0, predicted.text
    assert site.endpoint.mutations == [], "check mode changes nothing"
    assert not (site.home / "known_hosts").exists()
    site.endpoint.requests.clear()
    applied = site.play("llmops.finetune.provision")
    assert applied.rc == 0, applied.text
    assert set(predicted.changed) < set(applied.changed), (
        "what hangs on a network that is not there is in the plan alone"
    )
    return applied


def test_the_price_is_told_before_anything_is_made(site: Site, provisioned: Outcome) -> None:
    tasks = [line["task"] for line in provisioned.results]
    shown = tasks.index("Plan | Show it")
    assert not [line["task"] for line in provisioned.results[: shown + 1] if line["result"].get("changed")]
    text = " ".join(provisioned.results[shown]["result"]["msg"])
    for words in ("3 × p4d.24xlarge", "65.87 USD an hour, 1580.98 in 24 h", "us-east-1b or us-east-1a", "launch 0 1 2"):
        assert words in text


def test_only_who_is_named_gets_in_and_nodes_reach_each_other(site: Site, provisioned: Outcome) -> None:
    (group,) = boto3.client("ec2", region_name=REGION).describe_security_groups(Filters=FLEETS)["SecurityGroups"]

    def rules(name: str) -> set[tuple[str, t.Any, str]]:
        found = set()
        for rule in group[name]:
            whom = [one["CidrIp"] for one in rule["IpRanges"]] + [one["GroupId"] for one in rule["UserIdGroupPairs"]]
            found |= {(rule["IpProtocol"], rule.get("FromPort"), one) for one in whom}
        return found

    assert rules("IpPermissions") == {("tcp", 22, "203.0.113.7/32"), ("-1", None, group["GroupId"])}
    assert rules("IpPermissionsEgress") == {("-1", None, "0.0.0.0/0"), ("-1", None, group["GroupId"])}
    (launch,) = site.endpoint.sent("RunInstances")
    assert launch.params["NetworkInterface.1.SecurityGroupId.1"] == group["GroupId"]


def test_nodes_may_use_one_prefix_of_one_bucket(site: Site, provisioned: Outcome) -> None:
    name = "llmops-demo-us-east-1"
    (launch,) = site.endpoint.sent("RunInstances")
    assert launch.params["IamInstanceProfile.Name"] == name and launch.params["KeyName"] == "llmops-demo"
    iam = boto3.client("iam", region_name=REGION)
    (held,) = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"]
    assert held["RoleName"] == name and not iam.list_attached_role_policies(RoleName=name)["AttachedPolicies"]
    allowed = iam.get_role_policy(RoleName=name, PolicyName="bucket")["PolicyDocument"]["Statement"]
    assert {one["Sid"]: one["Resource"] for one in allowed} == {
        "List": "arn:aws:s3:::records-of-demo",
        "Uploads": "arn:aws:s3:::records-of-demo",
        "Objects": "arn:aws:s3:::records-of-demo/demo/*",
    }
    assert {action for one in allowed for action in one["Action"]} == {
        "s3:ListBucket",
        "s3:ListBucketMultipartUploads",
        "s3:GetObject",
        "s3:PutObject",
        "s3:DeleteObject",
        "s3:AbortMultipartUpload",
    }
    assert allowed[0]["Condition"] == {"StringLike": {"s3:prefix": ["demo", "demo/*"]}}
    s3 = boto3.client("s3", region_name=REGION)
    closed = s3.get_public_access_block(Bucket="records-of-demo")["PublicAccessBlockConfiguration"]
    assert all(closed.values()) and "SecureTransport" in s3.get_bucket_policy(Bucket="records-of-demo")["Policy"]


def test_nodes_are_listed_by_index_and_known_by_their_consoles(site: Site, provisioned: Outcome) -> None:
    listed = site.trainers()
    assert listed.stdout.split()[-3:] == ["demo-000", "demo-001", "demo-002"], listed.stdout + listed.stderr
    told = site.inventory()["_meta"]["hostvars"]["demo-001"]
    assert told["ansible_user"] == "ubuntu" and "StrictHostKeyChecking=yes" in told["ansible_ssh_common_args"]
    known = (site.home / "known_hosts").read_text().splitlines()
    instance = told["aws_instance_id"]["__ansible_unsafe"]
    assert known[1] == f"demo-001 {ec2_facts.key(instance)} {instance}" and len(known) == 3
    assert told["train_address"]["__ansible_unsafe"].startswith("10.64.32.") and told["train_nodes"] == 3


def test_a_second_apply_changes_nothing(site: Site, provisioned: Outcome) -> None:
    """Tags of others are theirs, such as those that an account puts on all that it has."""
    ec2, iam = (boto3.client(name, region_name=REGION) for name in ("ec2", "iam"))
    ours = [one["ResourceId"] for one in ec2.describe_tags(Filters=FLEETS)["Tags"]]
    assert {one.partition("-")[0] for one in ours} > {"vpc", "igw", "subnet", "rtb", "vpce", "sg", "key", "i"}
    owner = [{"Key": "owner", "Value": "somebody"}]
    ec2.create_tags(Resources=ours, Tags=owner)
    iam.tag_role(RoleName="llmops-demo-us-east-1", Tags=owner)
    iam.tag_instance_profile(InstanceProfileName="llmops-demo-us-east-1", Tags=owner)
    site.endpoint.requests.clear()
    for arguments in (["--check"], []):
        again = site.play("llmops.finetune.provision", *arguments)
        assert again.rc == 0 and again.changed == [], again.text
        done = {line["task"] for line in again.results if not line["result"].get("skipped")}
        assert not [task for task in done if task.startswith("Fleet")], "the plan has asked already"
    assert site.endpoint.mutations == []


def test_another_tag_makes_nothing_twice(site: Site, provisioned: Outcome) -> None:
    before = fleets_own()
    site.endpoint.requests.clear()
    tagged = site.play("llmops.finetune.provision", ec2_tags={"team": "nlp"})
    assert tagged.rc == 0, tagged.text
    assert set(site.endpoint.mutations) <= {"CreateTags", "TagRole", "TagInstanceProfile", "PUT s3"}
    after = fleets_own()
    assert {key: len(found) for key, found in after.items()} == {key: len(found) for key, found in before.items()}
    assert all({"Key": "team", "Value": "nlp"} in one["Tags"] for one in after["RouteTables"] + after["Vpcs"])


def test_a_node_that_is_lost_comes_back_at_its_place(site: Site, provisioned: Outcome) -> None:
    before = site.inventory()["_meta"]["hostvars"]
    lost = before["demo-000"]["aws_instance_id"]["__ansible_unsafe"]
    boto3.client("ec2", region_name=REGION).terminate_instances(InstanceIds=[lost])
    assert "demo-" not in site.trainers().stdout, "without node 0 there are no trainers"
    site.endpoint.requests.clear()
    predicted = site.play("llmops.finetune.provision", "--check")
    assert predicted.rc == 0 and site.endpoint.mutations == [], "check mode changes nothing of a full account"
    healed = site.play("llmops.finetune.provision")
    assert healed.rc == 0 and healed.changed == ["Fleet | Have the nodes", "Fleet | Know them by their consoles"]
    assert predicted.changed == healed.changed
    listed = site.trainers()
    assert listed.stdout.split()[-3:] == ["demo-000", "demo-001", "demo-002"], listed.stdout
    after = site.inventory()["_meta"]["hostvars"]["demo-000"]["aws_instance_id"]["__ansible_unsafe"]
    known = (site.home / "known_hosts").read_text().splitlines()
    assert after != lost and len(known) == 3 and known[0].endswith(after)


def test_teardown_has_to_be_meant(site: Site, provisioned: Outcome) -> None:
    site.endpoint.requests.clear()
    refused = site.play("llmops.finetune.teardown", ec2_teardown_confirm="other")
    assert refused.rc != 0 and "ec2_teardown_confirm=demo" in refused.message and site.endpoint.mutations == []
    checked = teardown(site, "--check")
    assert checked.rc == 0 and checked.changed and site.endpoint.mutations == []


def test_nothing_is_left_also_after_a_teardown_that_broke_off(site: Site, provisioned: Outcome) -> None:
    site.endpoint.requests.clear()
    site.endpoint.faults.append(
        lambda request: ("DependencyViolation", "has dependencies") if request.action == "DeleteSubnet" else None
    )
    broken = teardown(site)
    assert broken.rc != 0 and "DependencyViolation" in broken.text
    site.endpoint.faults.clear()
    ended = teardown(site)
    assert ended.rc == 0, ended.text
    kept = [one["Name"] for one in boto3.client("s3", region_name=REGION).list_buckets()["Buckets"]]
    assert kept == ["records-of-demo"], "data stay"
    order = [
        action for action in site.endpoint.mutations if action.startswith(("Delete", "Terminate", "Detach", "Remove"))
    ]
    positions = [order.index(action) for action in ORDER]
    assert positions == sorted(positions), order
    last = teardown(site, ec2_teardown_bucket=True)
    assert last.rc == 0 and last.changed == ["Rest | The bucket, with all that is in it"], "the second changes no more"
    ec2, iam = (boto3.client(name, region_name=REGION) for name in ("ec2", "iam"))
    states = {one["State"]["Name"] for some in ec2.describe_instances()["Reservations"] for one in some["Instances"]}
    assert (
        states == {"terminated"}
        and not iam.list_roles()["Roles"]
        and not iam.list_instance_profiles()["InstanceProfiles"]
    )
    assert not any(fleets_own().values())
    assert not (site.home / "known_hosts").exists()


def test_a_network_of_yours_is_used_and_left_as_it_is(site: Site) -> None:
    ec2 = boto3.client("ec2", region_name=REGION)
    vpc = ec2.create_vpc(CidrBlock="10.65.0.0/16")["Vpc"]["VpcId"]
    made = ec2.create_subnet(VpcId=vpc, CidrBlock="10.65.1.0/24", AvailabilityZone=f"{REGION}a")
    subnet = made["Subnet"]["SubnetId"]
    yours: dict[str, t.Any] = {
        "ec2_name": "guest",
        "ec2_subnet_ids": [subnet],
        "ec2_count": 1,
        "ec2_bucket": "",
        "ec2_bucket_create": False,
    }
    site.endpoint.requests.clear()
    applied = site.play("llmops.finetune.provision", **yours)
    assert applied.rc == 0, applied.text
    assert not {one for one in site.endpoint.mutations if "Vpc" in one or "Subnet" in one or "Route" in one}
    (launch,) = site.endpoint.sent("RunInstances")
    assert launch.params["NetworkInterface.1.SubnetId"] == subnet
    assert launch.params["NetworkInterface.1.AssociatePublicIpAddress"] == "false"
    ended = site.play("llmops.finetune.teardown", ec2_teardown_confirm="guest", **yours)
    assert ended.rc == 0, ended.text
    assert [one["VpcId"] for one in ec2.describe_subnets(SubnetIds=[subnet])["Subnets"]] == [vpc]
    names = {one["GroupName"] for one in ec2.describe_security_groups()["SecurityGroups"]}
    assert "llmops-guest" not in names and not site.endpoint.sent("DeleteVpc")
