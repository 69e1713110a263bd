#!/usr/bin/python
# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: the disks of a host as one place."""

from __future__ import annotations

DOCUMENTATION = r"""
module: local_disk
short_description: Disks of a host as one place for runs
version_added: 0.1.0
description:
  - Has disks of a host mounted at a folder, below which C(train_root) may be. Several are striped (RAID 0 by mdadm).
    The file system is ext4 with the label V(llmops), and C(/etc/fstab) has a line for it.
  - A disk is written to when it is blank, and never else. One that holds anything of others is refused by name.
  - Disks of an instance's own are blank after it was stopped. The same call makes the place again then; until it is
    made, C(nofail) lets the host start, and nothing should write to the folder.
  - Striping, and disks of real instances, are unproved. Tried on a host was a single disk (a loop device).
author: llmops.finetune contributors (@llmops-finetune)
options:
  mount:
    description: Full path of the folder, which is made. Everybody may make folders in it, as in C(/tmp).
    type: path
    required: true
  devices:
    description: >-
      Whole disks, such as V(/dev/nvme1n1), also those of EBS, or links to them in C(/dev/disk). V(instance_store) is
      all that an EC2 instance has of its own.
    type: list
    elements: str
    default: [instance_store]
extends_documentation_fragment:
  - llmops.finetune.predicted
"""

EXAMPLES = r"""
- name: All NVMe disks of the instance as one
  llmops.finetune.local_disk:
    mount: /data
  become: true
"""

RETURN = r"""
changes:
  description: What was changed, or in check mode would be, as dicts of action and path.
  returned: success
  type: list
  elements: dict
commands:
  description: The commands that were run, or in check mode would be.
  returned: success
  type: list
  elements: str
disks:
  description: The disks that it is made of.
  returned: success
  type: list
  elements: str
"""

import os  # noqa: E402
import shlex  # noqa: E402
import typing as t  # noqa: E402
from pathlib import Path  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

from ..module_utils import _changes, _disks  # noqa: E402
from ..module_utils._errors import FinetuneError  # noqa: E402


def apply(devices: list[str], mount: Path, changes: _changes.Changes) -> dict[str, t.Any]:
    disks = _disks.look()
    occupied = mount.is_dir() and not os.path.ismount(mount) and any(mount.iterdir())
    devices = [os.path.realpath(device) if device.startswith("/") else device for device in devices]
    wanted = _disks.plan(disks, devices, str(mount), occupied=occupied)
    _disks.refuse_without_tools(wanted)
    if not mount.is_dir() and changes.add("create", mount):
        mount.mkdir(parents=True)
    if wanted.commands and changes.add("update", wanted.volume):
        _disks.carry_out(wanted)
        mount.chmod(0o1777)
    table = _disks.FSTAB.read_text(encoding="utf-8") if _disks.FSTAB.exists() else ""
    if table != (new := _disks.fstab(table, str(mount))) and changes.add("update", _disks.FSTAB):
        temporary = _disks.FSTAB.with_name(f".fstab.{os.getpid()}")
        temporary.write_text(new, encoding="utf-8")
        temporary.chmod(0o644)
        os.replace(temporary, _disks.FSTAB)
    commands = [shlex.join(command) for command in wanted.commands]
    return {"changes": changes.made, "commands": commands, "disks": list(wanted.disks)}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "mount": {"type": "path", "required": True},
            "devices": {"type": "list", "elements": "str", "default": [_disks.INSTANCE_STORE]},
        },
        supports_check_mode=True,
    )
    mount = Path(module.params["mount"])
    try:
        if not mount.is_absolute() or mount == Path("/"):
            raise FinetuneError(f"{mount} is no folder for a disk.", where="mount", change="write a full path")
        if os.geteuid() != 0:
            raise FinetuneError("Only root makes and mounts disks.", where="become", change="set become: true")
        answer = apply(module.params["devices"], mount, _changes.Changes(dry=module.check_mode))
    except FinetuneError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**{**answer, **_changes.answer(answer["changes"], module._diff)})


if __name__ == "__main__":
    main()
