#!/usr/bin/python
# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: host keys of a fleet's nodes, learned from their consoles."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ec2_host_keys
short_description: Host keys of a fleet's nodes, learned from their consoles
version_added: 0.1.0
description:
  - Reads the keys that cloud-init prints on the console of each node, through AWS, and writes them to a file that ssh
    compares with. So no key is taken from whoever answers at an address.
  - Lines have the name of the node, for C(HostKeyAlias), as addresses come again with other machines behind them; and
    the instance, so that a node is asked once. Nodes that are gone lose their lines.
  - Consoles are told some minutes after a node's start, and their end is all that is kept of them.
author: llmops.finetune contributors (@llmops-finetune)
options:
  name:
    description: Name of the fleet.
    type: str
    required: true
  path:
    description: The file on this controller.
    type: path
    required: true
  timeout:
    description: How long to wait for all consoles, in seconds.
    type: float
    default: 600
extends_documentation_fragment:
  - llmops.finetune.aws
attributes:
  check_mode:
    description: Tells of which nodes keys would be learned, and asks no console.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
  idempotent:
    description: Nodes whose keys are known are not asked.
    support: full
"""

EXAMPLES = r"""
- name: Know the nodes
  llmops.finetune.ec2_host_keys:
    name: demo
    region: us-east-1
    path: ~/.ssh/known_hosts_demo
"""

RETURN = r"""
learned:
  description: Names of nodes whose keys were learned, or in check mode would be.
  returned: success
  type: list
  elements: str
"""

import os  # noqa: E402
import pathlib  # noqa: E402
import time  # noqa: E402
import typing as t  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

from ..module_utils._ec2 import client, host_keys, naming, survey  # noqa: E402
from ..module_utils._errors import FinetuneError  # noqa: E402

OPTIONS: dict[str, dict[str, t.Any]] = {
    **client.OPTIONS,
    "name": {"type": "str", "required": True},
    "path": {"type": "path", "required": True},
    "timeout": {"type": "float", "default": 600},
}
_POLL = 10


def run(given: dict[str, t.Any], dry: bool) -> tuple[bool, list[str]]:
    path = pathlib.Path(given["path"])
    before = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    aws = client.Aws(given["region"], given["profile"])
    nodes = [
        (one.tags["Name"], one.id)
        for one in survey.instances(aws, naming.checked(given["name"]))
        if one.state == "running" and one.node is not None
    ]
    known = host_keys.of(before, nodes)
    unknown = [node for node in nodes if node not in known]
    if not dry:
        known |= learn(aws, unknown, given["timeout"])
    after = host_keys.written(known)
    if after != before and not dry:
        write(path, after)
    return bool(unknown) or after != before, sorted(name for name, _instance in unknown)


def learn(aws: client.Aws, nodes: t.Sequence[tuple[str, str]], timeout: float) -> dict[tuple[str, str], list[str]]:
    end = time.monotonic() + timeout
    found: dict[tuple[str, str], list[str]] = {}
    while True:
        for node in nodes:
            if node not in found and (keys := host_keys.printed(console(aws, node[1]))):
                found[node] = keys
        silent = [name for name, instance in nodes if (name, instance) not in found]
        if not silent:
            return found
        if time.monotonic() > end:
            raise FinetuneError(
                f"The consoles of {', '.join(silent)} do not tell host keys after {timeout:g} s.",
                where="ec2_host_keys_timeout, ec2_image_id",
                change="apply again later; for an image without cloud-init say ec2_host_keys=false, and give ssh keys",
            )
        time.sleep(_POLL)


def console(aws: client.Aws, instance: str) -> str:
    """The newest where the hypervisor can tell it, else what was kept at the start."""
    tries: list[dict[str, t.Any]] = [{"Latest": True}, {}]
    for newest in tries:
        try:
            return str(aws.call("ec2", "get_console_output", InstanceId=instance, **newest).get("Output") or "")
        except client.Refused as error:
            if not newest or error.code != "UnsupportedOperation":
                raise
    return ""


def write(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.chmod(0o600)
    os.replace(partial, path)


def main() -> None:
    module = AnsibleModule(argument_spec=OPTIONS, supports_check_mode=True)
    try:
        changed, learned = run(module.params, module.check_mode)
    except FinetuneError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(
            msg=f"Host keys cannot be written: {error}.\n  where:  ec2_known_hosts\n  change: name a file of yours"
        )
    module.exit_json(changed=changed, learned=learned)


if __name__ == "__main__":
    main()
