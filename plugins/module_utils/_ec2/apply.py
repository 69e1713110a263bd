# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring a fleet to what was planned. Whatever breaks off leaves nothing that the next apply does not see by its tag."""

from __future__ import annotations

import pathlib
import time
import typing as t
from datetime import datetime, timezone

from .._errors import FinetuneError
from . import addresses, client, deadline, errors, fleet, host_keys, interfaces, naming, plan, request, survey
from .addresses import Change

_POLL = 3
_PAUSES = (1, 2, 4, 8, 15, 30)
"""Seconds between tries, for what EC2 does not take at once: a new profile, a new instance, too many requests."""


def present(
    aws: client.Aws, wanted: t.Mapping[str, t.Any], made: plan.Plan, facts: survey.Facts, dry: bool
) -> tuple[list[Change], list[fleet.Instance]]:
    changes: list[Change] = []
    _tag_all(aws, wanted, made.steps.nodes, changes, dry)
    _shrink(aws, made.steps.extra, changes, dry)
    _start(aws, made.steps.start, changes, dry)
    launched = _launch(aws, wanted, made, facts, changes, dry)
    nodes = made.steps.nodes
    if not dry:
        _tag_all(aws, wanted, launched, changes, dry, told=False)
        nodes = _wait(aws, wanted, {**made.steps.nodes, **launched})
    if wanted["public_ip"]:
        changes += addresses.keep(aws, wanted["name"], wanted["count"], nodes, made.efa, dry)
    if changes and not dry:
        return changes, [one for one in survey.instances(aws, wanted["name"]) if one.state == "running"]
    return changes, list(nodes.values())


def settled(aws: client.Aws, wanted: t.Mapping[str, t.Any], made: plan.Plan, facts: survey.Facts) -> bool:
    """Whether all nodes run as they should, and ssh knows them where it is asked about: `present` would do nothing."""
    nodes = made.steps.nodes
    if made.steps.missing or any(one.state != "running" for one in nodes.values()):
        return False
    named = {(naming.node(wanted["name"], index), one.id) for index, one in nodes.items()}
    if wanted["known_hosts"] and not host_keys.complete(_text(pathlib.Path(wanted["known_hosts"])), named):
        return False
    return not present(aws, wanted, made, facts, dry=True)[0]


def _text(path: pathlib.Path) -> str:
    """Nothing where it cannot be read: who is to write it tells why."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def absent(aws: client.Aws, wanted: t.Mapping[str, t.Any], dry: bool) -> list[Change]:
    """Instances, and what may be left of them. Requests for spot first: an open one would launch once more."""
    name = wanted["name"]
    tagged = client.filters(**{f"tag__{naming.FLEET}": name})
    requests = aws.pages("ec2", "describe_spot_instance_requests", "SpotInstanceRequests", Filters=tagged)
    open_ = [one["SpotInstanceRequestId"] for one in requests if one["State"] in ("open", "active")]
    live = [one for one in survey.instances(aws, name) if one.state in fleet.LIVE]
    live.sort(key=lambda one: -(one.node or 0))
    changes = [Change("cancel", one) for one in open_] + [Change("terminate", one.id) for one in live]
    if not dry:
        if open_:
            aws.call("ec2", "cancel_spot_instance_requests", SpotInstanceRequestIds=open_)
        if live:
            aws.call("ec2", "terminate_instances", InstanceIds=[one.id for one in live])
        _gone(aws, name, wanted["timeout"])
    changes += addresses.release(aws, name, dry)
    for volume in aws.pages(
        "ec2", "describe_volumes", "Volumes", Filters=[*tagged, *client.filters(status="available")]
    ):
        changes.append(Change("delete", volume["VolumeId"]))
        if not dry:
            aws.call("ec2", "delete_volume", VolumeId=volume["VolumeId"])
    return changes


def _gone(aws: client.Aws, name: str, timeout: float) -> None:
    end = time.monotonic() + timeout
    while True:
        left = [one.id for one in survey.instances(aws, name) if one.state != "terminated"]
        if not left:
            return
        if time.monotonic() > end:
            raise FinetuneError(
                f"Instances are not terminated after {timeout:g} s: {', '.join(left)}.",
                where="ec2_timeout",
                change="run teardown again; it goes on",
            )
        time.sleep(_POLL)


def _tag_all(
    aws: client.Aws,
    wanted: t.Mapping[str, t.Any],
    nodes: t.Mapping[int, fleet.Instance],
    changes: list[Change],
    dry: bool,
    told: bool = True,
) -> None:
    """Index and name where they lack; on all how many nodes there are, so that one that is gone is missed.

    The time of a node that is started is counted anew, as it may be over.
    """
    for index, one in nodes.items():
        should = {
            naming.INDEX: str(index),
            "Name": naming.node(wanted["name"], index),
            naming.NODES: str(wanted["count"]),
            naming.IDLE: str(wanted["idle_minutes"]),
            **{key: str(value) for key, value in wanted["tags"].items()},
        }
        again = one.state in fleet.OFF and one.tags.get(naming.EXPIRES) != deadline.NEVER
        if wanted["ttl_hours"] and (wanted["extend"] or again):
            should[naming.EXPIRES] = request.expires(datetime.now(timezone.utc), wanted["ttl_hours"])
        lacking = {key: value for key, value in should.items() if one.tags.get(key) != value}
        if lacking:
            if told:
                changes.append(Change("tag", f"node {index} ({one.id}): {', '.join(sorted(lacking))}"))
            if not dry:
                _tag(aws, one.id, lacking)


def _tag(aws: client.Aws, instance: str, tags: t.Mapping[str, str]) -> None:
    _patiently(
        lambda: aws.call("ec2", "create_tags", Resources=[instance], Tags=naming.listed(tags)),
        lambda error: error.code == "InvalidInstanceID.NotFound",
    )


def _shrink(aws: client.Aws, extra: t.Mapping[int, fleet.Instance], changes: list[Change], dry: bool) -> None:
    changes += [Change("terminate", f"node {index} ({one.id})") for index, one in extra.items()]
    if extra and not dry:
        aws.call("ec2", "terminate_instances", InstanceIds=[one.id for one in extra.values()])


def _start(aws: client.Aws, stopped: t.Sequence[fleet.Instance], changes: list[Change], dry: bool) -> None:
    changes += [Change("start", one.id) for one in stopped]
    if stopped and not dry:
        _patiently(
            lambda: aws.call("ec2", "start_instances", InstanceIds=[one.id for one in stopped]),
            lambda error: error.code == "IncorrectInstanceState",  # it is still stopping
        )


def _launch(
    aws: client.Aws,
    wanted: t.Mapping[str, t.Any],
    made: plan.Plan,
    facts: survey.Facts,
    changes: list[Change],
    dry: bool,
) -> dict[int, fleet.Instance]:
    missing = made.steps.missing
    if not missing:
        return {}
    changes += [Change("launch", f"node {index}") for index in missing]
    subnets = plan.candidates(made, facts.subnets)
    if not subnets:
        if dry:  # the network itself is still to be made
            return {}
        raise FinetuneError(
            "There is no subnet to launch in.", where="ec2_subnet_ids", change=f"name one in {' or '.join(made.zones)}"
        )
    spec = _spec(aws, wanted, made, facts)
    now = datetime.now(timezone.utc)
    seen = [one.id for one in facts.instances]
    tried: list[tuple[str, str, str]] = []
    for subnet in subnets[:1] if dry else subnets:
        asked = request.launch(spec, subnet.id, missing, seen, now.strftime("%Y-%m-%dT%H"))
        try:
            found = _run(aws, asked, dry)
        except client.Refused as error:
            if dry and _still_to_come(error, wanted, aws.region):
                return {}
            if error.kind != "capacity":
                raise
            tried.append((subnet.id, subnet.zone, error.told))
            continue
        instances = sorted((fleet.read(one) for one in found), key=lambda one: one.launched)
        return dict(zip(missing, instances))
    raise errors.no_capacity(tried, facts.kind.name)


def _still_to_come(error: client.Refused, wanted: t.Mapping[str, t.Any], region: str) -> bool:
    """In check mode, what the role makes before the launch is not there yet."""
    name = wanted["name"]
    return (
        (error.kind == "key" and wanted["key_name"] == naming.own_name(name))
        or (errors.profile_unknown(error.code, error.told) and wanted["instance_profile"] == naming.iam(name, region))
        or (error.code == "InvalidPlacementGroup.Unknown" and wanted["placement_group"] == "auto")
    )


def _run(aws: client.Aws, asked: dict[str, t.Any], dry: bool) -> list[t.Any]:
    """botocore would ask again for what AWS has not got, for minutes."""
    sent = {**asked, "DryRun": True} if dry else asked
    try:
        answer = _patiently(
            lambda: aws.call("ec2", "run_instances", tries=1, **sent),
            lambda error: error.kind == "throttled" or (not dry and errors.profile_unknown(error.code, error.told)),
        )
    except client.Refused as error:
        if error.code == "DryRunOperation":
            return []
        raise
    return list(answer["Instances"])


def _patiently(ask: t.Callable[[], t.Any], passes: t.Callable[[client.Refused], bool]) -> t.Any:
    for pause in _PAUSES:
        try:
            return ask()
        except client.Refused as error:
            if not passes(error):
                raise
            time.sleep(pause)
    return ask()


def _spec(aws: client.Aws, wanted: t.Mapping[str, t.Any], made: plan.Plan, facts: survey.Facts) -> request.Spec:
    """A replacement has the image of the nodes beside it: `latest` moves."""
    beside = next((one.image for one in made.steps.nodes.values()), "")
    image = survey.image(aws, facts.kind, wanted["image_id"] or beside, wanted["image_parameter"])
    expires = request.expires(datetime.now(timezone.utc), wanted["ttl_hours"])
    layout = interfaces.layout(facts.kind, made.efa, wanted["efa_layout"])
    return request.Spec(
        fleet=wanted["name"],
        type=facts.kind.name,
        image=image.id,
        root_device=image.root_device,
        root_gib=max(wanted["root_gib"], image.gib),
        root_iops=wanted["root_iops"],
        root_throughput=wanted["root_throughput"],
        kms_key=wanted["kms_key_id"],
        interfaces=tuple(layout),
        security_groups=tuple(wanted["security_group_ids"]),
        public_ip=bool(wanted["public_ip"]),
        key_name=wanted["key_name"],
        profile=wanted["instance_profile"],
        placement_group=made.placement_group,
        market=wanted["market"],
        reservation=wanted["capacity_reservation_id"],
        spot_max_usd=wanted["spot_max_usd"],
        on_shutdown=wanted["on_shutdown"],
        user_data=deadline.user_data(expires, wanted["idle_minutes"]),
        hops=wanted["metadata_hops"],
        tags=plan.tags_of(wanted, expires),
    )


def _wait(
    aws: client.Aws, wanted: t.Mapping[str, t.Any], nodes: t.Mapping[int, fleet.Instance]
) -> dict[int, fleet.Instance]:
    """All running, and each where and what it should be. What EC2 does not tell of yet is waited for."""
    end = time.monotonic() + wanted["timeout"]
    while True:
        now = {one.id: one for one in survey.instances(aws, wanted["name"])}
        seen = {index: now.get(one.id) for index, one in nodes.items()}
        dead = [
            f"node {index} ({one.id}): {one.reason or one.state}"
            for index, one in seen.items()
            if one and one.state in ("shutting-down", "terminated")
        ]
        if dead:
            raise FinetuneError(
                f"Instances ended while they started: {'; '.join(dead)}. The others run, and cost.",
                where="what EC2 says of them",
                change="apply again, which launches those anew, or run llmops.finetune.teardown",
            )
        running = {index: one for index, one in seen.items() if one and one.state == "running"}
        if len(running) == wanted["count"]:
            fleet.zone(running.values())
            return running
        if time.monotonic() > end:
            late = [
                f"node {index}: {one.state if one else 'unknown'}"
                for index, one in seen.items()
                if index not in running
            ]
            raise FinetuneError(
                f"Nodes do not run after {wanted['timeout']:g} s: {', '.join(late)}.",
                where="ec2_timeout",
                change="apply again, which goes on waiting, or raise it",
            )
        time.sleep(_POLL)
