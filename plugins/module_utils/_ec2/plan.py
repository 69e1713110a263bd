# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an apply would do and cost, before the first request that costs. Pure; what is refused is refused here."""

from __future__ import annotations

import ipaddress
import typing as t

from .._errors import FinetuneError
from . import fleet, interfaces, limits, naming, price, types
from .survey import Facts, Subnet

_LARGEST, _SMALLEST = 16, 28
"""Bits of the networks and subnets that EC2 has."""
_SLOTS = 3
"""Bits: a subnet for each of up to 8 zones, at its place among all zones of the region, so that it never moves."""


class Plan(t.NamedTuple):
    steps: fleet.Steps
    hourly: float
    total: float
    """Until the nodes end themselves; 0 where they do not."""
    efa: bool
    placement_group: str
    zones: list[str]
    """To try, in this order."""
    subnets: list[dict[str, str]]
    """For a network of the fleet's own."""
    vpc: str
    """Of the subnets that are given."""
    route_table: str
    """Of a network of the fleet's own; empty where it is not there."""
    partition: str
    ingress: list[dict[str, t.Any]]
    egress: list[dict[str, t.Any]]
    """Rules of the fleet's security group, as amazon.aws has them."""
    import_key: bool
    """Whether the fleet's key pair is not there, or another. Its module would send a trial key each time to know."""
    drift: list[str]
    lines: list[str]

    def as_dict(self) -> dict[str, t.Any]:
        told = self._asdict()
        told["steps"] = {
            "keep": sorted(set(self.steps.nodes) - set(self.steps.adopt)),
            "adopt": sorted(self.steps.adopt),
            "start": [one.id for one in self.steps.start],
            "launch": self.steps.missing,
            "terminate": list(self.steps.extra),
        }
        return told


def make(wanted: t.Mapping[str, t.Any], facts: Facts, region: str) -> Plan:
    logins = limits.networks(wanted["ssh_cidrs"])
    limits.count(wanted["count"], wanted["max_nodes"])
    limits.bucket(wanted["bucket"], facts.bucket, wanted["name"])
    limits.end(wanted["market"], wanted["on_shutdown"], wanted["idle_minutes"])
    steps = fleet.reconcile(facts.instances, wanted["name"], wanted["count"], wanted["allow_scale_down"])
    zones = _zones(wanted, facts, fleet.zone(steps.nodes.values()))
    efa = interfaces.wanted(facts.kind, wanted["efa"], wanted["count"])
    hourly = price.check(facts.price, wanted["count"], wanted["max_hourly_usd"])
    notice = limits.quota(facts.kind, wanted["market"], facts.quota, facts.used, len(steps.missing))
    group = ""
    if wanted["placement_group"] == "auto":
        grouped = wanted["count"] > 1 and facts.kind.cluster and wanted["market"] != "capacity-block"
        group = wanted["name"] if grouped else ""
    elif wanted["placement_group"] != "none":
        group = wanted["placement_group"]
    plan = Plan(
        steps=steps,
        hourly=round(hourly, 4),
        total=round(hourly * wanted["ttl_hours"], 2),
        efa=efa,
        placement_group=group,
        zones=zones,
        subnets=[] if facts.subnets else _subnets(wanted["cidr"], facts.zones, zones),
        vpc=facts.subnets[0].vpc if facts.subnets else "",
        route_table=facts.route_table,
        partition=facts.partition,
        ingress=[*_logins(logins), _each_other(wanted["name"])],
        egress=[{"proto": "all", "cidr_ip": "0.0.0.0/0"}, _each_other(wanted["name"])],
        import_key=bool(wanted["public_key"]) and _blob(facts.key) != _blob(wanted["public_key"]),
        drift=fleet.drift(steps, facts.kind.name, wanted["image_id"], wanted["market"]),
        lines=[],
    )
    return plan._replace(lines=_lines(plan, wanted, facts, region, notice))


def _logins(networks: t.Iterable[str]) -> list[dict[str, t.Any]]:
    return [
        {"proto": "tcp", "ports": ["22"], "cidr_ipv6" if ":" in one else "cidr_ip": one, "rule_desc": "login"}
        for one in networks
    ]


def _each_other(fleet_: str) -> dict[str, t.Any]:
    """All protocols: NCCL takes ports of the kernel's choice, and EFA, which wants this both ways, has none."""
    return {"proto": "all", "group_name": naming.own_name(fleet_)}


def _blob(key: str) -> str:
    """Without type and comment."""
    return key.split()[1] if len(key.split()) > 1 else key


def _zones(wanted: t.Mapping[str, t.Any], facts: Facts, current: str) -> list[str]:
    """Where the type is offered, as the user orders them; where nodes are already, nowhere else."""
    asked: list[str] = list(dict.fromkeys(subnet.zone for subnet in facts.subnets)) or wanted["zones"] or facts.offered
    fit = [zone for zone in asked if zone in facts.offered]
    if not fit:
        raise FinetuneError(
            f"{facts.kind.name} is not offered in {', '.join(asked) or 'this region'}.",
            where="ec2_zones, ec2_subnet_ids and ec2_region",
            change=f"it is in {', '.join(facts.offered)}" if facts.offered else "take another region or type",
        )
    if not current:
        return fit
    if current not in asked:
        raise FinetuneError(
            f"The fleet is in {current}, and only {', '.join(asked)} may be used.",
            where="ec2_zones, ec2_subnet_ids",
            change=f"name {current} too",
        )
    return [current]


def _subnets(cidr: str, of_region: t.Sequence[str], wanted: t.Sequence[str]) -> list[dict[str, str]]:
    try:
        network = ipaddress.ip_network(cidr)
    except ValueError as error:
        raise FinetuneError(
            f"{cidr!r} is no network: {error}.", where="ec2_cidr", change="such as 10.64.0.0/16"
        ) from None
    if network.version != 4 or not _LARGEST <= network.prefixlen <= _SMALLEST:
        raise FinetuneError(
            f"{cidr} is no size of a network on EC2.", where="ec2_cidr", change="take an IPv4 network from /16 to /28"
        )
    if network.prefixlen > _SMALLEST - _SLOTS:
        if len(wanted) > 1:
            raise FinetuneError(
                f"{cidr} is too small for subnets in {len(wanted)} zones.",
                where="ec2_cidr",
                change="take a /25 or larger, or name one zone in ec2_zones",
            )
        return [{"zone": zone, "cidr": str(network)} for zone in wanted]
    parts = list(network.subnets(prefixlen_diff=_SLOTS))
    place = {zone: parts[number] for number, zone in enumerate(of_region[: len(parts)])}
    return [{"zone": zone, "cidr": str(place[zone])} for zone in wanted if zone in place]


def candidates(plan: Plan, subnets: t.Iterable[Subnet]) -> list[Subnet]:
    """Subnets to launch in, in the order of the zones."""
    fit = [subnet for subnet in subnets if subnet.zone in plan.zones]
    return sorted(fit, key=lambda subnet: plan.zones.index(subnet.zone))


def _lines(plan: Plan, wanted: t.Mapping[str, t.Any], facts: Facts, region: str, notice: str) -> list[str]:
    count, ttl = wanted["count"], wanted["ttl_hours"]
    until = f", {plan.total:.2f} in {ttl:g} h" if ttl else ""
    group = f", placement group {plan.placement_group}" if plan.placement_group else ""
    each = f"{facts.price.usd:.3f} a node: {facts.price.source}"
    lines = [
        f"fleet   {wanted['name']}: {count} × {types.described(facts.kind)}",
        f"where   account {facts.account}, {region}, {' or '.join(plan.zones)}{group}",
        f"cost    {plan.hourly:.2f} USD an hour{until} ({wanted['market']}, {each})",
        "        without disks, public addresses and traffic",
        f"ends    {_ends(ttl, wanted['idle_minutes'], wanted['on_shutdown'])}",
        f"nodes   {_doing(plan.steps)}",
    ]
    if plan.efa:
        lines.append(f"network EFA on {len(interfaces.layout(facts.kind, True)) - 1} of the network's cards")
    return lines + [f"notice  {text}" for text in [*plan.drift, notice] if text]


def _ends(ttl: float, idle: int, on_shutdown: str) -> str:
    whens = [f"{ttl:g} h after its launch" if ttl else "", f"{idle} min after its last run" if idle else ""]
    told = " or ".join(filter(None, whens))
    if not told:
        return "nodes run until llmops.finetune.teardown"
    return f"each node {'stops' if on_shutdown == 'stop' else 'ends'} itself {told}"


def _doing(steps: fleet.Steps) -> str:
    doing = [
        ("launch", steps.missing),
        ("adopt", sorted(steps.adopt)),
        ("start", sorted(index for index, one in steps.nodes.items() if one in steps.start)),
        ("terminate", list(steps.extra)),
        ("keep", sorted(set(steps.nodes) - set(steps.adopt))),
    ]
    return ", ".join(f"{verb} {' '.join(map(str, those))}" for verb, those in doing if those)


def tags_of(wanted: t.Mapping[str, t.Any], expires: str) -> dict[str, str]:
    """What an instance is tagged with at its launch, before it has an index."""
    ends = {naming.EXPIRES: expires} if expires else {}
    return {**naming.own(wanted["name"], wanted["tags"]), **ends}
