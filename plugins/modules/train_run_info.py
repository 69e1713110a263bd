#!/usr/bin/python
# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: what runs are on a node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: train_run_info
short_description: What a fine-tuning run is on a node
version_added: 0.1.0
description:
  - Returns state, progress and results of one run, or of all runs under a root.
  - With O(wait), answers when none of them is no longer running or the time is over, whichever comes first.
author: llmops.finetune contributors (@llmops-finetune)
options:
  wait:
    description: Seconds to wait for the runs to end.
    type: float
    default: 0
extends_documentation_fragment:
  - llmops.finetune.attributes
  - llmops.finetune.runs
"""

EXAMPLES = r"""
- name: See all runs
  llmops.finetune.train_run_info:
  register: found
"""

RETURN = r"""
runs:
  description: The runs, by id.
  returned: always
  type: list
  elements: dict
  contains:
    id:
      description: Id of the run.
      type: str
    state:
      description: absent, staged, running, interrupted, failed, stopped or finished.
      type: str
    progress:
      description: Step, total_steps, loss in nats per token, learning_rate, steps_per_second, eta in seconds, use.
      type: dict
    line:
      description: The progress as one line.
      type: str
    diagnosis:
      description: What made the last attempt fail and what to change.
      type: dict
    summary:
      description: Losses, speed, peak memory of GPUs and where the results of a finished run are.
      type: dict
"""

import pathlib  # noqa: E402
import time  # noqa: E402
import typing as t  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

from ..module_utils import _run, _user  # noqa: E402
from ..module_utils._engine import state  # noqa: E402
from ..module_utils._errors import FinetuneError  # noqa: E402


def look(root: pathlib.Path, run_id: str, name: str, wait: float) -> dict[str, t.Any]:
    _user.refuse_unusable(root)
    runs = _run.find(root, run_id, name)
    deadline = time.monotonic() + wait
    while any(state.observe(run) == "running" for run in runs) and time.monotonic() < deadline:
        time.sleep(0.3)
    return {"runs": [_run.report(run) for run in runs]}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **_run.OPTIONS,
            "wait": {"type": "float", "default": 0},
        },
        supports_check_mode=True,
    )
    given = module.params
    account = _user.account(given["user"])
    try:
        root = pathlib.Path(_user.expand(given["root"], account))
        answer = (
            _user.as_user(account, lambda: look(root, given["id"], given["name"], given["wait"]))
            if _user.exists(account)
            else {"runs": []}
        )
    except FinetuneError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, **answer)


if __name__ == "__main__":
    main()
