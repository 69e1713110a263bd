#!/usr/bin/python
# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: a job on a Ray cluster that proves it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ray_proof
short_description: Prove a Ray cluster with a job on all of its nodes
version_added: 0.1.0
description:
  - Waits until all nodes have joined, then has one worker of Ray on each of them, at least two, sum a tensor with gloo.
    A node that is missing, or a sum that is wrong, is a failure that names the host.
  - Runs on the head. Its workers take no CPU of the cluster, so that a busy one is proved too. Changes nothing.
author: llmops.finetune contributors (@llmops-finetune)
options:
  cluster:
    description: The C(cluster) that M(llmops.finetune.ray_node) returned.
    type: dict
    required: true
  environment:
    description: Folder of the environment that has Ray.
    type: str
    required: true
  seconds:
    description: How long to wait for the nodes to join, and then for the job.
    type: float
    default: 120
attributes:
  check_mode:
    description: Is skipped, as there may be no cluster.
    support: none
extends_documentation_fragment:
  - llmops.finetune.attributes
"""

EXAMPLES = r"""
- name: Nodes work together
  llmops.finetune.ray_proof:
    cluster: "{{ head.cluster }}"
    environment: "{{ environment_of_ray.path }}"
  run_once: true
"""

RETURN = r"""
line:
  description: What was seen, for people.
  returned: success
  type: str
workers:
  description: By rank the address of the worker's node, and the least and the greatest element of its sum.
  returned: success
  type: list
  elements: dict
seconds:
  description: How long it took.
  returned: success
  type: float
"""

import inspect  # noqa: E402
import json  # noqa: E402
import subprocess  # noqa: E402
import typing as t  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

from ..module_utils import _ray, _ray_job, _user  # noqa: E402
from ..module_utils._errors import FinetuneError  # noqa: E402


def ask(spec: dict[str, t.Any], question: dict[str, t.Any], job: str) -> dict[str, t.Any]:
    """What the job answers, run by the environment's Python."""
    python = spec["command"][0]
    done = subprocess.run(
        [python, "-c", job],
        cwd=spec["folder"],
        env=spec["environment"],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = "\n          ".join(done.stderr.strip().splitlines()[-5:] or [f"exit status {done.returncode}"])
        raise FinetuneError(
            "The job that proves the cluster failed.",
            where=last,
            change=f"see {spec['folder']}/node.log on each node, and let the hosts reach each other on all ports",
        )
    return t.cast("dict[str, t.Any]", json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "cluster": {"type": "dict", "required": True},
            "environment": {"type": "str", "required": True},
            "seconds": {"type": "float", "default": 120},
        },
        supports_check_mode=False,
    )
    given = module.params
    cluster = given["cluster"]
    question = {
        "address": f"{cluster['address']}:{cluster['port']}",
        "nodes": [node["address"] for node in cluster["nodes"].values()],
        "seconds": given["seconds"],
    }
    job = inspect.getsource(_ray_job)
    try:
        spec = _ray.node(cluster, cluster["host"], given["environment"], joins=False)
        answer = _user.as_user(spec["user"], lambda: ask(spec, question, job))
        line = _ray.told(cluster, answer)
    except FinetuneError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, line=line, workers=answer["workers"], seconds=answer["seconds"])


if __name__ == "__main__":
    main()
