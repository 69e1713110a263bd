#!/usr/bin/python
# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: which GPUs a host has, what is wrong with them, and whether they work."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_info
short_description: Which GPUs a host has, what is wrong with them, and whether they work
version_added: 0.1.0
description:
  - Reads what C(nvidia-smi) tells of NVIDIA's GPUs, or NVML where C(nvidia-ml-py) is installed without it, else what
    the PCI bus tells - a GPU whose driver is missing is a fact and not an error. Accelerators of AMD and Huawei are
    named.
  - A driver that is broken or hangs, a GPU that fell off the bus or is in MIG mode without slices, faulty memory and
    the like are told in RV(problems), each with a remedy.
  - With O(verify) the GPUs are tried out as well, by the torch of an environment. This fails where one of them does.
  - Needs no other part of this collection, no root, no facts and no package on the host. Without root it may not see
    the kernel's log (RV(kernel_log)) or the names of other accounts' processes.
  - Its parsers were written after published outputs of the tools, for drivers 535 to 595. O(verify) was run on CPUs
    alone so far - that copies between GPUs are compared as they should is unproved.
author: llmops.finetune contributors (@llmops-finetune)
options:
  root:
    description: Folder of runs and environments, whose file system is told. V(~) is the home of the account.
    type: str
    default: ~/llmops
  user:
    description: The account that runs belong to. Empty for the login user; for root, the account V(llmops).
    type: str
    default: ""
  lease_dir:
    description: Where the locks on GPUs are. Empty for the one place of the host.
    type: str
    default: ""
  seconds:
    description: How long each tool may take before it is ended.
    type: float
    default: 30
  verify:
    description:
      - Make a CUDA context on each GPU or MIG slice, write and read its memory, multiply in 32 and 16 bits and compare
        with the CPU; then copy between each two GPUs and compare the bytes.
      - GPUs that a run holds are left alone. The others are held meanwhile, but not in check mode.
    type: bool
    default: false
  environment:
    description:
      - Folder with C(bin/python) and torch to verify with. Empty for that of the newest run below O(root), else the
        newest environment there.
    type: str
    default: ""
  verify_share:
    description: How much of its free memory is written on each GPU, as a share.
    type: float
    default: 0.8
  verify_mib:
    description: How much is written instead, in MiB. V(0) for O(verify_share).
    type: int
    default: 0
  verify_seconds:
    description: How long the GPUs may take, and then their pairs. What is not done by then has failed.
    type: float
    default: 120
extends_documentation_fragment:
  - llmops.finetune.attributes
"""

EXAMPLES = r"""
- name: What GPUs are there
  llmops.finetune.gpu_info:
  register: found

- name: See it as lines
  ansible.builtin.debug:
    var: found.lines

- name: Try them out, on half of what is free
  llmops.finetune.gpu_info:
    verify: true
    verify_share: 0.5
    environment: /opt/venv
"""

RETURN = r"""
lines:
  description: GPUs and problems, for people.
  returned: always
  type: list
  elements: str
source:
  description: What told of NVIDIA's GPUs - V(nvidia-smi), V(query) for its short form, V(nvml), V(pci). Empty for none.
  returned: always
  type: str
driver:
  description: Version of NVIDIA's driver.
  returned: always
  type: str
cuda:
  description: The latest CUDA that it runs.
  returned: always
  type: str
devices:
  description:
    - What runs can have, one rank each - GPUs, and in the place of those in MIG mode their slices. C(memory) and
      C(memory_free) are in bytes, 0 where the driver does not tell.
  returned: always
  type: list
  elements: dict
  sample:
    - compute_capability: 9.0
      driver: 580.105.08
      index: 0
      memory: 85520809984
      memory_free: 84942684160
      name: NVIDIA H100 80GB HBM3
      uuid: GPU-5f5f0c9e-0000-0000-0000-000000000000
gpus:
  description: NVIDIA's GPUs that the driver lists. What it does not tell is null.
  returned: always
  type: list
  elements: dict
  contains:
    index:
      description: Number of C(nvidia-smi).
      type: int
    uuid:
      description: What names it for ever.
      type: str
    name:
      description: Its name.
      type: str
    pci:
      description: Its address on the bus.
      type: str
    numa_node:
      description: Node of the host's memory that it is at.
      type: int
    architecture:
      description: Its generation.
      type: str
    compute_capability:
      description: CUDA's number for what it can do, 0 where unknown.
      type: float
    memory:
      description: In bytes, as C(memory_free), C(memory_used) and C(memory_reserved), which is the driver's own part.
      type: int
    memory_mib:
      description: The same in MiB, as C(nvidia-smi) shows it.
      type: int
    mig:
      description: Whether it is in MIG mode. C(mig_pending) is what it is to be after a reset.
      type: bool
    slices:
      description: MIG slices, with index, profile, uuid, memory and memory_free in bytes.
      type: list
      elements: dict
    ecc:
      description: Whether memory errors are corrected, and their counts since the driver started and ever.
      type: dict
    rows:
      description: Rows of memory that were replaced, are to be at the next reset, or could not be.
      type: dict
    xids:
      description: The driver's error numbers in the kernel's log since the boot, oldest first.
      type: list
      elements: int
    power:
      description: Draw, limit, default and most, in watts.
      type: dict
    heat:
      description: Temperature now and where it slows and stops, or its margin, in degrees Celsius.
      type: dict
    pcie:
      description: Generation and lanes of its slot, now (a GPU at rest lowers them) and at best.
      type: dict
    fabric:
      description: State of its way into NVSwitches; empty without.
      type: str
    compute_mode:
      description: Empty, or how it refuses programs.
      type: str
    recovery:
      description: What the driver asks for, such as V(Reset); empty for nothing.
      type: str
    processes:
      description: Those that use it, with pid, name, kind and memory in bytes.
      type: list
      elements: dict
    lease:
      description: Which run, user and process of this collection hold it; empty for none.
      type: dict
    lost:
      description: What the driver says instead of values; empty for a GPU that answers.
      type: str
peers:
  description:
    - Each pair of GPUs by index, its way as in C(nvidia-smi topo -m) (V(NV18) for 18 NVLinks, V(PIX) to V(SYS) for
      PCIe), and its number of NVLinks.
  returned: always
  type: list
  elements: dict
nvswitches:
  description: NVSwitches on the PCI bus. Those of HGX B200 and later do not show there.
  returned: always
  type: int
fabric_manager:
  description: State of the service nvidia-fabricmanager; empty where it is not needed.
  returned: always
  type: str
kernel_log:
  description: Whether the kernel's log could be read.
  returned: always
  type: bool
others:
  description: Accelerators of other makers, with vendor, index, name, memory in bytes. Runs do not use them.
  returned: always
  type: list
  elements: dict
problems:
  description: >-
    What is wrong (C(what)), what helps (C(change)), the GPU's PCI address (C(device)), and whether nothing can be
    trained on it (C(blocks)).
  returned: always
  type: list
  elements: dict
host:
  description:
    - Processors, memory, disks, the file system of O(root) (all sizes in bytes), interfaces (speed in Mbit/s), devices
      for RDMA, how many of them are EFA, kernel and system.
  returned: always
  type: dict
verified:
  description: With O(verify), each step with gpu, what, ok (null where it was not done), why, and figures.
  returned: when O(verify) is set
  type: list
  elements: dict
"""

import os  # noqa: E402
import typing as t  # noqa: E402
from dataclasses import asdict  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

from ..module_utils import _host, _user  # noqa: E402
from ..module_utils._engine import lease  # noqa: E402
from ..module_utils._errors import FinetuneError  # noqa: E402
from ..module_utils._gpu import describe, detect, verify  # noqa: E402


def facts(report: detect.Report, holders: dict[str, dict[str, t.Any]], root: str) -> dict[str, t.Any]:
    return {
        "lines": describe.lines(report, holders),
        "source": report.source,
        "driver": report.driver,
        "cuda": report.cuda,
        "devices": report.devices(),
        "gpus": [
            {
                **asdict(gpu),
                "memory_mib": gpu.memory_mib,
                "lease": holders.get(gpu.uuid, {}),
                "slices": [{**asdict(one), "lease": holders.get(one.uuid, {})} for one in gpu.slices],
            }
            for gpu in report.gpus
        ],
        "peers": [{**asdict(peer), "nvlinks": peer.nvlinks} for peer in report.peers],
        "nvswitches": report.switches,
        "fabric_manager": report.manager,
        "kernel_log": report.log,
        "others": [asdict(other) for other in report.others],
        "problems": [problem._asdict() for problem in report.problems],
        "host": _host.facts(root),
    }


def tried(
    given: dict[str, t.Any], devices: list[dict[str, t.Any]], root: str, account: str, *, hold: bool
) -> list[verify.Row]:
    """hold: take the leases of what is tried out."""
    if not devices:
        raise FinetuneError(
            "There is no GPU to try out.", where="verify", change="see `problems`; leave verify out on hosts without"
        )
    source = verify.job()
    place = lease.directory(given["lease_dir"])

    def work() -> dict[str, t.Any]:
        path = verify.environment(given["environment"], root)
        held: dict[str, str] = {}
        kept: list[int] = []
        holder = {"run": "gpu_info", "user": account, "pid": os.getpid()}
        there = lease.holders([one["uuid"] for one in devices], place)
        for one in devices:
            try:
                if one["uuid"] in there:
                    raise lease.Held(one["uuid"], there[one["uuid"]])
                kept += lease.acquire([one["uuid"]], holder, place) if hold else []
            except lease.Held as taken:
                held[one["uuid"]] = str(taken)
        try:
            rows = verify.verify(
                devices,
                held,
                f"{path}/bin/python",
                source,
                share=given["verify_share"],
                size=given["verify_mib"] << 20,
                seconds=given["verify_seconds"],
            )
        finally:
            for descriptor in kept:
                os.close(descriptor)
        return {"rows": [row.as_dict() for row in rows]}

    return [verify.Row(**row) for row in _user.as_user(account, work)["rows"]]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "str", "default": "~/llmops"},
            "user": {"type": "str", "default": ""},
            "lease_dir": {"type": "str", "default": ""},
            "seconds": {"type": "float", "default": 30},
            "verify": {"type": "bool", "default": False},
            "environment": {"type": "str", "default": ""},
            "verify_share": {"type": "float", "default": 0.8},
            "verify_mib": {"type": "int", "default": 0},
            "verify_seconds": {"type": "float", "default": 120},
        },
        supports_check_mode=True,
    )
    given = module.params
    found: dict[str, t.Any] = {}
    try:
        check(given)
        account = _user.account(given["user"])
        root = _user.expand(given["root"], account)
        if account == _user.DEFAULT_ACCOUNT and not _user.exists(account):
            account = _user.login()
        report = detect.look(given["seconds"])
        devices = report.devices()
        keys = [*(gpu.uuid for gpu in report.gpus if gpu.uuid), *(one["uuid"] for one in devices if "slice" in one)]
        found = facts(report, lease.holders(keys, lease.directory(given["lease_dir"])), root)
        if given["verify"]:
            rows = tried(given, devices, root, account, hold=not module.check_mode)
            found["verified"] = [row.as_dict() for row in rows]
            found["lines"] = [*found["lines"], *verify.table(rows)]
            verify.refuse(rows)
    except FinetuneError as error:
        module.fail_json(msg=str(error), **found)
    module.exit_json(changed=False, **found)


def check(given: dict[str, t.Any]) -> None:
    for name, least, most in (("seconds", 0.1, 3600), ("verify_seconds", 1, 86400), ("verify_share", 0.01, 0.95)):
        if not least <= given[name] <= most:
            raise FinetuneError(
                f"{name} is {given[name]:g}.", where=name, change=f"use a number from {least:g} to {most:g}"
            )
    if given["verify_mib"] < 0:
        raise FinetuneError(
            f"verify_mib is {given['verify_mib']}.", where="verify_mib", change="use a number of MiB, or 0"
        )


if __name__ == "__main__":
    main()
