# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the nodes of a run fit together: the same of everything that must be the same, and all within reach.

Pure: from what staging recorded and what every node found when it tried the others.
"""

from __future__ import annotations

import typing as t

from ._errors import FinetuneError

CLOCK_SECONDS = 2.0

Proof = dict[str, t.Any]
"""What a node has staged, by field; values that must be the same on all nodes."""


class Row(t.NamedTuple):
    host: str
    field: str
    what: str
    change: str = ""
    """Where it is not that of the field."""


REMEDY = {
    "environment": "apply again without train_resolve, or run the environment playbook on that host",
    "python": "give all hosts the same Python (uv_env_python)",
    "model": "copy the same model to all hosts",
    "account": "give the account (train_user) the same number on all hosts: storage of a network knows it by that",
    "output": "mount the same storage there on all hosts, or leave train_output_root empty",
    "disk": "free space under train_root or train_output_root, or lower save_total_limit",
    "clock": "have the hosts keep time (chrony, systemd-timesyncd)",
    "reach": "let the hosts of the cluster talk to each other on all TCP ports; train_address picks another network",
}


def rows(
    proofs: t.Mapping[str, Proof],
    findings: t.Mapping[str, t.Sequence[dict[str, t.Any]]],
    unseen: t.Mapping[str, t.Sequence[str]] | None = None,
) -> list[Row]:
    """What stands in the way, host by host. proofs and findings: by host, in rank order; unseen: whose marks a host
    does not find in the folder that all share."""
    found = [*_differences(proofs), *_apart(list(proofs), unseen or {}), *_full_disks(proofs)]
    found += [
        Row(host, "reach", f"→ {one['host']}: {one['why']}")
        for host, all_ in findings.items()
        for one in all_
        if one["why"]
    ]
    return [*found, *_clocks(findings)]


def between(found: t.Mapping[str, t.Mapping[str, t.Any]]) -> list[Row]:
    """The same from what each host registered of the preflight, one of them with the findings of all."""
    proofs, unseen = ({host: one.get(what, ()) for host, one in found.items()} for what in ("proof", "unseen"))
    seen = {host: all_ for one in found.values() for host, all_ in one.get("findings", {}).items()}
    return rows(proofs, {host: seen.get(host, ()) for host in found}, unseen)


def _differences(proofs: t.Mapping[str, Proof]) -> t.Iterator[Row]:
    """Fields whose value is not the same everywhere; most hosts are taken to be right, among equals rank 0."""
    fields = dict.fromkeys(field for proof in proofs.values() for field in proof if not field.startswith("disk_"))
    for field in fields:
        values = {host: str(proof.get(field, "")) for host, proof in proofs.items()}
        usual = max(values.values(), key=list(values.values()).count)
        for host, value in values.items():
            if value != usual:
                yield Row(host, field, f"{_short(value) or 'nothing'}, the others {_short(usual) or 'nothing'}")


def _short(value: str) -> str:
    return value[:24]


def _apart(hosts: t.Sequence[str], unseen: t.Mapping[str, t.Sequence[str]]) -> t.Iterator[Row]:
    """Who has another folder than the host that has it in common with most; among equals that of the lowest rank."""
    apart = {
        host: [other for other in hosts if other in unseen.get(host, ()) or host in unseen.get(other, ())]
        for host in hosts
    }
    middle = min(hosts, key=lambda host: len(apart[host]))
    for host in apart[middle]:
        yield Row(host, "output", f"is not the folder that {middle} has")


def _full_disks(proofs: t.Mapping[str, Proof]) -> t.Iterator[Row]:
    for host, proof in proofs.items():
        free, needed = (int(proof.get(field, 0)) for field in ("disk_free", "disk_needed"))
        if free < needed:
            yield Row(host, "disk", f"{free / 1e9:.1f} GB free, checkpoints need {needed / 1e9:.1f} GB")


def _clocks(findings: t.Mapping[str, t.Sequence[dict[str, t.Any]]]) -> t.Iterator[Row]:
    """A clock is off where most hosts, itself among them, say so; of two hosts the second one is named."""
    hosts = list(findings)
    for host in hosts[1:] if len(hosts) == 2 else hosts:
        views = [one for other in hosts for one in findings[other] if one["host"] == host and not one["why"]]
        seen = sorted([0.0, *(float(one["clock"]) for one in views)], key=abs)
        middle = seen[len(seen) // 2]
        if abs(middle) > CLOCK_SECONDS:
            yield Row(host, "clock", f"{abs(middle):.1f} s {'ahead' if middle > 0 else 'behind'}")


def refusal(found: t.Sequence[Row]) -> FinetuneError:
    """The rows as a table, each remedy once."""
    width, fields = max(len(row.host) for row in found), max(len(row.field) for row in found)
    lines = [f"{row.host:<{width}}  {row.field:<{fields}}  {row.what}" for row in found]
    changes = dict.fromkeys(
        row.change or REMEDY.get(row.field.partition(" ")[0], "make it the same on all hosts") for row in found
    )
    return FinetuneError(
        "The nodes do not fit together; nothing was started.",
        where="\n          ".join(lines),
        change="; ".join(changes),
    )
