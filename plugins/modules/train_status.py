#!/usr/bin/python
# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: documentation of an action plugin that runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: train_status
short_description: Print runs, one line each
version_added: 0.1.0
description:
  - Prints what M(llmops.finetune.train_run_info) or M(llmops.finetune.train_run) returned on the hosts of the play. A
    run of several hosts has one line, and one more for each host that is in another state.
  - Runs on the controller only.
author: llmops.finetune contributors (@llmops-finetune)
options:
  found:
    description: Name of the variable in which each host registered it.
    type: str
    required: true
  asked:
    description: The id that was asked for, for what is said where none matches.
    type: str
    default: ""
extends_documentation_fragment:
  - llmops.finetune.attributes
"""

EXAMPLES = r"""
- name: Look at the runs
  llmops.finetune.train_run_info:
  register: found

- name: Show them
  llmops.finetune.train_status:
    found: found
  run_once: true
"""

RETURN = r"""
lines:
  description: The printed lines.
  returned: always
  type: list
  elements: str
"""
