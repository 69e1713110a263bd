#!/usr/bin/python
# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: are the records of a file ones that LLaMA-Factory trains on."""

from __future__ import annotations

DOCUMENTATION = r"""
module: dataset_check
short_description: Whether LLaMA-Factory would train on every record of a file
version_added: 0.1.0
description:
  - Reads a file record by record and refuses those that LLaMA-Factory 0.9.5 would drop with a warning in the middle of
    its log, or die on after minutes. Fails when there are any, and names record, fault and remedy.
  - Needs no GPU, no other part of this collection, and no package on the host but pyarrow for .parquet and .arrow
    files. Files of gigabytes are read in pieces.
  - The role C(llmops.finetune.train) does the same for its C(train_datasets); this module is for pipelines that make
    data.
author: llmops.finetune contributors (@llmops-finetune)
options:
  path:
    description: Full path of a .json, .jsonl, .csv, .txt, .parquet or .arrow file on the host.
    type: path
    required: true
  stage:
    description: LLaMA-Factory's stage that the records are for.
    type: str
    choices: [pt, sft, rm, ppo, dpo, kto]
    default: sft
  formatting:
    description: How the records are written.
    type: str
    choices: [alpaca, sharegpt, openai]
    default: alpaca
  columns:
    description: LLaMA-Factory's words for fields and their names in the file, as in C(dataset_info.json).
    type: dict
    default: {}
  tags:
    description:
      - LLaMA-Factory's words for roles and their names in the file, as in C(dataset_info.json).
      - Those that are not given keep their defaults, as in the role. A C(dataset_info.json) of your own that gives
        some must give all that occur, such as C(system_tag).
    type: dict
    default: {}
  media:
    description:
      - Whether the chat template is for images, videos or audios, so that every C(<image>), C(<video>) and C(<audio>)
        in a text stands for one. Otherwise only records that hold any are looked at so.
    type: bool
    default: false
  media_dir:
    description:
      - LLaMA-Factory's C(media_dir), in which relative paths are looked for. Not given, the folder of O(path).
      - For data that it sends, the role looks in more places; its C(train_datasets) says in which.
    type: path
  limit:
    description: How many faults are listed, at least one; the rest is counted.
    type: int
    default: 20
extends_documentation_fragment:
  - llmops.finetune.attributes
"""

EXAMPLES = r"""
- name: Check what the pipeline made, on this controller
  llmops.finetune.dataset_check:
    path: /data/tickets.jsonl
    formatting: sharegpt
  delegate_to: localhost

- name: Check pairs of answers for dpo
  llmops.finetune.dataset_check:
    path: /data/pairs.jsonl
    stage: dpo
    columns:
      prompt: question
      chosen: good
      rejected: bad
"""

RETURN = r"""
records:
  description: How many records were read.
  returned: always
  type: int
faults:
  description: What is wrong, each with record (0 is the file as a whole), what, and change.
  returned: always
  type: list
  elements: dict
more:
  description: How many faults were found beyond O(limit).
  returned: always
  type: int
doubts:
  description: What a person should know of records that are trained on, or that only some chat templates take.
  returned: always
  type: list
  elements: str
fields:
  description: Names of the fields that occur.
  returned: always
  type: list
  elements: str
"""

import pathlib  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

from ..module_utils import _dataset, _records, _tables  # noqa: E402
from ..module_utils._errors import FinetuneError  # noqa: E402
from ..module_utils._media import Media  # noqa: E402


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "stage": {"type": "str", "choices": ["pt", "sft", "rm", "ppo", "dpo", "kto"], "default": "sft"},
            "formatting": {"type": "str", "choices": ["alpaca", "sharegpt", "openai"], "default": "alpaca"},
            "columns": {"type": "dict", "default": {}},
            "tags": {"type": "dict", "default": {}},
            "media": {"type": "bool", "default": False},
            "media_dir": {"type": "path"},
            "limit": {"type": "int", "default": 20},
        },
        supports_check_mode=True,
    )
    given = module.params
    path = pathlib.Path(given["path"])
    found: dict[str, object] = {}
    try:
        if not path.is_file():
            raise FinetuneError(f"There is no file {path}.", where="path", change="correct it")
        if wrong := _tables.unreadable(path):
            raise FinetuneError(
                f"{path} cannot be read: {wrong[0]}.",
                where="path",
                change=f"{wrong[1]}; or name a Python that has it with ansible_python_interpreter",
            )
        entry = {key: given[key] for key in ("formatting", "columns", "tags") if given[key]}
        (dataset,) = _dataset.parse([{"path": str(path.absolute()), **entry}], "dataset")
        media = Media(given["media"], [given["media_dir"] or str(path.absolute().parent)], here=True)
        report = _records.check(path, dataset, given["stage"], given["limit"], media)
        found = {
            "records": report.records,
            "faults": [fault._asdict() for fault in report.faults],
            "more": report.more,
            "doubts": list(_records.doubts(report.doubts)),
            "fields": sorted(report.columns),
        }
        _records.refuse(dataset, f"stage {given['stage']}", str(path), report)
    except (FinetuneError, OSError) as error:
        module.fail_json(msg=str(error), **found)
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
