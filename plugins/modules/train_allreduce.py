# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: what this node's part of an all-reduce over all nodes came to."""

from __future__ import annotations

DOCUMENTATION = r"""
module: train_allreduce
short_description: What an all-reduce over all nodes of a run came to
version_added: 0.1.0
description:
  - Waits for this node's part of the all-reduce that M(llmops.finetune.train_preflight) with C(verify=full) began on
    all nodes. It is a call of its own, so that it may wait - all nodes have begun by then, however few are called at
    once.
  - Where the nodes do not fit together otherwise, it does not wait. Of the first node, the action plugin of the same
    name prints the bandwidth. M(llmops.finetune.train_run) with C(state=started) reads the answers of all.
author: llmops.finetune contributors (@llmops-finetune)
options:
  plan:
    description: What M(llmops.finetune.train_plan) returned.
    type: dict
  preflight:
    description: Name of the variable in which each host registered M(llmops.finetune.train_preflight).
    type: str
  user:
    description: The account that the run belongs to. Set by the action plugin.
    type: str
  folder:
    description: The folder of the run on the node. Set by the action plugin.
    type: str
extends_documentation_fragment:
  - llmops.finetune.attributes
"""

EXAMPLES = r"""
- name: See that the nodes fit together
  llmops.finetune.train_preflight:
    plan: "{{ plan.plan }}"
    staged: staged
    verify: full
  register: preflight

- name: See what an all-reduce over all nodes came to
  llmops.finetune.train_allreduce:
    plan: "{{ plan.plan }}"
    preflight: preflight
  register: allreduce
  when: preflight.allreduce
"""

RETURN = r"""
allreduce:
  description:
    - Empty where it was not waited for. C(ok) says whether this node's ranks saw the right sum.
    - With C(ok), C(nodes), C(ranks), C(backend), C(bytes) and C(seconds) of one all-reduce, and in GB/s
      C(algorithm_bandwidth) (bytes per second) and C(bus_bandwidth) (2 (n - 1) / n times that, for n ranks).
    - Otherwise C(phase) and C(error) say what failed.
  returned: always
  type: dict
"""

import pathlib  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

from ..module_utils import _place, _user  # noqa: E402
from ..module_utils._engine.state import Run  # noqa: E402
from ..module_utils._errors import FinetuneError  # noqa: E402


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "plan": {"type": "dict"},
            "preflight": {"type": "str"},
            "user": {"type": "str"},
            "folder": {"type": "str"},
        },
        supports_check_mode=True,
    )
    run = Run(pathlib.Path(module.params["folder"]))
    try:
        told = _user.as_user(module.params["user"], lambda: _place.end_of_allreduce(run))
    except FinetuneError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, allreduce=told)


if __name__ == "__main__":
    main()
