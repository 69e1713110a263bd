# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Public addresses of nodes with several network cards, which get none at their launch: each is given one that lasts.

An address belongs to an index, so a node that comes back has the address that it had.
"""

from __future__ import annotations

import typing as t

from . import client, fleet, naming


class Change(t.NamedTuple):
    action: str
    path: str


def keep(
    aws: client.Aws, name: str, count: int, nodes: t.Mapping[int, fleet.Instance], several: bool, dry: bool
) -> list[Change]:
    """One for each node with several cards, as those to come have; those beyond are released."""
    there = {naming.tags(one.get("Tags")).get(naming.INDEX, ""): one for one in _all(aws, name)}
    changes: list[Change] = []
    for index in range(count):
        node = nodes.get(index)
        if not (node.interfaces > 1 if node else several):
            continue
        address = there.pop(str(index), None)
        if address and node and address.get("NetworkInterfaceId") == node.interface:
            continue
        changes.append(Change("address", f"node {index}"))
        if not dry and node:
            given = address or _allocate(aws, name, index)
            asked = {"AllocationId": given["AllocationId"], "NetworkInterfaceId": node.interface}
            aws.call("ec2", "associate_address", **asked, AllowReassociation=True)
    return changes + _release(aws, list(there.values()), dry)


def release(aws: client.Aws, name: str, dry: bool) -> list[Change]:
    return _release(aws, _all(aws, name), dry)


def _all(aws: client.Aws, name: str) -> list[dict[str, t.Any]]:
    wanted = client.filters(**{f"tag__{naming.FLEET}": name})
    return list(aws.call("ec2", "describe_addresses", Filters=wanted)["Addresses"])


def _allocate(aws: client.Aws, name: str, index: int) -> dict[str, t.Any]:
    """Tagged as it is allocated: one without a tag would cost and belong to nobody."""
    tags = {naming.FLEET: name, naming.INDEX: str(index), "Name": naming.node(name, index)}
    told = [{"ResourceType": "elastic-ip", "Tags": naming.listed(tags)}]
    return aws.call("ec2", "allocate_address", Domain="vpc", TagSpecifications=told)


def _release(aws: client.Aws, addresses: t.Sequence[t.Mapping[str, t.Any]], dry: bool) -> list[Change]:
    for one in addresses:
        if not dry:
            if one.get("AssociationId"):
                aws.call("ec2", "disassociate_address", AssociationId=one["AssociationId"])
            aws.call("ec2", "release_address", AllocationId=one["AllocationId"])
    return [Change("release", str(one["AllocationId"])) for one in addresses]
