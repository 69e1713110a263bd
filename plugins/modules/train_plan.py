#!/usr/bin/python
# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: documentation of an action plugin that runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: train_plan
short_description: Decide what a run is and where its ranks go
version_added: 0.1.0
description:
  - Reads the inputs of the role C(llmops.finetune.train) from the variables of the play, and what
    M(llmops.finetune.node_info) returned on every host of the play.
  - Checks both, computes the identity of the run and everything that lands on each node. The order of hosts in the
    play is the node rank.
  - Prints the plan. Runs on the controller only.
author: llmops.finetune contributors (@llmops-finetune)
options:
  facts:
    description:
      - Name of the variable in which each host registered its M(llmops.finetune.node_info).
      - Without it only the variables are checked, before any host is asked for anything.
    type: str
attributes:
  check_mode:
    description: Runs the same in check mode.
    support: full
  diff_mode:
    description: The difference to the last run of the same name is in RV(plan) and printed.
    support: none
  idempotent:
    description: Changes nothing.
    support: full
"""

EXAMPLES = r"""
- name: Read the request
  llmops.finetune.train_plan:
  run_once: true

- name: See what the nodes are
  llmops.finetune.node_info:
  register: node

- name: Decide
  llmops.finetune.train_plan:
    facts: node
  run_once: true
  register: plan
"""

RETURN = r"""
name:
  description: Name of the run.
  returned: without O(facts)
  type: str
stage:
  description: LLaMA-Factory's stage, which the records of datasets are checked for.
  returned: without O(facts)
  type: str
media:
  description: Whether the chat template takes images, videos and audios, and the folder that C(media_dir) names.
  returned: without O(facts)
  type: dict
model:
  description: Hub id or full path of the model.
  returned: without O(facts)
  type: str
hub:
  description:
    - Id and revision as asked for, of a model from a hub or in S3; else empty.
    - Of one in S3 also what the controller was C(told), as C(hub) of M(llmops.finetune.node_info).
  returned: without O(facts)
  type: dict
plan:
  description: The plan.
  returned: success
  type: dict
  contains:
    id:
      description: Id of the run.
      type: str
    request:
      description: What the author wrote, in canonical form. The run id is its digest.
      type: dict
    resolved:
      description: LLaMA-Factory's arguments, world size, engine, model revision and environment.
      type: dict
    recorded:
      description: Whether an earlier apply resolved this request and its record is reused.
      type: bool
    difference:
      description: What differs from the newest run of the same name.
      type: list
      elements: str
    notices:
      description: What a person should know, such as drift.
      type: list
      elements: str
    unread:
      description: Datasets whose records no Python on a node can read before the environment is there, and why.
      type: dict
    bare:
      description: Whether a node lacks its account or something of an environment, which it is given before the run is
        staged.
      type: bool
    media:
      description: Images, videos and audios that are sent along - digest, number, and where they come from.
      type: dict
    memory:
      description: >-
        What a rank needs of its GPU by an estimate, where the run would start - C(estimate) with the fields of
        M(llmops.finetune.vram_info), corrected by what finished runs of its kind took, and empty where there is none;
        C(predicted), what of it before that the run keeps to be held against its measure; C(free), the bytes that the
        smallest GPU has; C(told), the same in lines.
      type: dict
    left:
      description: >-
        What the memory of a run that begins with this one is estimated from - the C(config) of its model, and
        LLaMA-Factory's keys of its C(adapter).
      type: dict
    held:
      description: >-
        Why an apply would be refused now, which is another run that has what this one needs, or an environment without
        a lock; else empty.
      type: str
    nodes:
      description: Per host, what lands on it and how its ranks are started.
      type: dict
"""
