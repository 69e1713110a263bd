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
  to:
    description: Folder on the controller; a folder per run is made in it.
    type: path
  through:
    description: Folder on the node that the login user owns, for O(files). Set by the action plugin.
    type: str
    default: ""
  files:
    description: Files as C(<run id>/<name>) to copy to O(through), where they are the login user's. Set by the action
      plugin.
    type: list
    elements: str
    default: []
extends_documentation_fragment:
  - llmops.finetune.runs
attributes:
  check_mode:
    description: Predicts RV(changes) and writes nothing.
    support: full
  diff_mode:
    description: Shows RV(changes), one a line.
    support: partial
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
files:
  description: What the finished runs that were meant left, by C(<run id>/<name>) - path, sha256 and size.
  returned: always
  type: dict
"""

import os  # noqa: E402
import pathlib  # noqa: E402
import shutil  # noqa: E402
import typing as t  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

from ..module_utils import _run, _user  # noqa: E402
from ..module_utils._errors import FinetuneError  # noqa: E402


def lend(path: pathlib.Path, place: pathlib.Path, name: str) -> str:
    """A copy that belongs to whom the place belongs to: the original, its mode and its times stay as they are."""
    owner = place.stat()
    target = place / name
    for folder in reversed([folder for folder in target.parents if place in folder.parents and not folder.exists()]):
        folder.mkdir(mode=0o700)
        os.chown(folder, owner.st_uid, owner.st_gid)
    shutil.copyfile(path, target)
    os.chown(target, owner.st_uid, owner.st_gid)
    return str(target)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **_run.OPTIONS,
            "to": {"type": "path"},
            "through": {"type": "str", "default": ""},
            "files": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    given = module.params
    account = _user.account(given["user"])
    root = pathlib.Path(_user.expand(given["root"], account))
    left: dict[str, dict[str, t.Any]] = {}
    try:
        if _user.exists(account):
            left = _user.as_user(account, lambda: _run.results(root, given["id"], given["name"]))
        for name in given["files"]:
            left[name]["path"] = lend(pathlib.Path(left[name]["path"]), pathlib.Path(given["through"]), name)
    except (FinetuneError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, changes=[], files=left)


if __name__ == "__main__":
    main()
