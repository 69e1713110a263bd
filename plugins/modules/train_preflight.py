# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: documentation of an action plugin that runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: train_preflight
short_description: What all nodes of a run do next
version_added: 0.1.0
description:
  - From what M(llmops.finetune.train_run) found on every host when it staged the run, decides what all of them do
    next. A node that is not running joins those that are.
  - Runs on the controller only.
author: llmops.finetune contributors (@llmops-finetune)
options:
  plan:
    description: What M(llmops.finetune.train_plan) returned.
    type: dict
    required: true
  staged:
    description: Name of the variable in which each host registered M(llmops.finetune.train_run) with C(state=staged).
    type: str
    required: true
  retry:
    description: Try a failed or stopped run again.
    type: bool
    default: false
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
"""
