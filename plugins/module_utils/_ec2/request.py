# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one request that launches nodes, all or none. Pure."""

from __future__ import annotations

import hashlib
import json
import typing as t
from datetime import datetime, timedelta

from . import naming
from .interfaces import Interface


class Spec(t.NamedTuple):
    fleet: str
    type: str
    image: str
    root_device: str
    root_gib: int
    root_iops: int
    root_throughput: int
    kms_key: str
    interfaces: tuple[Interface, ...]
    security_groups: tuple[str, ...]
    public_ip: bool
    key_name: str
    profile: str
    placement_group: str
    market: str
    reservation: str
    spot_max_usd: float
    on_shutdown: str
    user_data: str
    hops: int
    tags: dict[str, str]


def expires(now: datetime, hours: float) -> str:
    """Counted from the next full hour, so that a launch that is tried again within the hour is the same request."""
    full = now.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    return (full + timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%SZ") if hours else ""


def launch(spec: Spec, subnet: str, indexes: t.Sequence[int], seen: t.Iterable[str], hour: str) -> dict[str, t.Any]:
    """Arguments of RunInstances. seen: ids of all instances of the fleet that are still described, also of dead ones.

    The token makes a launch that is sent again, by botocore or by an apply after a crash, the same launch. A token that
    outlived its instances would return those; so what was seen, and the hour, are in it.
    """
    tags = dict(spec.tags)
    if len(indexes) == 1:
        tags |= {naming.INDEX: str(indexes[0]), "Name": naming.node(spec.fleet, indexes[0])}
    kinds = ["instance", "volume", "network-interface", *(["spot-instances-request"] if spec.market == "spot" else [])]
    asked: dict[str, t.Any] = {
        "MinCount": len(indexes),
        "MaxCount": len(indexes),
        "ImageId": spec.image,
        "InstanceType": spec.type,
        "InstanceInitiatedShutdownBehavior": spec.on_shutdown,
        "MetadataOptions": {
            "HttpTokens": "required",
            "HttpEndpoint": "enabled",
            "HttpPutResponseHopLimit": spec.hops,
            "InstanceMetadataTags": "enabled",
        },
        "BlockDeviceMappings": [{"DeviceName": spec.root_device, "Ebs": _root(spec)}],
        "NetworkInterfaces": [_interface(spec, one, subnet) for one in spec.interfaces],
        "TagSpecifications": [
            {"ResourceType": kind, "Tags": naming.listed(tags if kind == "instance" else spec.tags)} for kind in kinds
        ],
        **_market(spec),
    }
    if spec.key_name:
        asked["KeyName"] = spec.key_name
    if spec.profile:
        asked["IamInstanceProfile"] = {"Name": spec.profile}
    if spec.user_data:
        asked["UserData"] = spec.user_data
    if spec.placement_group:
        asked["Placement"] = {"GroupName": spec.placement_group}
    text = json.dumps([asked, list(indexes), sorted(seen), hour], sort_keys=True)
    return {**asked, "ClientToken": hashlib.sha256(text.encode()).hexdigest()}


def _root(spec: Spec) -> dict[str, t.Any]:
    given = {"Iops": spec.root_iops, "Throughput": spec.root_throughput, "KmsKeyId": spec.kms_key}
    return {
        "VolumeType": "gp3",
        "VolumeSize": spec.root_gib,
        "Encrypted": True,
        "DeleteOnTermination": True,
        **{name: value for name, value in given.items() if value},
    }


def _interface(spec: Spec, one: Interface, subnet: str) -> dict[str, t.Any]:
    """A public address is asked for, or refused, by name: a subnet may give one by itself."""
    told: dict[str, t.Any] = {
        "NetworkCardIndex": one.card,
        "DeviceIndex": one.device,
        "InterfaceType": one.kind,
        "SubnetId": subnet,
        "Groups": list(spec.security_groups),
        "DeleteOnTermination": True,
    }
    if len(spec.interfaces) == 1:
        told["AssociatePublicIpAddress"] = spec.public_ip
    return told


def _market(spec: Spec) -> dict[str, t.Any]:
    """One-time spot that terminates: a persistent request would start instances that nobody waits for."""
    target = {"CapacityReservationTarget": {"CapacityReservationId": spec.reservation}}
    if spec.market == "spot":
        most = {"MaxPrice": f"{spec.spot_max_usd:g}"} if spec.spot_max_usd else {}
        options = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate", **most}
        return {"InstanceMarketOptions": {"MarketType": "spot", "SpotOptions": options}}
    if spec.market == "capacity-block":
        return {"InstanceMarketOptions": {"MarketType": "capacity-block"}, "CapacityReservationSpecification": target}
    return {"CapacityReservationSpecification": target} if spec.reservation else {}
