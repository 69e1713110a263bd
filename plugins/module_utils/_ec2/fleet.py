# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What to do so that a fleet has nodes 0 … n-1, from the instances that were described. Pure.

The index of a node is a tag, not its place in a list: it is rank in a run, so it outlives the instance.
"""

from __future__ import annotations

import typing as t

from .._errors import FinetuneError
from . import naming

OFF = ("stopping", "stopped")
LIVE = ("pending", "running", *OFF)


class Instance(t.NamedTuple):
    id: str
    state: str
    type: str
    image: str
    zone: str
    launched: tuple[str, int]
    """When, and which of those that were launched together."""
    tags: dict[str, str]
    private_ip: str
    public_ip: str
    market: str
    interface: str
    """That of its address."""
    interfaces: int
    reason: str
    """Why it is not alive, where EC2 says so."""

    @property
    def node(self) -> int | None:
        told = self.tags.get(naming.INDEX, "")
        return int(told) if told.isdigit() else None


class Steps(t.NamedTuple):
    nodes: dict[int, Instance]
    """By index, those that stay."""
    adopt: dict[int, Instance]
    """Launched for this fleet, and not yet given an index."""
    missing: list[int]
    extra: dict[int, Instance]
    """Of a fleet that was larger; the highest index first."""
    start: list[Instance]


def read(described: t.Mapping[str, t.Any]) -> Instance:
    return Instance(
        id=described["InstanceId"],
        state=described["State"]["Name"],
        type=described["InstanceType"],
        image=described["ImageId"],
        zone=described["Placement"]["AvailabilityZone"],
        launched=(str(described.get("LaunchTime", "")), int(described.get("AmiLaunchIndex") or 0)),
        tags=naming.tags(described.get("Tags")),
        private_ip=described.get("PrivateIpAddress") or "",
        public_ip=described.get("PublicIpAddress") or "",
        market=described.get("InstanceLifecycle") or "on-demand",
        interface=_first_interface(described),
        interfaces=len(described.get("NetworkInterfaces") or ()),
        reason=(described.get("StateReason") or {}).get("Message") or "",
    )


def _first_interface(described: t.Mapping[str, t.Any]) -> str:
    for one in described.get("NetworkInterfaces") or ():
        attached = one.get("Attachment", {})
        if not attached.get("DeviceIndex") and not attached.get("NetworkCardIndex"):
            return str(one["NetworkInterfaceId"])
    return ""


def reconcile(found: t.Iterable[Instance], fleet: str, count: int, may_shrink: bool = False) -> Steps:
    live = [instance for instance in found if instance.state in LIVE]
    by_index: dict[int, list[Instance]] = {}
    for instance in live:
        if instance.node is not None:
            by_index.setdefault(instance.node, []).append(instance)
    twice = {index: [one.id for one in those] for index, those in by_index.items() if len(those) > 1}
    if twice:
        index, ids = min(twice.items())
        raise FinetuneError(
            f"Several instances of fleet {fleet} are its node {index}: {', '.join(sorted(ids))}.",
            where=f"tag {naming.INDEX}",
            change="look which one has the run's data, and remove that tag and the tag llmops_fleet from the other",
        )
    nodes = {index: those[0] for index, those in by_index.items()}
    adopt = _adopted(live, nodes, fleet)
    known = {**nodes, **adopt}
    extra = {index: known[index] for index in sorted(known, reverse=True) if index >= count}
    if extra and not may_shrink:
        raise FinetuneError(
            f"Fleet {fleet} has {len(known)} nodes, and {count} are asked for: "
            f"{', '.join(naming.node(fleet, index) for index in sorted(extra))} would be terminated.",
            where="ec2_count",
            change="say ec2_allow_scale_down=true, or leave ec2_count as it was",
        )
    stay = {index: instance for index, instance in sorted(known.items()) if index < count}
    return Steps(
        nodes=stay,
        adopt={index: instance for index, instance in adopt.items() if index < count},
        missing=[index for index in range(count) if index not in stay],
        extra=extra,
        start=[instance for instance in stay.values() if instance.state in OFF],
    )


def _adopted(live: list[Instance], nodes: t.Mapping[int, Instance], fleet: str) -> dict[int, Instance]:
    """By the index in the name, else the lowest that is free, in the order of the launch."""
    orphans = sorted((one for one in live if one.node is None), key=lambda one: (one.launched, one.id))
    given: dict[int, Instance] = {}
    later = []
    for one in orphans:
        name, _dash, number = one.tags.get("Name", "").rpartition("-")
        if name == fleet and number.isdigit() and int(number) not in {**nodes, **given}:
            given[int(number)] = one
        else:
            later.append(one)
    for one in later:
        index = next(number for number in range(len(live)) if number not in {**nodes, **given})
        given[index] = one
    return given


def drift(steps: Steps, kind: str, image: str, market: str) -> list[str]:
    """How nodes differ from what is asked for. They are told, and not replaced: a run may be on them."""
    told = []
    for index, one in steps.nodes.items():
        wanted = [("type", one.type, kind), ("image", one.image, image), ("market", one.market, market)]
        told += [
            f"node {index} ({one.id}) has {what} {has}, not {want}"
            for what, has, want in wanted
            if want and has != want
        ]
    return told


def zone(nodes: t.Iterable[Instance]) -> str:
    """Where the fleet is. All nodes are in one zone: between zones, traffic is slow and costs."""
    zones = sorted({one.zone for one in nodes})
    if len(zones) > 1:
        raise FinetuneError(
            f"Nodes of the fleet are in several availability zones: {', '.join(zones)}.",
            where="tag llmops_fleet",
            change="terminate the nodes of one zone; the next apply makes them again beside the others",
        )
    return zones[0] if zones else ""
