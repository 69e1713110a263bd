#!/usr/bin/python
# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: a host as a node of a Ray cluster."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ray_node
short_description: Make a host a node of a Ray cluster, or none
version_added: 0.1.0
description:
  - Starts Ray on a host and keeps it running - as the systemd unit V(llmops-ray), which survives a reboot, where the
    module acts as root and systemd runs, else as a detached process.
  - The first host of the play is the head. Nodes are known to each other by private addresses, and every request to
    Ray needs the token of the cluster, which the head makes and only the account can read. What is sent is not
    encrypted.
  - Usage statistics are off.
author: llmops.finetune contributors (@llmops-finetune)
options:
  state:
    description: V(absent) ends every process of the node, and removes its unit and its folder with the logs.
    type: str
    choices: [present, absent]
    default: present
  user:
    description: The account that Ray belongs to. Empty for the login user; for root, the account V(llmops).
    type: str
    default: ""
  root:
    description: Folder on the node; Ray's is V(ray) in it. V(~) is the home of the account.
    type: str
    default: ~/llmops
  environment:
    description: Folder of the environment that has Ray, as M(llmops.finetune.uv_env) returns it in C(path).
    type: str
  facts:
    description: Name of the variable in which M(llmops.finetune.node_info) was registered for every host. For the head.
    type: str
  port:
    description: The head's port.
    type: int
    default: 6379
  head:
    description: What this module returned for the head. For all other hosts.
    type: dict
  spec:
    description: What of the cluster is for this node. Set by the action plugin.
    type: dict
  token:
    description: The token of the cluster. Set by the action plugin.
    type: str
    default: ""
  seal:
    description: What the token is disguised with on its way back. Set by the action plugin.
    type: str
    default: "0"
extends_documentation_fragment:
  - llmops.finetune.predicted
"""

EXAMPLES = r"""
- name: The first host is the head
  llmops.finetune.ray_node:
    facts: node
    environment: "{{ environment_of_ray.path }}"
  run_once: true
  register: head

- name: The others join it
  llmops.finetune.ray_node:
    head: "{{ head }}"
    environment: "{{ environment_of_ray.path }}"
  when: inventory_hostname != ansible_play_hosts_all[0]
"""

RETURN = r"""
changes:
  description: What was changed, or in check mode would be, as dicts of action and path.
  returned: success
  type: list
  elements: dict
cluster:
  description: The head's host, address and port, and of each node address, account and folder. Nothing of it is shown.
  returned: with O(state=present), for the head
  type: dict
token:
  description: The token of the cluster, of which nothing is shown. Empty where check mode did not make it.
  returned: with O(state=present), for the head
  type: str
"""

import os  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

from ..module_utils import _changes, _ray, _ray_node, _user  # noqa: E402
from ..module_utils._errors import FinetuneError  # noqa: E402


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "user": {"type": "str", "default": ""},
            "root": {"type": "str", "default": "~/llmops"},
            "environment": {"type": "str"},
            "facts": {"type": "str"},
            "port": {"type": "int", "default": 6379},
            "head": {"type": "dict"},
            "spec": {"type": "dict"},
            "token": {"type": "str", "default": "", "no_log": True},
            "seal": {"type": "str", "default": "0", "no_log": True},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)
    given = module.params
    changes = _changes.Changes(dry=module.check_mode)
    try:
        if given["state"] == "present":
            token = _ray_node.present(given["spec"], given["token"], changes)
            answer = {"sealed": _ray.sealed(token, given["seal"])}
        else:
            user = _user.account(given["user"])
            root = _user.expand(given["root"], user).rstrip("/")
            _ray_node.absent({"user": user, "folder": f"{root}/{_ray.NAME}"}, changes)
            answer = {}
    except FinetuneError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**_changes.answer(changes.made, module._diff), **answer)


if __name__ == "__main__":
    main()
