# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An account that modules are tried on in this process, with moto behind a real endpoint."""

from __future__ import annotations

import typing as t

import boto3
import botocore.loaders
import botocore.session
import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.llmops.finetune.plugins.module_utils._ec2 import apply, inputs
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.modules import ec2_gpu_fleet

from ..aws import Endpoint, Fault, Request

REGION = "us-east-1"
GONE = ("terminated", "shutting-down")
LOADER = botocore.loaders.create_loader()
"""Descriptions of services, which each session would read anew: most of the time that a call takes."""


class Account:
    """An account with a network, asked by the module and, to see what is true, by boto3."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.ec2 = boto3.client("ec2", region_name=REGION)
        self.vpc = vpc = self.ec2.create_vpc(CidrBlock="10.64.0.0/16")["Vpc"]["VpcId"]
        self.zones = [f"{REGION}{letter}" for letter in "abc"]
        self.subnets = [
            self.ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.64.{number}.0/24", AvailabilityZone=zone)["Subnet"][
                "SubnetId"
            ]
            for number, zone in enumerate(self.zones)
        ]
        self.group = self.ec2.create_security_group(GroupName="nodes", Description="x", VpcId=vpc)["GroupId"]
        endpoint.groups["demo"] = {"strategy": "cluster", "llmops_fleet": "demo"}
        endpoint.requests.clear()

    def apply(self, *, check: bool = False, **given: t.Any) -> dict[str, t.Any]:
        asked = {
            "name": "demo",
            "region": REGION,
            "instance_type": "g5.xlarge",
            "count": 3,
            "subnet_ids": self.subnets,
            "security_group_ids": [self.group],
            "max_hourly_usd": 100,
            "timeout": 5,
            **given,
        }
        checked = ArgumentSpecValidator(inputs.OPTIONS).validate(asked)
        assert not checked.error_messages, checked.error_messages
        result = ec2_gpu_fleet.run(checked.validated_parameters, check)
        return {**result, "changes": [f"{change.action} {change.path}" for change in result["changes"]]}

    def refused(self, **given: t.Any) -> str:
        with pytest.raises(FinetuneError) as refusal:
            self.apply(**given)
        text = str(refusal.value)
        assert "change:" in text, "every refusal says what to change"
        return text

    def instances(self) -> list[dict[str, t.Any]]:
        found = [one for some in self.ec2.describe_instances()["Reservations"] for one in some["Instances"]]
        return [one for one in found if one["State"]["Name"] not in GONE]

    @property
    def nodes(self) -> dict[str, str]:
        """Instance by index."""
        tags = {
            one["InstanceId"]: {tag["Key"]: tag["Value"] for tag in one.get("Tags", [])} for one in self.instances()
        }
        return {tag["llmops_index"]: identity for identity, tag in sorted(tags.items(), key=lambda one: one[1]["Name"])}


def endpoint() -> t.Iterator[Endpoint]:
    served = Endpoint()
    served.start()
    yield served
    served.stop()


def account(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> t.Iterator[Account]:
    """Emptied afterwards; what takes seconds on AWS takes parts of one."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in endpoint.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(botocore.session, "create_loader", lambda _path=None: LOADER)
    monkeypatch.setattr(apply, "_POLL", 0.05)
    monkeypatch.setattr(apply, "_PAUSES", (0.01, 0.01))
    yield Account(endpoint)
    endpoint.reset()


def no_capacity(*zones: str) -> Fault:
    def fault(request: Request) -> tuple[str, str] | None:
        if request.action == "RunInstances" and request.params.get("DryRun") != "true":
            subnet = request.params["NetworkInterface.1.SubnetId"]
            if subnet in zones:
                return "InsufficientInstanceCapacity", f"We currently do not have sufficient capacity in {subnet}."
        return None

    return fault


def once(action: str, code: str, times: int = 2) -> Fault:
    left = [times]

    def fault(request: Request) -> tuple[str, str] | None:
        if request.action == action and left[0]:
            left[0] -= 1
            return (
                code,
                "Invalid IAM Instance Profile name" if code == "InvalidParameterValue" else "Request limit exceeded.",
            )
        return None

    return fault
