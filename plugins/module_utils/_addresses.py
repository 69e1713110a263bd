# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which address and interface each host uses towards the others.

NCCL and gloo pick an interface by themselves, and often the wrong one: a container bridge, a management network. Here
it is chosen once for all hosts, and exported.
"""

from __future__ import annotations

import ipaddress
import re
import typing as t

from ._errors import FinetuneError

Interface = dict[str, t.Any]
"""name, address, prefix (bits of the network), speed (Mbit/s, 0 where unknown), default (has the default route)."""

_INTERNAL = re.compile(r"lo|docker|br-|veth|virbr|cni|flannel|cali|podman|kube|dummy|tailscale|wg|tun|tap")
"""Names of interfaces that lead to no other host, or by a detour."""


class Address(t.NamedTuple):
    address: str
    interface: str
    """Empty where the address is not one of the host's own, as behind a translating gateway."""
    speed: int = 0
    """Mbit/s, 0 where unknown."""


LOOPBACK = Address("127.0.0.1", "")
"""Where the ranks of a single node meet."""


def variables(place: Address) -> dict[str, str]:
    """What tells NCCL and gloo which interface to use."""
    names = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
    return dict.fromkeys(names, place.interface) if place.interface else {}


def meet(hosts: t.Mapping[str, t.Sequence[Interface]], asked: t.Mapping[str, str]) -> dict[str, Address]:
    """Where the ranks of each host find the others'."""
    return choose(hosts, asked) if len(hosts) > 1 else dict.fromkeys(hosts, LOOPBACK)


def choose(hosts: t.Mapping[str, t.Sequence[Interface]], asked: t.Mapping[str, str]) -> dict[str, Address]:
    """An address for every host, in rank order. asked: train_address by host.

    Of the networks that all hosts are on, the fastest; else each host's default route. What train_address says counts
    where the host has that address, and for the first host in any case.
    """
    candidates = {host: [one for one in found if not _INTERNAL.match(one["name"])] for host, found in hosts.items()}
    shared = _shared(candidates)
    chosen = {}
    for rank, (host, found) in enumerate(candidates.items()):
        wanted = asked.get(host, "")
        own = next((one for one in hosts[host] if _has(one, wanted)), None)
        if own or (wanted and rank == 0):
            chosen[host] = Address(wanted, own["name"], own["speed"]) if own else Address(wanted, "")
            continue
        usable = [one for one in found if _network(one) == shared] or sorted(found, key=lambda one: not one["default"])
        if not usable:
            raise FinetuneError(
                f"{host} has no address that other hosts could reach.",
                where=f"train_address of {host}; its interfaces: {', '.join(one['name'] for one in hosts[host])}",
                change="set train_address to its address in the network of the trainers",
            )
        chosen[host] = Address(usable[0]["address"], usable[0]["name"], usable[0]["speed"])
    return chosen


def _has(one: Interface, address: str) -> bool:
    """Whether an interface has the address. Loopback has all of its network: so nodes may share a machine."""
    return bool(one["address"] == address or (one["name"] == "lo" and address.startswith("127.")))


def _shared(candidates: t.Mapping[str, t.Sequence[Interface]]) -> str:
    """The fastest network that all hosts are on; with none, the empty text."""
    by_host = [{_network(one): one for one in reversed(found)} for found in candidates.values()]
    networks = [network for network in by_host[0] if all(network in found for found in by_host)]

    def worth(network: str) -> tuple[float, int, str]:
        ends = [found[network] for found in by_host]
        return min(float(one["speed"]) for one in ends), sum(bool(one["default"]) for one in ends), network

    return max(networks, key=worth, default="")


def _network(one: Interface) -> str:
    return str(ipaddress.ip_interface(f"{one['address']}/{one['prefix']}").network)
