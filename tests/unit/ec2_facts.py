# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts of EC2 that are described once, for the tables."""

from __future__ import annotations

import base64
import hashlib
import typing as t

from ansible_collections.llmops.finetune.plugins.module_utils._ec2 import fleet, naming, price, survey, types
from moto.ec2.models.instance_types import INSTANCE_TYPES


def kind(name: str) -> types.GpuType:
    """As DescribeInstanceTypes tells of it; moto has a copy of that."""
    return types.read(INSTANCE_TYPES[name])


def node(index: int | None, state: str = "running", zone: str = "a", name: str = "", at: int = 0) -> fleet.Instance:
    tags = {
        naming.FLEET: "demo",
        **({naming.INDEX: str(index)} if index is not None else {}),
        **({"Name": name} if name else {}),
    }
    identity = f"i-{index}{state[0]}{name}{9 - at}"  # EC2 gives ids in no order
    return fleet.Instance(
        identity, state, "g5.xlarge", "ami-1", zone, ("2026", at), tags, "", "", "on-demand", "eni-1", 1, ""
    )


def facts(**changes: t.Any) -> survey.Facts:
    known = survey.Facts(
        account="1",
        partition="aws",
        kind=kind("p5.48xlarge"),
        zones=["a", "b", "c", "d"],
        offered=["b", "d"],
        instances=[],
        quota=768.0,
        used=0,
        price=price.Price(55.04, "AWS, list"),
        subnets=[],
        key="",
        route_table="",
        bucket=None,
    )
    return known._replace(**changes)


def console(*keys: str, prefix: str = "[   10.2] cloud-init[812]: ") -> str:
    lines = ["-----BEGIN SSH HOST KEY KEYS-----", *keys, "-----END SSH HOST KEY KEYS-----", "login:"]
    return "".join(f"{prefix}{line}\r\n" for line in lines)


def key(seed: str) -> str:
    blob = b"\0\0\0\x0bssh-ed25519\0\0\0 " + hashlib.sha256(seed.encode()).digest()
    return f"ssh-ed25519 {base64.b64encode(blob).decode()}"
