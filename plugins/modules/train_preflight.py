# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: which of the other nodes this one gets through to."""

from __future__ import annotations

DOCUMENTATION = r"""
module: train_preflight
short_description: What all nodes of a run do next, and whether they reach each other
version_added: 0.1.0
description:
  - From what M(llmops.finetune.train_run) found on every host when it staged the run, the action plugin of the same
    name decides what all of them do next. A node that is not running joins those that are.
  - Where several nodes are about to start, each tries all others on a port that the kernel picked, and the first one
    on the port of the rendezvous too, and compares clocks. M(llmops.finetune.train_run) with C(state=started) reads the
    answers of all.
author: llmops.finetune contributors (@llmops-finetune)
options:
  plan:
    description: What M(llmops.finetune.train_plan) returned.
    type: dict
  staged:
    description: Name of the variable in which each host registered M(llmops.finetune.train_run) with C(state=staged).
    type: str
  retry:
    description: Try a failed or stopped run again.
    type: bool
    default: false
  verify:
    description:
      - With V(full), and where all nodes start, each one that gets through to all others begins its part of an
        all-reduce, in the background. M(llmops.finetune.train_allreduce) says what came of it.
    type: str
    choices: [quick, full]
    default: quick
  peers:
    description: The nodes to try - host, address, ports, run, node_rank. Set by the action plugin.
    type: list
    elements: dict
    default: []
  allreduce:
    description: What of the plan the all-reduce needs on this node. Set by the action plugin.
    type: dict
    default: {}
  shared:
    description: The marks of the other nodes to look for in the folder that all share. Set by the action plugin.
    type: dict
    default: {}
extends_documentation_fragment:
  - llmops.finetune.attributes
"""

EXAMPLES = r"""
- name: Have everything in place
  llmops.finetune.train_run:
    state: staged
    plan: "{{ plan.plan }}"
  register: staged

- name: See that the nodes fit together
  llmops.finetune.train_preflight:
    plan: "{{ plan.plan }}"
    staged: staged
  register: preflight
"""

RETURN = r"""
next:
  description: What an apply does next on every node - start, watch or nothing.
  returned: always
  type: str
proof:
  description: What of this node must be the same on all nodes, by field.
  returned: always
  type: dict
findings:
  description: For each other node that was tried, why it cannot be reached (empty where it can) and by how many seconds
    its clock is ahead.
  returned: always
  type: list
  elements: dict
unseen:
  description: Hosts that have another folder for their results than this one, where all are to have the same.
  returned: always
  type: list
  elements: str
allreduce:
  description: Whether this node began its part of an all-reduce over all nodes.
  returned: always
  type: bool
"""

import contextlib  # noqa: E402
import os  # noqa: E402
import pathlib  # noqa: E402
import resource  # noqa: E402
import typing as t  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

from ..module_utils import _probe, _user  # noqa: E402
from ..module_utils._engine.state import Run  # noqa: E402
from ..module_utils._errors import FinetuneError  # noqa: E402


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "plan": {"type": "dict"},
            "staged": {"type": "str"},
            "retry": {"type": "bool", "default": False},
            "verify": {"type": "str", "choices": ["quick", "full"], "default": "quick"},
            "peers": {"type": "list", "elements": "dict", "default": []},
            "allreduce": {"type": "dict", "default": {}},
            "shared": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    findings = _probe.probe(module.params["peers"])
    spec = module.params["allreduce"]
    begins = bool(spec) and not any(finding["why"] for finding in findings)
    if begins:
        try:
            begin(spec)
        except FinetuneError as error:
            module.fail_json(msg=str(error))
    module.exit_json(changed=False, findings=findings, unseen=unseen(module.params["shared"]), allreduce=begins)


def unseen(spec: dict[str, t.Any]) -> list[str]:
    if not spec:
        return []
    from ..module_utils import _output  # a node compiles what it imports in each call, and few calls need this

    run = Run(pathlib.Path(spec["folder"]))
    found = _user.as_user(spec["user"], lambda: {"hosts": _output.unseen(run, spec["marks"])})
    return list(found["hosts"])


def begin(spec: dict[str, t.Any]) -> None:
    from ..module_utils import _place  # as above

    if os.geteuid() == 0:
        with contextlib.suppress(OSError, ValueError):  # InfiniBand and EFA want memory locked, as the run's unit may
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    run = Run(pathlib.Path(spec["folder"]))
    _user.as_user(spec["user"], lambda: _place.begin_allreduce(run, spec, int(spec["port"])))


if __name__ == "__main__":
    main()
