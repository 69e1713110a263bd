# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: the results of finished runs, where the login user can read them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: train_fetch
short_description: The results of finished runs on the controller
version_added: 0.1.0
description:
  - Brings what a finished run left in its output folder (checkpoints aside) to the controller, each file held against
    the digest that the supervisor recorded. A file that is there already and right is left alone.
  - The action plugin of the same name moves the files; the node names them, and puts those of another account where the
    login user can read them.
author: llmops.finetune contributors (@llmops-finetune)
options:
  user:
    description: The account that runs belong to. Empty as for M(llmops.finetune.node_info).
    type: str
    default: ""
  root:
    description: Folder on the node that holds the runs.
    type: str
    default: ~/llmops
  id:
    description: The run that is meant; V(*) and V(?) stand for any letters.
    type: str
    default: ""
  name:
    description: Without O(id), every finished run of this name.
    type: str
    default: ""
  to:
    description: Folder on the controller; a folder per run is made in it.
    type: path
  through:
    description: Folder on the node that the login user can read. Set by the action plugin.
    type: str
    default: ""
attributes:
  check_mode:
    description: Predicts RV(changes) and writes nothing.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
  idempotent:
    description: A second call changes nothing.
    support: full
"""

EXAMPLES = r"""
- name: Have the results here
  llmops.finetune.train_fetch:
    name: support
    to: results
  run_once: true
"""

RETURN = r"""
changes:
  description: Files that were written on the controller, or in check mode would be, as dicts of action and path.
  returned: always
  type: list
  elements: dict
runs:
  description: The finished runs that were meant - id, and files by name with path, sha256 and size.
  returned: always
  type: list
  elements: dict
"""

import os  # noqa: E402
import pathlib  # noqa: E402
import shutil  # noqa: E402
import typing as t  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

from ..module_utils import _run, _user  # noqa: E402
from ..module_utils._errors import FinetuneError  # noqa: E402


def readable(path: pathlib.Path, through: pathlib.Path) -> str:
    """The file under another name in a folder of the login user's: linked, or copied from another file system."""
    through.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, through)
    except OSError:
        shutil.copyfile(path, through)
    through.chmod(0o644)
    return str(through)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "user": {"type": "str", "default": ""},
            "root": {"type": "str", "default": "~/llmops"},
            "id": {"type": "str", "default": ""},
            "name": {"type": "str", "default": ""},
            "to": {"type": "path"},
            "through": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    given = module.params
    account = _user.account(given["user"])
    root = pathlib.Path(_user.expand(given["root"], account))
    runs: list[dict[str, t.Any]] = []
    try:
        if _user.exists(account):
            runs = _user.as_user(account, lambda: {"runs": _run.results(root, given["id"], given["name"])})["runs"]
        if given["through"] and not module.check_mode:
            for run in runs:
                for name, file in run["files"].items():
                    file["path"] = readable(pathlib.Path(file["path"]), pathlib.Path(given["through"], run["id"], name))
    except (FinetuneError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, changes=[], runs=runs)


if __name__ == "__main__":
    main()
