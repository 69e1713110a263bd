# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: documentation of an action plugin that runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: train_explain
short_description: Why runs do not go on
version_added: 0.1.0
description:
  - From what M(llmops.finetune.train_run_info) returned on the hosts of the play, tells of each failed or interrupted
    run which rank on which host failed first, its last lines, what happened and what to change.
  - Runs on the controller only.
author: llmops.finetune contributors (@llmops-finetune)
options:
  found:
    description: Name of the variable in which each host registered M(llmops.finetune.train_run_info).
    type: str
    required: true
  fail:
    description: Fail with it, in place of printing it.
    type: bool
    default: false
extends_documentation_fragment:
  - llmops.finetune.attributes
"""

EXAMPLES = r"""
- name: Look at the runs
  llmops.finetune.train_run_info:
  register: found

- name: Say why they do not go on
  llmops.finetune.train_explain:
    found: found
  run_once: true
"""

RETURN = r"""
told:
  description: What was printed, one text per run.
  returned: without O(fail)
  type: list
  elements: str
run:
  description: The run that it failed with - id, state, attempt, log.
  returned: with O(fail)
  type: dict
"""
