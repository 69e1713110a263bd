# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the user and the account allow: number of nodes, price, quota, who may log in. Pure."""

from __future__ import annotations

import ipaddress
import typing as t

from .._errors import FinetuneError
from . import naming
from .types import MARKETS, GpuType

_WIDEST = {4: 8, 6: 32}
_QUOTAS = {
    ("on-demand", "p"): "L-417A185B",
    ("on-demand", "g"): "L-DB2E81BA",
    ("spot", "g"): "L-3819A6DF",
    ("spot", "p2 p3 p3dn p4d p4de"): "L-7212CCBC",
    ("spot", "p5 p5e p5en"): "L-C4BD4855",
}
"""vCPUs that may run at once. Of spot P6, sources name no code they agree on."""


def networks(given: t.Iterable[str]) -> list[str]:
    """Who may log in: named networks. All of the world, at once or in two halves, is refused."""
    found = []
    for text in given:
        try:
            network = ipaddress.ip_network(str(text).strip())
        except ValueError as error:
            raise FinetuneError(
                f"{text!r} is no network: {error}.", where="ec2_ssh_cidrs", change="such as 203.0.113.7/32"
            ) from None
        if network.prefixlen < _WIDEST[network.version]:
            raise FinetuneError(
                f"Port 22 would be open to {network}.",
                where="ec2_ssh_cidrs",
                change="name the networks that log in, such as 203.0.113.7/32",
            )
        found.append(str(network))
    return found


def count(nodes: int, most: int) -> None:
    if nodes < 1:
        raise FinetuneError(
            f"{nodes} nodes are asked for.",
            where="ec2_count",
            change="at least 1; llmops.finetune.teardown ends a fleet",
        )
    if nodes > most:
        raise FinetuneError(
            f"{nodes} nodes are asked for, and {most} allowed.", where="ec2_count", change="raise ec2_max_nodes"
        )


def market(kind: GpuType, asked: str, reservation: str, spot_max_usd: float) -> None:
    offered = [name for name in MARKETS if name in kind.markets]
    if asked not in kind.markets:
        raise FinetuneError(
            f"{kind.name} is not sold as {asked}.", where="ec2_market", change=f"one of {', '.join(offered)}"
        )
    if asked == "capacity-block" and not reservation:
        raise FinetuneError(
            "A capacity block is used by its id; this role buys none, as they are paid at once and not given back.",
            where="ec2_capacity_reservation_id",
            change="buy one, and name it: cr-…",
        )
    if asked == "spot" and reservation:
        raise FinetuneError(
            "Spot instances do not run in a reservation.",
            where="ec2_capacity_reservation_id",
            change="leave it out, or choose another ec2_market",
        )
    if spot_max_usd and asked != "spot":
        raise FinetuneError(
            f"ec2_spot_max_usd is for spot, and ec2_market is {asked}.", where="ec2_spot_max_usd", change="leave it out"
        )


def bucket(name: str, tags: t.Mapping[str, str] | None, fleet: str) -> None:
    """What is made for a fleet may go with it, so nobody else's is taken for that. tags: None where it is not there."""
    owner = fleet if tags is None else tags.get(naming.FLEET, "")
    if owner != fleet:
        raise FinetuneError(
            f"Bucket {name} is there already, {f'of fleet {owner}' if owner else 'and was not made for this fleet'}.",
            where="ec2_bucket_create",
            change="say false to use it as it is, or name another ec2_bucket",
        )


def end(market_: str, on_shutdown: str, idle_minutes: int) -> None:
    if market_ == "spot" and on_shutdown == "stop":
        raise FinetuneError(
            "Spot nodes are one-time, and terminate when they are shut down.",
            where="ec2_on_shutdown",
            change="say terminate, or choose another ec2_market",
        )
    if idle_minutes < 0:
        raise FinetuneError(f"{idle_minutes} is no number of minutes.", where="ec2_idle_minutes", change="0 is never")


def quota_code(kind: GpuType, market_: str) -> str:
    for (sold, families), code in _QUOTAS.items():
        if sold == market_ and (kind.family in families.split() or families == kind.family[0]):
            return code
    return ""


def same_quota(family: str, kind: GpuType, market_: str) -> bool:
    """Whether instances of a family count for the quota of a type."""
    for (sold, families), code in _QUOTAS.items():
        if code == quota_code(kind, market_) and sold == market_:
            return family in families.split() or family[:1] == families
    return False


def quota(kind: GpuType, market_: str, allowed: float | None, used: int, more: int) -> str:
    """A notice where it cannot be known; refused where the launch would be."""
    code = quota_code(kind, market_)
    needed = more * kind.vcpus
    if not more or market_ == "capacity-block":
        return ""
    if allowed is None:
        return f"the quota for {kind.family} ({market_}) is unknown; {needed} vCPUs are needed"
    if used + needed > allowed:
        raise FinetuneError(
            f"The account may run {allowed:g} vCPUs of this family ({market_}) at once, {used} are in use, "
            f"and {more} × {kind.name} need {needed}.",
            where=f"Service Quotas, EC2, {code}",
            change="ask for a raise, or take fewer or smaller nodes, another ec2_market or ec2_region",
        )
    return ""
