# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Ray cluster on the hosts of a play: its head is the first of them; how each node of it is started."""

from __future__ import annotations

import ipaddress
import json
import shlex
import typing as t

from . import _addresses
from ._errors import FinetuneError

NAME = "ray"
"""Of the unit (llmops-ray) and of the folder below the root."""
PORT = 6379
"""Of the head, where none is asked for."""
TOKEN, ACTIVATE, LAUNCH, TEMPORARY = "token", "activate", "node.json", "tmp"
"""In that folder, which only the account may look into: the cluster's secret, what a shell reads before a job, what
the node was started with, and Ray's own place, which Ray opens to everybody."""
LONGEST_ROOT = 34
"""Ray's sockets are named `<root>/ray/tmp/session_<time>_<pid>/sockets/plasma_store`; Linux takes 107 bytes."""

Cluster = dict[str, t.Any]
"""host (the head), address, port, nodes: by host address, interface, user, root, folder, systemd."""


def plan(facts: t.Mapping[str, dict[str, t.Any]], asked: t.Mapping[str, str], wanted: int | str) -> Cluster:
    """The cluster of these hosts (facts by host, first the head). asked: ray_address by host; wanted: the port."""
    port = int(wanted) if str(wanted).isdecimal() else 0
    if not 1024 <= port <= 65535:
        raise FinetuneError(f"{wanted} is no port for Ray.", where="ray_port", change="choose one from 1024 to 65535")
    _refuse(facts)
    places = _addresses.choose({host: node["interfaces"] for host, node in facts.items()}, asked)
    for host, place in places.items():
        if ipaddress.ip_address(place.address).is_global and not asked.get(host):
            raise FinetuneError(
                f"{host} is known to the others by the public address {place.address}, and what Ray sends is not "
                "encrypted.",
                where=f"ray_address of {host}",
                change="give the hosts a private network and name its addresses; or name this one, if a firewall "
                "keeps others away from it",
            )
    head = next(iter(facts))
    nodes = {
        host: {
            "address": places[host].address,
            "interface": places[host].interface,
            "folder": f"{node['root'].rstrip('/')}/{NAME}",
            **{key: node[key] for key in ("user", "root", "systemd")},
        }
        for host, node in facts.items()
    }
    return {"host": head, "address": places[head].address, "port": port, "nodes": nodes}


def _refuse(facts: t.Mapping[str, dict[str, t.Any]]) -> None:
    unknown = [host for host, node in facts.items() if not node]
    if unknown:
        raise FinetuneError(
            f"Nothing is known of {', '.join(unknown)}.",
            where="inventory",
            change="see above why, or leave it out with --limit",
        )
    first, *others = facts.items()
    for host, node in others:
        if node["root"] != first[1]["root"]:
            raise FinetuneError(
                f"The root of {host} is {node['root']}, that of {first[0]} {first[1]['root']}: Ray uses one path.",
                where="ray_root",
                change="set the same full path for all hosts",
            )
    if len(first[1]["root"].rstrip("/").encode()) > LONGEST_ROOT:
        raise FinetuneError(
            f"{first[1]['root']} is too long: the names of Ray's sockets below it would not fit.",
            where="ray_root",
            change=f"choose a path of at most {LONGEST_ROOT} bytes",
        )


def node(cluster: Cluster, host: str, environment: str, joins: bool) -> dict[str, t.Any]:
    """What one host needs to be a node. environment: the folder of the locked environment; joins: whether a head is
    there."""
    here = cluster["nodes"][host]
    head = host == cluster["host"]
    if not head and not joins:
        raise FinetuneError(
            f"{cluster['host']}, the first host, is to be the head, and did not get so far.",
            where="inventory",
            change="see above why, or leave it out with --limit",
        )
    environ = variables(cluster, here, environment)
    command = [f"{environment}/bin/python", "-m", "ray.scripts.scripts", *start(cluster, here, head)]
    return {
        **here,
        "head": head,
        "port": cluster["port"],
        "command": command,
        "environment": environ,
        "files": {
            ACTIVATE: activate(cluster, environ),
            LAUNCH: json.dumps({"command": command, "environment": environ}, indent=1, sort_keys=True) + "\n",
        },
    }


def start(cluster: Cluster, here: t.Mapping[str, t.Any], head: bool) -> list[str]:
    """The arguments of `ray`."""
    words = ["start", "--block", "--disable-usage-stats", f"--node-ip-address={here['address']}"]
    if head:
        # LLaMA-Factory asks the dashboard's service which node is the head
        return [
            *words,
            "--head",
            f"--port={cluster['port']}",
            "--include-dashboard=true",
            "--dashboard-host=127.0.0.1",
            f"--temp-dir={here['folder']}/{TEMPORARY}",
        ]
    return [*words, f"--address={cluster['address']}:{cluster['port']}"]


def variables(cluster: Cluster, here: t.Mapping[str, t.Any], environment: str) -> dict[str, str]:
    """Environment variables of the node and of all that runs on it."""
    return {
        "PATH": f"{environment}/bin:/usr/local/bin:/usr/bin:/bin",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": f"{here['folder']}/{TOKEN}",
        "RAY_USAGE_STATS_ENABLED": "0",
        **_addresses.variables(_addresses.Address(here["address"], here["interface"])),
    }


def activate(cluster: Cluster, environ: t.Mapping[str, str]) -> str:
    """What a shell reads before it starts a job: `. <root>/ray/activate`."""
    settings = {**environ, "RAY_ADDRESS": f"{cluster['address']}:{cluster['port']}"}
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in settings.items())


def sealed(token: str, seal: str) -> str:
    """The token (hex) as it may be seen on its way to the controller, which alone knows the seal; and back again."""
    return f"{int(token, 16) ^ int(seal, 16):064x}" if token else ""


def told(cluster: Cluster, answer: t.Mapping[str, t.Any]) -> str:
    """What the proof saw, for people; raises where it is not what it must be."""
    hosts = {node["address"]: host for host, node in cluster["nodes"].items()}
    here = cluster["nodes"][cluster["host"]]
    if answer.get("missing"):
        missing = ", ".join(hosts[address] for address in answer["missing"])
        raise FinetuneError(
            f"Not in the cluster: {missing}.",
            where=f"{cluster['host']}, {answer['seconds']:.0f} s after the last node was started",
            change=f"see {here['folder']}/node.log there, and let the hosts reach each other on all ports",
        )
    workers = answer["workers"]
    wanted = len(workers) * (len(workers) + 1) / 2
    wrong = [one for one in workers if (one["least"], one["most"]) != (wanted, wanted)]
    if wrong or {one["address"] for one in workers} != set(hosts):
        raise FinetuneError(
            f"The sum over {len(workers)} workers is not {wanted:g} on every node: {json.dumps(workers)}.",
            where=f"Ray cluster at {cluster['address']}:{cluster['port']}",
            change=f"see {here['folder']}/node.log and {TEMPORARY}/session_latest/logs beside it, on each node",
        )
    places = ", ".join(hosts[one["address"]] for one in workers)
    return (
        f"Ray at {cluster['address']}:{cluster['port']}: {len(hosts)} node{'s' * (len(hosts) > 1)}, "
        f"{answer['cpus']:g} CPUs, {answer['gpus']:g} GPUs. Gloo all-reduce of {len(workers)} workers ({places}): "
        f"the sum is {wanted:g} on each, as it must be. A job begins with: . {here['folder']}/{ACTIVATE}"
    )
