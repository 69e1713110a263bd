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
description: Prints what M(llmops.finetune.train_run_info) returned. Runs on the controller only.
author: llmops.finetune contributors (@llmops-finetune)
options:
  runs:
    description: Runs as M(llmops.finetune.train_run_info) returns them.
    type: list
    elements: dict
    required: true
  asked:
    description: The id that was asked for, for what is said where none matches.
    type: str
    default: ""
  others:
    description: Ids of runs that are running too, as M(llmops.finetune.train_run) returns them.
    type: list
    elements: str
    default: []
extends_documentation_fragment:
  - llmops.finetune.attributes
"""

EXAMPLES = r"""
- name: Look at the runs
  llmops.finetune.train_run_info:
  register: found

- name: Show them
  llmops.finetune.train_status:
    runs: "{{ found.runs }}"
"""

RETURN = r"""
lines:
  description: The printed lines.
  returned: always
  type: list
  elements: str
"""
