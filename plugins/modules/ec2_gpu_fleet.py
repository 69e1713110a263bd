#!/usr/bin/python
# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: a fleet of GPU instances on EC2."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ec2_gpu_fleet
short_description: Nodes 0 to n-1 of a fleet of GPU instances on EC2
version_added: 0.1.0
description:
  - A node is known by a tag with its index, which it keeps for life and which a replacement gets. So an index can be a
    rank of a run.
  - What is missing is launched in one request, all or nothing, in one availability zone; where AWS has no capacity the
    next zone is tried at once. Instances of the fleet that a broken launch left without an index are taken up. Stopped
    ones are started. Nodes that differ from what is asked for are told and left alone.
  - Price, quota, number of nodes and zones are checked before the first request that costs.
  - The role P(llmops.finetune.ec2#role) makes network, key and profile around it.
author: llmops.finetune contributors (@llmops-finetune)
options:
  name:
    description: Name of the fleet, which all that belongs to it is tagged with.
    type: str
    required: true
  state:
    description:
      - V(planned) reads, checks and tells; nothing is changed.
      - V(absent) terminates the instances and waits, releases their addresses and deletes volumes that are left.
    type: str
    choices: [present, planned, absent]
    default: present
  count:
    description: How many nodes.
    type: int
    default: 1
  allow_scale_down:
    description: Whether nodes beyond O(count) are terminated, the highest index first. Otherwise they are refused.
    type: bool
    default: false
  instance_type:
    description: A type with whole NVIDIA GPUs. Required unless O(state=absent).
    type: str
  market:
    description: How it is paid. Spot is one-time, and terminates when it is interrupted.
    type: str
    choices: [on-demand, spot, capacity-block]
    default: on-demand
  spot_max_usd:
    description: The most for a spot node, in USD an hour. V(0) for the price on demand.
    type: float
    default: 0
  capacity_reservation_id:
    description: A capacity block or reservation to launch in.
    type: str
    default: ""
  zones:
    description: Availability zones to try, in this order. Empty for all that offer the type.
    type: list
    elements: str
    default: []
  cidr:
    description: Addresses of the network that is planned without O(subnet_ids).
    type: str
    default: 10.64.0.0/16
  subnet_ids:
    description: Subnets to launch in, in this order. Empty only with V(planned), V(absent) and in check mode.
    type: list
    elements: str
    default: []
  security_group_ids:
    description: Security groups of every interface.
    type: list
    elements: str
    default: []
  ssh_cidrs:
    description: Networks that may log in. They are only checked; the role opens port 22 to them.
    type: list
    elements: str
    default: []
  image_id:
    description: Image of the nodes. Empty for that of the nodes that are there, else what O(image_parameter) names.
    type: str
    default: ""
  image_parameter:
    description: An SSM parameter that holds the id of an image. C({architecture}) stands for that of the type.
    type: str
    default: /aws/service/deeplearning/ami/{architecture}/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id
  key_name:
    description: Key pair for the login. Empty for none.
    type: str
    default: ""
  public_key:
    description: The public key that O(key_name) should have, to tell in C(plan.import_key) whether to import it.
    type: str
    default: ""
  instance_profile:
    description: Name of the instance profile. Empty for none.
    type: str
    default: ""
  placement_group:
    description:
      - A placement group, V(none), or V(auto) for one with the name of the fleet where several nodes can be in one.
        It is not made here.
    type: str
    default: auto
  efa:
    description: EFA on all network cards that have it. V(auto) for fleets of several nodes.
    type: str
    choices: [auto, "on", "off"]
    default: auto
  efa_layout:
    description: V(legacy) for images with EFA software older than 1.35.
    type: str
    choices: [current, legacy]
    default: current
  public_ip:
    description: Whether nodes get public addresses. With EFA they are elastic ones, which last as long as the fleet.
    type: bool
    default: false
  root_gib:
    description: Size of the root volume, which is gp3 and encrypted. It is never smaller than the image's.
    type: int
    default: 200
  root_iops:
    description: IOPS of the root volume. V(0) for gp3's own.
    type: int
    default: 0
  root_throughput:
    description: Throughput of the root volume in MiB/s. V(0) for gp3's own.
    type: int
    default: 0
  kms_key_id:
    description: Key that encrypts the root volume. Empty for the account's.
    type: str
    default: ""
  metadata_hops:
    description: How far answers of the metadata service reach. V(2) where containers ask it. Version 2 is required.
    type: int
    default: 1
  tags:
    description: More tags for all that is launched.
    type: dict
    default: {}
  ttl_hours:
    description: When a node ends itself, counted from the full hour after its launch or start. V(0) for never.
    type: float
    default: 24
  extend:
    description: Count O(ttl_hours) of nodes that run from now on.
    type: bool
    default: false
  idle_minutes:
    description: How long after the end of its last run a node ends itself. V(0) for never.
    type: int
    default: 0
  on_shutdown:
    description: What a node does that ends itself, or is shut down from inside. Its volumes outlive a stop, and cost.
    type: str
    choices: [terminate, stop]
    default: terminate
  max_nodes:
    description: How many nodes are allowed.
    type: int
    default: 8
  max_hourly_usd:
    description: What the nodes may cost, in USD an hour. Required unless O(state=absent).
    type: float
  price_usd:
    description: What a node costs, in USD an hour, where you know better. V(0) to ask AWS.
    type: float
    default: 0
  bucket:
    description: A bucket that is to be made for the fleet. It is not made here; one of others is refused.
    type: str
    default: ""
  known_hosts:
    description:
      - With O(state=planned), a file of the module M(llmops.finetune.ec2_host_keys). RV(settled) then means too that it
        has the keys of all nodes.
    type: path
    default: ""
  timeout:
    description: How long to wait for nodes to run or to end, in seconds.
    type: float
    default: 900
extends_documentation_fragment:
  - llmops.finetune.aws
attributes:
  check_mode:
    description: Predicts RV(changes). Where the network is there, the launch is sent as a dry run, which proves its
      parameters and permissions and launches nothing.
    support: full
  diff_mode:
    description: Shows RV(changes), one a line.
    support: partial
  idempotent:
    description: A fleet that is as wanted is left alone.
    support: full
"""

EXAMPLES = r"""
- name: What would it cost?
  llmops.finetune.ec2_gpu_fleet:
    name: demo
    state: planned
    region: us-east-1
    instance_type: p5.48xlarge
    count: 2
    max_hourly_usd: 120

- name: Two nodes in a network that is there
  llmops.finetune.ec2_gpu_fleet:
    name: demo
    region: us-east-1
    instance_type: g6e.48xlarge
    count: 2
    max_hourly_usd: 70
    subnet_ids: [subnet-0123456789abcdef0]
    security_group_ids: [sg-0123456789abcdef0]
    key_name: mine
"""

RETURN = r"""
changes:
  description: What was changed, or in check mode would be, as dicts of action and path.
  returned: success
  type: list
  elements: dict
plan:
  description: Steps, prices (C(hourly) and C(total)), zones and subnets, and C(lines) for people.
  returned: with O(state=present) and V(planned)
  type: dict
account:
  description: Id of the account.
  returned: with O(state=present) and V(planned)
  type: str
settled:
  description: Whether all nodes run, tagged and addressed as they should be, so that O(state=present) would do nothing.
  returned: with O(state=planned)
  type: bool
nodes:
  description: The nodes by index, each with id, name, zone, addresses and when it ends itself.
  returned: with O(state=present) and V(planned)
  type: list
  elements: dict
"""

import typing as t  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

from ..module_utils import _changes  # noqa: E402
from ..module_utils._ec2 import addresses, apply, client, fleet, naming, plan, survey  # noqa: E402
from ..module_utils._ec2.inputs import OPTIONS  # noqa: E402
from ..module_utils._errors import FinetuneError  # noqa: E402


def told(one: fleet.Instance) -> dict[str, t.Any]:
    return {
        "index": one.node,
        "name": one.tags.get("Name", ""),
        "id": one.id,
        "zone": one.zone,
        "private_ip": one.private_ip,
        "public_ip": one.public_ip,
        "expires": one.tags.get(naming.EXPIRES, ""),
    }


def run(given: dict[str, t.Any], dry: bool) -> dict[str, t.Any]:
    naming.checked(given["name"])
    naming.own(given["name"], given["tags"])
    aws = client.Aws(given["region"], given["profile"])
    if given["state"] == "absent":
        return {"changes": apply.absent(aws, given, dry)}
    facts = survey.facts(aws, given)
    made = plan.make(given, facts, given["region"])
    changes: list[addresses.Change] = []
    nodes = list(made.steps.nodes.values())
    if given["state"] == "present":
        changes, nodes = apply.present(aws, given, made, facts, dry)
    shown = sorted((told(one) for one in nodes), key=lambda one: one["name"])
    result: dict[str, t.Any] = {"changes": changes, "plan": made.as_dict(), "nodes": shown, "account": facts.account}
    if given["state"] == "planned":
        result["settled"] = apply.settled(aws, given, made, facts)
    return result


def main() -> None:
    module = AnsibleModule(
        argument_spec=OPTIONS,
        required_if=[("state", state, ["instance_type", "max_hourly_usd"]) for state in ("present", "planned")],
        supports_check_mode=True,
    )
    try:
        result = run(module.params, module.check_mode)
    except FinetuneError as error:
        module.fail_json(msg=str(error))
    changes = [change._asdict() for change in result.pop("changes")]
    module.exit_json(**_changes.answer(changes, module._diff), **result)


if __name__ == "__main__":
    main()
