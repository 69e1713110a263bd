#!/usr/bin/python
# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: what an instance type has, where it is, and what it costs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ec2_gpu_type_info
short_description: GPUs, network, zones, quota and price of instance types on EC2
version_added: 0.1.0
description:
  - What DescribeInstanceTypes tells of types with NVIDIA GPUs, where they are offered, how many vCPUs the account may
    still run, and what an hour costs. Types without a whole NVIDIA GPU are left out, or refused where they are named.
  - Memory of a GPU is what the API reports. A process gets less; M(llmops.finetune.gpu_info) tells that of a node.
  - A price is AWS's where it answers, else that of a dated list for V(us-east-1).
author: llmops.finetune contributors (@llmops-finetune)
options:
  types:
    description: Instance types. Empty for all with GPUs that the region has.
    type: list
    elements: str
    default: []
  market:
    description: For which quota and price.
    type: str
    choices: [on-demand, spot, capacity-block]
    default: on-demand
  prices:
    description: Whether to ask for prices, which is a request for each type.
    type: bool
    default: true
extends_documentation_fragment:
  - llmops.finetune.aws
  - llmops.finetune.attributes
"""

EXAMPLES = r"""
- name: What would p5 be?
  llmops.finetune.ec2_gpu_type_info:
    region: us-east-1
    types: [p5.48xlarge, p5en.48xlarge]
"""

RETURN = r"""
types:
  description:
    - For each type name, gpu, gpus, gpu_mib, vcpus, memory_mib, nvme_gb, architecture, markets, zones, cards (network
      cards), efa, quota_code, quota_vcpus and used_vcpus, price_usd and price_source.
    - What could not be known is null.
  returned: success
  type: list
  elements: dict
"""

import typing as t  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

from ..module_utils._ec2 import client, limits, price, survey, types  # noqa: E402
from ..module_utils._errors import FinetuneError  # noqa: E402

OPTIONS: dict[str, dict[str, t.Any]] = {
    **client.OPTIONS,
    "types": {"type": "list", "elements": "str", "default": []},
    "market": {"type": "str", "choices": ["on-demand", "spot", "capacity-block"], "default": "on-demand"},
    "prices": {"type": "bool", "default": True},
}


def told(aws: client.Aws, kind: types.GpuType, given: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    market = given["market"]
    zones = survey.offered(aws, kind.name)
    try:
        asked = survey.asked_price(aws, kind, market, zones) if given["prices"] else None
        cost = price.choose(kind.name, market, aws.region, 0, asked)
    except client.Refused:
        raise
    except FinetuneError:
        cost = None
    return {
        **kind._asdict(),
        "cards": len(kind.cards),
        "zones": zones,
        "quota_code": limits.quota_code(kind, market),
        "quota_vcpus": survey.quota(aws, kind, market),
        "used_vcpus": survey.used(aws, kind, market),
        "price_usd": cost.usd if cost else None,
        "price_source": cost.source if cost else None,
    }


def run(given: dict[str, t.Any]) -> list[dict[str, t.Any]]:
    aws = client.Aws(given["region"], given["profile"])
    named = [survey.instance_type(aws, name) for name in given["types"]]
    return [told(aws, kind, given) for kind in named or survey.gpu_types(aws)]


def main() -> None:
    module = AnsibleModule(argument_spec=OPTIONS, supports_check_mode=True)
    try:
        found = run(module.params)
    except FinetuneError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, types=found)


if __name__ == "__main__":
    main()
