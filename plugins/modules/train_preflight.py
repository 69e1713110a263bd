# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: documentation of an action plugin that runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: train_preflight
short_description: What all nodes of a run do next, and whether they reach each other
version_added: 0.1.0
description:
  - From what M(llmops.finetune.train_run) found on every host when it staged the run, the action plugin of the same
    name decides what all of them do next. A node that is not running joins those that are.
  - Where several nodes are about to start, each tries all others on a port that the kernel picked, and the first one
    on the port of the rendezvous too, and compares clocks. The first of them has M(llmops.finetune.train_run) with
    C(state=compared) ask the others what they see, so that one call does for all; with storage that all share, and with
    O(verify=full), each one is called. M(llmops.finetune.train_run) with C(state=started) reads the answers.
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
      - With V(full), and where all nodes start, each one begins its part of an all-reduce, in the background; the first
        one does where all get through to all. M(llmops.finetune.train_allreduce) says what came of it.
    type: str
    choices: [quick, full]
    default: quick
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
  description: By host, for each other node that it tried, why it cannot be reached (empty where it can) and by how many
    seconds its clock is ahead. The first of the nodes that start returns what all of them found, the others nothing.
  returned: always
  type: dict
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
