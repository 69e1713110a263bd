#!/usr/bin/python
# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: one Python environment on a node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: uv_env
short_description: Make a Python environment on a node exactly what a lock says
version_added: 0.1.0
author: llmops.finetune contributors (@llmops-finetune)
description:
  - Builds one immutable Python environment per lock, in V(<root>/envs/<digest of the lock>), with C(uv).
  - Every apply compares what is installed with the lock, package by package and file by file.
    Damaged packages alone are installed again, packages that are not in the lock are removed, and all are named.
  - An environment whose build was killed has no completion mark; it is never used, but built again.
  - The C(uv) of the controller is copied to the node only when something has to be built. The node needs no C(pip),
    and the environment gets none.
options:
  root:
    description: Folder on the node that holds environments, cache and tools. V(~) is the home of O(user).
    type: str
    default: ~/llmops
  lock:
    description:
      - The lock, a file on the controller that C(uv pip compile --universal --generate-hashes) wrote.
      - An absolute path, a path relative to the playbook, or the name of a file in this collection's C(requirements).
      - Every line is an exact version with hashes. Options in the file, such as an index, are refused.
    type: str
    required: true
  lock_name:
    description: What messages call the lock. By default its file name without the suffix.
    type: str
    default: ""
  build_constraints:
    description:
      - A file like O(lock) that pins what packages without a wheel (DeepSpeed, jieba) are built with. Empty for none.
      - It is no part of the environment's name. Build tools that it does not hold come unpinned.
    type: str
    default: build.txt
  python:
    description:
      - The Python (3.11 to 3.13) on the node to build on. An environment that was built on another one is built again.
      - By default the first that fits of C(python3.11), C(python3.12), C(python3.13), C(python3) in C(/usr/bin),
        C(/usr/local/bin), the C(PATH) and C(~/.local/bin).
    type: str
    default: ""
  user:
    description:
      - Who the environment belongs to. Root becomes this user first; anybody else can only name themselves.
      - By default the login user, or C(llmops) where that is root.
    type: str
    default: ""
  imports:
    description: Modules that must import after a build or a repair, before the environment counts as complete.
    type: list
    elements: str
    default: []
  index_url:
    description: The package index to use instead of the public one.
    type: str
    default: ""
  find_links:
    description: A folder of wheels on the node, for sites without an index. O(build_constraints) must be in it too.
    type: str
    default: ""
  offline:
    description: Use no network. Packages come from O(find_links) and the cache only.
    type: bool
    default: false
  verify:
    description:
      - V(quick) checks every file's presence and size, and the content of files that were written to since the build.
      - V(full) checks the content of every file (about 8 GB for the training environment).
    type: str
    choices: [quick, full]
    default: quick
  state:
    description: V(absent) removes the environment of this lock; the cache stays.
    type: str
    choices: [present, absent]
    default: present
  uv:
    description: The controller's C(uv). Set by the action plugin.
    type: dict
    default: {}
extends_documentation_fragment:
  - llmops.finetune.predicted
"""

EXAMPLES = r"""
- name: The training environment of this collection, every byte of it compared
  llmops.finetune.uv_env:
    lock: node-main.txt
    imports: [torch, llamafactory]
    verify: full
"""

RETURN = r"""
changes:
  description: What was changed, or in check mode would be, as dicts of action and path.
  returned: success
  type: list
  elements: dict
path:
  description: The environment. Its Python is V(<path>/bin/python), returned as C(python).
  returned: success
  type: str
digest:
  description: Digest of the lock, which names the environment.
  returned: success
  type: str
packages:
  description: What the lock installs on this node, version by name; C(python_version) says on which Python.
  returned: with O(state=present)
  type: dict
repaired:
  description: Packages that were installed again or removed, or would be. C(built) is true for a build from nothing.
  returned: success
  type: list
  elements: str
notes:
  description: What is no error but good to know.
  returned: success
  type: list
  elements: str
"""

from urllib.parse import urlsplit  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

from ..module_utils import _changes, _environment  # noqa: E402
from ..module_utils._errors import FinetuneError  # noqa: E402


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "str", "default": "~/llmops"},
            "lock": {"type": "str", "required": True},
            "lock_name": {"type": "str", "default": ""},
            "build_constraints": {"type": "str", "default": "build.txt"},
            "python": {"type": "str", "default": ""},
            "user": {"type": "str", "default": ""},
            "imports": {"type": "list", "elements": "str", "default": []},
            "index_url": {"type": "str", "default": ""},
            "find_links": {"type": "str", "default": ""},
            "offline": {"type": "bool", "default": False},
            "verify": {"type": "str", "choices": ["quick", "full"], "default": "quick"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "uv": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    password = urlsplit(module.params["index_url"]).password
    if password:
        module.no_log_values.add(password)
    try:
        result = _environment.apply(module.params, module.check_mode)
    except FinetuneError as error:
        module.fail_json(msg=error.message())
    for warning in result.pop("warnings"):
        module.warn(warning)
    module.exit_json(**{**result, **_changes.answer(result["changes"], module._diff)})


if __name__ == "__main__":
    main()
