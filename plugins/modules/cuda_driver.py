#!/usr/bin/python
# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: NVIDIA's driver on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cuda_driver
short_description: Have NVIDIA's driver on a host, as one locked set, or leave alone the one that works
version_added: 0.1.0
author: llmops.finetune contributors (@llmops-finetune)
description:
  - Looks for NVIDIA's GPUs on the PCI bus. Without any it changes nothing and says so.
  - A driver that somebody else installed and that passes is left alone. It passes when it answers, lists every GPU of
    the bus without a problem that blocks, is new enough for the GPUs and for CUDA 12, and has set up the NVSwitches.
  - Else it installs one set of packages of one version - kernel modules, libraries, nvidia-smi, nvidia-persistenced,
    and fabric manager, NVLSM or IMEX where the GPUs ask for them -, holds it against upgrades, and puts nouveau aside.
  - Refuses, before anything is touched, what cannot work - an unknown system, a GPU that the branch does not drive,
    modules that Secure Boot would not load, a driver of another source that does not pass -, and where a run is on
    the host.
  - A reboot is asked for (RV(reboot)) only where the driver cannot be loaded without; the module never reboots.
  - Was tried on Debian with stand-ins for NVIDIA's packages. No GPU and no repository of NVIDIA's was reached.
options:
  state:
    description: V(verified) installs nothing, and fails where the driver does not pass.
    type: str
    choices: [present, verified]
    default: present
  branch:
    description: Branch of the driver, such as V(580). V(0) for the one that is locked.
    type: int
    default: 0
  version:
    description: Full version, such as V(580.178.04). Empty for the one that is locked.
    type: str
    default: ""
  source:
    description:
      - Whose packages. V(distribution) is Ubuntu's with signed modules, or Debian's from contrib and non-free.
      - V(auto) is V(distribution) on Ubuntu, but for HGX B200 and B300, else V(nvidia).
    type: str
    choices: [auto, nvidia, distribution]
    default: auto
  flavour:
    description: Kernel modules. V(auto) is V(open) but for GPUs before Turing and for O(gsp=false).
    type: str
    choices: [auto, open, proprietary]
    default: auto
  gsp:
    description: Whether the GPU's system processor is used. AWS's images turn it off on g4dn, g5 and g5g.
    type: bool
    default: true
  hold:
    description: What upgrades leave alone.
    type: str
    choices: [driver_and_kernel, driver, nothing]
    default: driver_and_kernel
  key_enrolled:
    description: With Secure Boot, that the key with which DKMS signs modules is enrolled.
    type: bool
    default: false
  toolkit:
    description: Release of the CUDA toolkit, such as V(12.8), for what is compiled on the host. Empty for none.
    type: str
    default: ""
  container_toolkit:
    description: Have NVIDIA's container toolkit.
    type: bool
    default: false
  efa:
    description: Run AWS's installer for EFA, on hosts that have such a device.
    type: bool
    default: false
  efa_version:
    description: Its version. Empty for the one that is locked.
    type: str
    default: ""
  efa_digest:
    description: SHA-256 of its archive, for a version whose digest is not known.
    type: str
    default: ""
  gdrcopy:
    description: Have GDRCopy, from a repository that the host has.
    type: bool
    default: false
  repository:
    description: Address of a mirror of NVIDIA's C(compute/cuda/repos). Empty for NVIDIA's.
    type: str
    default: ""
  repository_pin:
    description: Fingerprint of its key, or C(sha256:) and a digest. Empty for the known one.
    type: str
    default: ""
  container_repository:
    description: Address of a mirror of NVIDIA's C(libnvidia-container). Empty for NVIDIA's.
    type: str
    default: ""
  reboot:
    description: Whether the play reboots the host. Else, and on the host that the play runs on, the module fails then.
    type: bool
    default: true
  controller:
    description: Boot id of the host that the play runs on. Set by the action plugin.
    type: str
    default: ""
  lease_dir:
    description: Where the locks on GPUs are. Empty for the one place of the host.
    type: str
    default: ""
  sysfs:
    description: Where sysfs is. Another folder is a recorded copy, for tests.
    type: path
    default: /sys
  seconds:
    description: How long each tool may take before it is ended.
    type: float
    default: 30
  patience:
    description: How long NVSwitches may take to be set up, in seconds.
    type: float
    default: 180
extends_documentation_fragment:
  - llmops.finetune.predicted
"""

EXAMPLES = r"""
- name: What would be done
  llmops.finetune.cuda_driver:
  check_mode: true
  register: predicted

- name: See it
  ansible.builtin.debug:
    var: predicted.lines
"""

RETURN = r"""
changes:
  description: What was changed, or in check mode would be, as dicts of action and path.
  returned: always
  type: list
  elements: dict
lines:
  description: What the driver is to be and why, for people.
  returned: success
  type: list
  elements: str
state:
  description: V(none) without GPUs, V(kept) for a driver that is left alone, V(managed) for one of this module's.
  returned: success
  type: str
driver:
  description: Version of the driver that answers.
  returned: success
  type: str
reboot:
  description: Why the host has to be rebooted; empty where it has not. In check mode as far as that is known before.
  returned: success
  type: str
torch:
  description:
    - The build of torch that suits the driver and the GPUs best (C(best), empty for none), that of the locked
      environment (C(locked)), and why that one does not run here (C(problem), C(change)).
  returned: success
  type: dict
"""

import os  # noqa: E402
import typing as t  # noqa: E402
from pathlib import Path  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

from ..module_utils import _changes  # noqa: E402
from ..module_utils._cuda import apply, table, torch  # noqa: E402
from ..module_utils._cuda.facts import Wish  # noqa: E402
from ..module_utils._engine import lease  # noqa: E402
from ..module_utils._errors import FinetuneError  # noqa: E402

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def wish(given: t.Mapping[str, t.Any]) -> Wish:
    return Wish(
        given["branch"],
        given["version"],
        "" if given["source"] == "auto" else given["source"],
        "" if given["flavour"] == "auto" else given["flavour"],
        given["gsp"],
        given["hold"],
        given["toolkit"],
        given["container_toolkit"],
        given["efa"],
        given["efa_version"],
        given["efa_digest"],
        given["gdrcopy"],
        given["key_enrolled"],
        given["state"] == "present",
        given["repository"].rstrip("/"),
        given["container_repository"].rstrip("/"),
        given["repository_pin"].replace(" ", ""),
    )


def builds(done: apply.Answer) -> dict[str, str]:
    """Which torch runs, with the driver that answers or is to come."""
    known = [one.capability for one in map(table.generation, (card.device for card in done.facts.cards)) if one]
    driver = done.facts.driver or done.plan.driver or (f"{done.plan.branch}" if done.plan.branch else "")
    if not known or not driver:
        return {"best": "", "locked": table.LOCKED_TORCH, "problem": "", "change": ""}
    problem, change = torch.why_not(table.torch(table.LOCKED_TORCH), driver, known, done.facts.machine)
    return {
        "best": torch.choose(driver, known, done.facts.machine)[0],
        "locked": table.LOCKED_TORCH,
        "problem": problem,
        "change": change,
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "verified"], "default": "present"},
            "branch": {"type": "int", "default": 0},
            "version": {"type": "str", "default": ""},
            "source": {"type": "str", "choices": ["auto", "nvidia", "distribution"], "default": "auto"},
            "flavour": {"type": "str", "choices": ["auto", "open", "proprietary"], "default": "auto"},
            "gsp": {"type": "bool", "default": True},
            "hold": {
                "type": "str",
                "choices": ["driver_and_kernel", "driver", "nothing"],
                "default": "driver_and_kernel",
            },
            "key_enrolled": {"type": "bool", "default": False, "no_log": False},
            "toolkit": {"type": "str", "default": ""},
            "container_toolkit": {"type": "bool", "default": False},
            "efa": {"type": "bool", "default": False},
            "efa_version": {"type": "str", "default": ""},
            "efa_digest": {"type": "str", "default": ""},
            "gdrcopy": {"type": "bool", "default": False},
            "repository": {"type": "str", "default": ""},
            "repository_pin": {"type": "str", "default": ""},
            "container_repository": {"type": "str", "default": ""},
            "reboot": {"type": "bool", "default": True},
            "controller": {"type": "str", "default": ""},
            "lease_dir": {"type": "str", "default": ""},
            "sysfs": {"type": "path", "default": "/sys"},
            "seconds": {"type": "float", "default": 30},
            "patience": {"type": "float", "default": 180},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)
    given = module.params
    changes = _changes.Changes(dry=module.check_mode)
    here = _BOOT.read_text(encoding="ascii").strip() == given["controller"]
    asked = apply.Asked(
        Path(given["sysfs"]),
        given["seconds"],
        given["patience"],
        lease.directory(given["lease_dir"]),
        given["reboot"] and not here,
    )
    try:
        done = apply.present(wish(given), asked, changes)
    except FinetuneError as error:
        module.fail_json(msg=str(error), changed=bool(changes.made), changes=changes.made)
    found = builds(done)
    lines = [*done.plan.lines, *(f"note: {note}" for note in done.plan.notes)]
    if found["problem"]:
        lines.append(
            f"note: torch of the locked environments is {found['locked']}: {found['problem']}; {found['change']}."
        )
    lines += [f"reboot: {done.reboot}"] if done.reboot else []
    module.exit_json(
        **_changes.answer(changes.made, module._diff),
        lines=lines,
        state=done.plan.state,
        driver=done.facts.driver,
        reboot=done.reboot,
        torch=found,
    )


if __name__ == "__main__":
    main()
