# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that is of a fleet, as the Describe calls tell it: calls about tags or costs list what was deleted."""

from __future__ import annotations

import typing as t

from . import client, fleet, naming, survey

_EC2 = {
    "volumes": ("describe_volumes", "Volumes", "VolumeId"),
    "network_interfaces": ("describe_network_interfaces", "NetworkInterfaces", "NetworkInterfaceId"),
    "addresses": ("describe_addresses", "Addresses", "AllocationId"),
    "placement_groups": ("describe_placement_groups", "PlacementGroups", "GroupName"),
    "security_groups": ("describe_security_groups", "SecurityGroups", "GroupId"),
    "endpoints": ("describe_vpc_endpoints", "VpcEndpoints", "VpcEndpointId"),
    "route_tables": ("describe_route_tables", "RouteTables", "RouteTableId"),
    "subnets": ("describe_subnets", "Subnets", "SubnetId"),
    "internet_gateways": ("describe_internet_gateways", "InternetGateways", "InternetGatewayId"),
    "vpcs": ("describe_vpcs", "Vpcs", "VpcId"),
    "key_pairs": ("describe_key_pairs", "KeyPairs", "KeyName"),
}
_ENDED = {"deleted", "deleting"}


def find(aws: client.Aws, name: str, bucket: str = "") -> dict[str, list[dict[str, t.Any]]]:
    """By kind, each with id and what is needed to delete it. Nothing of a fleet: only empty lists."""
    tagged = client.filters(**{f"tag__{naming.FLEET}": name})
    found: dict[str, list[dict[str, t.Any]]] = {"instances": _instances(aws, tagged)}
    requests = aws.pages("ec2", "describe_spot_instance_requests", "SpotInstanceRequests", Filters=tagged)
    found["spot_requests"] = [
        {"id": one["SpotInstanceRequestId"]} for one in requests if one["State"] in ("open", "active")
    ]
    for kind, (action, key, identity) in _EC2.items():
        answers = aws.call("ec2", action, Filters=tagged).get(key) or []
        found[kind] = [
            _short(one, identity)
            for one in answers
            if str(one.get("State", one.get("Status", ""))).lower() not in _ENDED
        ]
    vpcs = [one["id"] for one in found["vpcs"]]
    inside = _instances(aws, client.filters(vpc_id=vpcs)) if vpcs else []
    ours = {one["id"] for one in found["instances"]}
    found["strangers"] = [one for one in inside if one["id"] not in ours]
    found |= _iam(aws, naming.iam(name, aws.region), name)
    found["buckets"] = [{"id": bucket}] if bucket and _made(aws, bucket, name) else []
    return found


def _short(one: t.Mapping[str, t.Any], identity: str) -> dict[str, t.Any]:
    attached = [attachment["VpcId"] for attachment in one.get("Attachments", []) if "VpcId" in attachment]
    told = {
        "id": one[identity],
        "vpc": one.get("VpcId") or next(iter(attached), ""),
        "cidr": one.get("CidrBlock") or "",
        "name": one.get("GroupName") or naming.tags(one.get("Tags")).get("Name", ""),
    }
    return {key: value for key, value in told.items() if value}


def _instances(aws: client.Aws, filters: list[dict[str, t.Any]]) -> list[dict[str, t.Any]]:
    states = client.filters(instance_state_name=[*fleet.LIVE, "shutting-down"])
    found = aws.pages("ec2", "describe_instances", "Reservations", Filters=[*filters, *states])
    return [
        {"id": one["InstanceId"], "name": naming.tags(one.get("Tags")).get("Name", ""), "state": one["State"]["Name"]}
        for reservation in found
        for one in reservation["Instances"]
    ]


def _iam(aws: client.Aws, iam: str, name: str) -> dict[str, list[dict[str, t.Any]]]:
    """Only with the fleet's tag: somebody else's role may have the name."""
    found: dict[str, list[dict[str, t.Any]]] = {}
    asks: dict[str, t.Callable[[], t.Any]] = {
        "instance_profiles": lambda: aws.call("iam", "get_instance_profile", InstanceProfileName=iam)[
            "InstanceProfile"
        ],
        "roles": lambda: aws.call("iam", "get_role", RoleName=iam)["Role"],
    }
    for kind, ask in asks.items():
        try:
            one = ask()
        except client.Refused as error:
            if error.code != "NoSuchEntity":
                raise
            found[kind] = []
        else:
            ours = naming.tags(one.get("Tags")).get(naming.FLEET) == name
            found[kind] = [{"id": iam}] if ours else []
    return found


def _made(aws: client.Aws, bucket: str, name: str) -> bool:
    """Whether the bucket was made for the fleet: one that was there before has no tag of it."""
    return (survey.bucket(aws, bucket) or {}).get(naming.FLEET) == name


def left(found: t.Mapping[str, t.Sequence[t.Mapping[str, t.Any]]]) -> list[str]:
    """For people: what is there, by kind. A bucket is no leftover: it has the data."""
    return [
        f"{kind.replace('_', ' ')}: {', '.join(str(one['id']) for one in those)}"
        for kind, those in found.items()
        if those and kind != "buckets"
    ]
