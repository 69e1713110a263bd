# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to be known before anything is paid for. Reads only."""

from __future__ import annotations

import typing as t
from datetime import datetime, timezone

from .._errors import FinetuneError
from . import client, fleet, limits, naming, price, types

_PRICING_REGION = "us-east-1"
"""Prices of all regions are told by few."""


class Subnet(t.NamedTuple):
    id: str
    zone: str
    vpc: str
    free: int


class Image(t.NamedTuple):
    id: str
    name: str
    root_device: str
    gib: int
    architecture: str


class Facts(t.NamedTuple):
    account: str
    partition: str
    """aws, or that of China or of governments."""
    kind: types.GpuType
    zones: list[str]
    """Of the region."""
    offered: list[str]
    """Zones that have the type."""
    instances: list[fleet.Instance]
    quota: float | None
    used: int
    price: price.Price
    subnets: list[Subnet]
    key: str
    """The public key that is there under the name of the fleet's."""
    route_table: str
    """Of the fleet's own network. Its module would look for it by all its tags, and make a second one for others."""
    bucket: dict[str, str] | None
    """Tags of the bucket that is to be made, where it is there."""


def instance_type(aws: client.Aws, name: str) -> types.GpuType:
    try:
        found = aws.call("ec2", "describe_instance_types", InstanceTypes=[name])["InstanceTypes"]
    except client.Refused as error:
        if error.code == "InvalidInstanceType":
            found = []
        else:
            raise
    if not found:
        raise FinetuneError(
            f"There is no instance type {name} in {aws.region}.",
            where="ec2_instance_type and ec2_region",
            change="correct one of them",
        )
    return types.read(found[0])


def gpu_types(aws: client.Aws) -> list[types.GpuType]:
    """All of the region that models can be trained on."""
    found = []
    for one in aws.pages("ec2", "describe_instance_types", "InstanceTypes"):
        try:
            found.append(types.read(one))
        except FinetuneError:
            continue
    return sorted(found, key=lambda kind: kind.name)


def offered(aws: client.Aws, name: str) -> list[str]:
    asked = {"LocationType": "availability-zone", "Filters": client.filters(instance_type=name)}
    return sorted(
        one["Location"]
        for one in aws.pages("ec2", "describe_instance_type_offerings", "InstanceTypeOfferings", **asked)
    )


def zones(aws: client.Aws) -> list[str]:
    """Without local and Wavelength zones, which have other rules."""
    found = aws.call("ec2", "describe_availability_zones", Filters=client.filters(zone_type="availability-zone"))
    return sorted(one["ZoneName"] for one in found["AvailabilityZones"])


def instances(aws: client.Aws, name: str) -> list[fleet.Instance]:
    """Dead ones too, as long as EC2 tells of them."""
    asked = {"Filters": client.filters(**{f"tag__{naming.FLEET}": name})}
    found = aws.pages("ec2", "describe_instances", "Reservations", **asked)
    return [fleet.read(one) for reservation in found for one in reservation["Instances"]]


def quota(aws: client.Aws, kind: types.GpuType, market: str) -> float | None:
    code = limits.quota_code(kind, market)
    if not code:
        return None
    for action in ("get_service_quota", "get_aws_default_service_quota"):  # one that was never raised may be no quota
        try:
            answer = aws.call("service-quotas", action, tries=2, ServiceCode="ec2", QuotaCode=code)
        except client.Refused as error:
            if error.kind == "credentials":
                raise
        else:
            return float(answer["Quota"]["Value"])
    return None


def used(aws: client.Aws, kind: types.GpuType, market: str) -> int:
    """vCPUs that count for the same quota, whoever launched them."""
    asked = {"Filters": client.filters(instance_state_name=["pending", "running"])}
    running: list[str] = []
    for reservation in aws.pages("ec2", "describe_instances", "Reservations", **asked):
        for one in reservation["Instances"]:
            sold = one.get("InstanceLifecycle") or "on-demand"
            if sold == market and limits.same_quota(one["InstanceType"].partition(".")[0], kind, market):
                running.append(one["InstanceType"])
    if not running:
        return 0
    told = aws.call("ec2", "describe_instance_types", InstanceTypes=sorted(set(running)))["InstanceTypes"]
    return sum(running.count(one["InstanceType"]) * int(one["VCpuInfo"]["DefaultVCpus"]) for one in told)


def asked_price(aws: client.Aws, kind: types.GpuType, market: str, zones_: t.Collection[str]) -> float | None:
    """None where AWS does not tell; whoever may not ask for prices can still give one."""
    try:
        if market == "spot":
            history = aws.call(
                "ec2",
                "describe_spot_price_history",
                InstanceTypes=[kind.name],
                ProductDescriptions=["Linux/UNIX"],
                StartTime=datetime.now(timezone.utc),
            )
            return price.spot(history["SpotPriceHistory"], zones_)
        fields = {
            "instanceType": kind.name,
            "regionCode": aws.region,
            "operatingSystem": "Linux",
            "tenancy": "Shared",
            "preInstalledSw": "NA",
            "capacitystatus": "Used",
        }
        asked = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in fields.items()]
        answer = aws.call(
            "pricing", "get_products", tries=1, region=_PRICING_REGION, ServiceCode="AmazonEC2", Filters=asked
        )
        return price.on_demand(answer["PriceList"])
    except FinetuneError as error:
        if isinstance(error, client.Refused) and error.kind == "credentials":
            raise
        return None


def subnets(aws: client.Aws, ids: t.Sequence[str]) -> list[Subnet]:
    """In the order that was given, which is the order in which zones are tried."""
    if not ids:
        return []
    found = {
        one["SubnetId"]: Subnet(
            one["SubnetId"], one["AvailabilityZone"], one["VpcId"], int(one["AvailableIpAddressCount"])
        )
        for one in aws.call("ec2", "describe_subnets", SubnetIds=list(ids))["Subnets"]
    }
    return [found[one] for one in ids]


def image(aws: client.Aws, kind: types.GpuType, given: str, parameter: str) -> Image:
    """The name of the root device is the image's: under another, it would be a second volume beside a small root."""
    if not given:
        name = parameter.replace("{architecture}", kind.architecture)
        given = aws.call("ssm", "get_parameter", Name=name)["Parameter"]["Value"]
    found = aws.call("ec2", "describe_images", ImageIds=[given])["Images"]
    if not found:
        raise FinetuneError(
            f"There is no image {given} in {aws.region}.",
            where="ec2_image_id and ec2_region",
            change="correct one of them",
        )
    told = found[0]
    device = str(told.get("RootDeviceName") or "/dev/sda1")
    sizes = [
        int(one.get("Ebs", {}).get("VolumeSize") or 0)
        for one in told.get("BlockDeviceMappings", [])
        if one.get("DeviceName") == device
    ]
    seen = Image(given, str(told.get("Name") or ""), device, max(sizes, default=0), str(told.get("Architecture") or ""))
    if seen.architecture and seen.architecture != kind.architecture:
        raise FinetuneError(
            f"Image {given} is for {seen.architecture}, and {kind.name} is {kind.architecture}.",
            where="ec2_image_id",
            change="take an image for that architecture, or leave ec2_image_id empty",
        )
    return seen


def bucket(aws: client.Aws, name: str) -> dict[str, str] | None:
    """Its tags; None where there is no such bucket."""
    try:
        return naming.tags(aws.call("s3", "get_bucket_tagging", Bucket=name)["TagSet"])
    except client.Refused as error:
        if error.kind == "permission":
            raise FinetuneError(
                f"Bucket {name} is somebody else's, or these credentials may not ask for its tags.",
                where="ec2_bucket",
                change="name another (all accounts share their names), or allow s3:GetBucketTagging",
            ) from None
        if error.code not in ("NoSuchTagSet", "NoSuchBucket"):
            raise
        return {} if error.code == "NoSuchTagSet" else None


def route_table(aws: client.Aws, fleet_: str) -> str:
    tagged = client.filters(**{f"tag__{naming.FLEET}": fleet_})
    found = aws.call("ec2", "describe_route_tables", Filters=tagged)["RouteTables"]
    return str(found[0]["RouteTableId"]) if found else ""


def public_key(aws: client.Aws, name: str) -> str:
    wanted = client.filters(key_name=name)
    found = aws.call("ec2", "describe_key_pairs", Filters=wanted, IncludePublicKey=True)["KeyPairs"]
    return str(found[0].get("PublicKey") or "") if found else ""


def facts(aws: client.Aws, wanted: t.Mapping[str, t.Any]) -> Facts:
    who = aws.call("sts", "get_caller_identity", tries=2)
    kind = instance_type(aws, wanted["instance_type"])
    market = wanted["market"]
    limits.market(kind, market, wanted["capacity_reservation_id"], wanted["spot_max_usd"])
    has = offered(aws, kind.name)
    asked = None if wanted["price_usd"] or market == "capacity-block" else asked_price(aws, kind, market, has)
    return Facts(
        account=who["Account"],
        partition=who["Arn"].split(":")[1],
        kind=kind,
        zones=zones(aws),
        offered=has,
        instances=instances(aws, wanted["name"]),
        quota=quota(aws, kind, market),
        used=used(aws, kind, market),
        price=price.choose(kind.name, market, aws.region, wanted["price_usd"], asked),
        subnets=subnets(aws, wanted["subnet_ids"]),
        key=public_key(aws, naming.own_name(wanted["name"])),
        route_table="" if wanted["subnet_ids"] else route_table(aws, wanted["name"]),
        bucket=bucket(aws, wanted["bucket"]) if wanted["bucket"] else None,
    )
