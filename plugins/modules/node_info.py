#!/usr/bin/python
# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: what a node is, for the plan."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_info
short_description: What a node is and what of a run lies on it
version_added: 0.1.0
description:
  - Returns the facts that M(llmops.finetune.train_plan) needs from a node in one call.
  - Changes nothing and needs no facts gathered before.
author: llmops.finetune contributors (@llmops-finetune)
options:
  user:
    description: The account that runs belong to. Empty for the login user; for root, the account V(llmops).
    type: str
    default: ""
  root:
    description: Folder on the node that holds environments, datasets, models and runs. V(~) is the home of the account.
    type: str
    default: ~/llmops
  name:
    description: Read only the runs of this name. Empty reads all.
    type: str
    default: ""
  model:
    description: The role's C(train_model). Where it is a full path, the model there is looked at.
    type: str
    default: ""
  hub:
    description: A model of a hub, which is asked for the commit of its revision. Empty asks nobody.
    type: dict
    default: {}
    suboptions:
      model:
        description: Id of the model.
        type: str
        default: ""
      revision:
        description: Branch, tag or commit.
        type: str
        default: main
      endpoint:
        description: Where the hub is. Empty for what O(secrets), else the environment, else the hub itself says.
        type: str
        default: ""
      token:
        description: By which the hub is asked, found as O(hub.endpoint).
        type: str
        default: ""
      told:
        description: What the controller was answered for a model in S3, as RV(node.hub). Then nobody is asked.
        type: dict
        default: {}
  secrets:
    description: >-
      Environment variables, of which C(HF_TOKEN) and C(HF_ENDPOINT), or for ModelScope C(MODELSCOPE_API_TOKEN) and
      C(MODELSCOPE_ENDPOINT), are for O(hub). The others stay on the controller.
    type: dict
    default: {}
  folders:
    description: Full paths of adapters, reward models and descriptions of tokens that the run begins with.
    type: list
    elements: str
    default: []
  environment:
    description: Digest of the lock that the run would start in, which names the environment's folder. Empty for none.
    type: str
    default: ""
  before:
    description: Names or ids of runs that the run begins with.
    type: list
    elements: str
    default: []
  stage:
    description: LLaMA-Factory's stage that the records of O(datasets) are for.
    type: str
    choices: [pt, sft, rm, ppo, dpo, kto]
    default: sft
  media:
    description: What is known of images, videos and audios of O(datasets).
    type: dict
    default: {}
    suboptions:
      taken:
        description: The chat template is for media, so that a placeholder in a text is one.
        type: bool
        default: false
      folder:
        description: LLaMA-Factory's C(media_dir), in which relative paths are looked for.
        type: str
        default: ""
  output_root:
    description: Folder that is to hold the results of all nodes. It is looked at, not made. Empty for none.
    type: str
    default: ""
  lease_dir:
    description: Where the locks on GPUs are. Empty for the one place of the host.
    type: str
    default: ""
  datasets:
    description:
      - Entries as in the role's C(train_datasets). Those with V(path) lie on the node; they are digested and checked
        record by record, the others are left alone. Files .parquet and .arrow are read with pyarrow, by an environment
        below O(root) where the node's Python lacks it; while there is none, their C(unread) says so.
    type: list
    elements: raw
    default: []
extends_documentation_fragment:
  - llmops.finetune.attributes
"""

EXAMPLES = r"""
- name: See what the nodes are
  llmops.finetune.node_info:
  register: node
"""

RETURN = r"""
node:
  description: Facts of the node.
  returned: always
  type: dict
  contains:
    user:
      description: Account that runs belong to.
      type: str
    root:
      description: The root with V(~) expanded.
      type: str
    cpus:
      description: Processors this process may use.
      type: int
    memory:
      description: Memory in bytes.
      type: int
    disk_free:
      description: Free bytes where the root is or will be.
      type: int
    gpus:
      description: >-
        What runs can have, as C(devices) of M(llmops.finetune.gpu_info) - NVIDIA's GPUs, and in the place of those in
        MIG mode their slices - with index, uuid, name, memory and memory_free in bytes, compute_capability, driver.
      type: list
      elements: dict
    gpu_links:
      description: Each pair of GPUs by index and its way as in C(nvidia-smi topo -m), such as V(NV18) or V(SYS).
      type: list
      elements: list
    gpu_problems:
      description: What is wrong with GPUs, as C(problems) of M(llmops.finetune.gpu_info).
      type: list
      elements: dict
    folders:
      description: By each of O(folders), which files of an adapter or a reward model are in it; C(.) for a file itself.
      type: dict
    compilers:
      description: Which of V(c++) and V(nvcc) ranks would find. DeepSpeed needs them for some engines.
      type: list
      elements: str
    cpu_flags:
      description: Which of V(avx2), V(avx512f) and V(amx_tile) the CPUs have.
      type: list
      elements: str
    environment_whole:
      description: Whether O(environment) is there and as it was built, by presence, size and time of every file.
      type: bool
    lease_dir:
      description: O(lease_dir) as given.
      type: str
    leases:
      description: Who holds the lease of a GPU (by UUID) or of the CPUs (V(cpu)); free ones are left out.
      type: dict
    before:
      description: >-
        The runs of O(before) by id, as RV(node.runs), with what each left - the C(config) of its model, and
        LLaMA-Factory's keys of its C(adapter).
      type: dict
    runs:
      description: Recorded runs by id with state, request and resolved values, and the folder shared with other nodes.
      type: dict
    peaks:
      description:
        - What ranks of finished runs of any name took of GPUs at most (C(measured)), beside what was predicted
          (C(predicted)), by id. It is C(memory.json) of their results, where that is as they left it.
      type: dict
    output_root:
      description: Why results cannot go to O(output_root), empty where they can, and ids of runs that have any there.
      type: dict
    datasets:
      description: Stored datasets whose content is intact.
      type: list
      elements: str
    media:
      description: Stored sets of images, videos and audios whose content is intact.
      type: list
      elements: str
    model_missing:
      description: Whether there is no model at the path that O(model) names.
      type: bool
    model:
      description: >-
        What the model at the path that O(model) names says of itself - its kind, layers, longest input, quantization,
        names of modules, files of weights that are absent. Empty for a model on a hub.
      type: dict
    hub:
      description: >-
        Of O(hub), the commit and the bytes of the files that a run reads; where the hub does not answer, why (C(kind),
        C(said)), and the commit that the last run took if that is stored.
      type: dict
    sources:
      description: Digest, number of records and faults of each of O(datasets).
      type: list
      elements: dict
"""

import typing as t  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

from ..module_utils import _media, _node  # noqa: E402
from ..module_utils._errors import FinetuneError  # noqa: E402

READ = ("datasets", "media", "secrets")
"""Options that are not handed on as they are."""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "user": {"type": "str", "default": ""},
            "root": {"type": "str", "default": "~/llmops"},
            "name": {"type": "str", "default": ""},
            "model": {"type": "str", "default": ""},
            "folders": {"type": "list", "elements": "str", "default": []},
            "before": {"type": "list", "elements": "str", "default": []},
            "hub": {
                "type": "dict",
                "default": {},
                "options": {
                    "model": {"type": "str", "default": ""},
                    "revision": {"type": "str", "default": "main"},
                    "endpoint": {"type": "str", "default": ""},
                    "token": {"type": "str", "default": "", "no_log": True},
                    "told": {"type": "dict", "default": {}},
                },
            },
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "stage": {"type": "str", "choices": ["pt", "sft", "rm", "ppo", "dpo", "kto"], "default": "sft"},
            "media": {
                "type": "dict",
                "default": {},
                "options": {"taken": {"type": "bool", "default": False}, "folder": {"type": "str", "default": ""}},
            },
            "environment": {"type": "str", "default": ""},
            "lease_dir": {"type": "str", "default": ""},
            "output_root": {"type": "str", "default": ""},
            "datasets": {"type": "list", "elements": "raw", "default": []},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        here = _on_node(given["datasets"])
        asked = {key: value for key, value in given.items() if key not in READ}
        media = _media.Media(bool(given["media"].get("taken")), [given["media"].get("folder") or ""])
        node = _node.facts(here=here, media=media, **asked)
    except FinetuneError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, node=node)


def _on_node(entries: list[t.Any]) -> list[t.Any]:
    """Datasets that lie on the node."""
    if not entries:
        return []
    from ..module_utils import _dataset  # a node compiles what it imports in each call, and few calls need this

    return [dataset for dataset in _dataset.parse(entries, "train_datasets") if dataset.source == "path"]


if __name__ == "__main__":
    main()
