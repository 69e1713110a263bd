#!/usr/bin/python
# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: documentation of an action plugin that runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: train_watch
short_description: Follow a run until it ends
version_added: 0.1.0
description:
  - Prints one line of progress per interval, and a summary when the run is finished.
  - With O(wait=false) says at once where the run can be seen.
  - Ends too when the run fails or is interrupted, which M(llmops.finetune.train_explain) tells. Ending the play does
    not end the run.
  - Runs on the controller and asks rank 0 through M(llmops.finetune.train_run_info).
author: llmops.finetune contributors (@llmops-finetune)
options:
  plan:
    description: What M(llmops.finetune.train_plan) returned.
    type: dict
    required: true
  run:
    description: What M(llmops.finetune.train_run) returned last.
    type: dict
    required: true
  refusal:
    description: Why nothing was started, as M(llmops.finetune.train_run) returned it. Fails with it.
    type: str
    default: ""
  wait:
    description: Follow the run to its end. With V(false), only say how to see and end it.
    type: bool
    default: true
  interval:
    description: Seconds between two lines.
    type: float
    default: 10
attributes:
  check_mode:
    description: Returns at once in check mode.
    support: full
extends_documentation_fragment:
  - llmops.finetune.attributes
"""

EXAMPLES = r"""
- name: Follow the run
  llmops.finetune.train_watch:
    plan: "{{ plan.plan }}"
    run: "{{ started.run }}"
  run_once: true
  register: watched
"""

RETURN = r"""
run:
  description: What the run is now.
  returned: always
  type: dict
halted:
  description: Whether it was followed to where it does not go on by itself, failed or interrupted.
  returned: always
  type: bool
"""
