# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts with GPUs as `_cuda` sees them, and what is decided for them."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._cuda import plan
from ansible_collections.llmops.finetune.plugins.module_utils._cuda.facts import Facts, Plan, Wish
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.module_utils._gpu.card import Problem
from ansible_collections.llmops.finetune.plugins.module_utils._gpu.pci import Card

M60, P40, P100, V100, T4, T4G = "13f2", "1b38", "15f8", "1db1", "1eb8", "1eb4"
A100, A10G, L4, L40S, H100, H200 = "20b2", "2237", "27b8", "26b9", "2330", "2335"
B200, B300, RTX, RTX_4500, GB200, GB300, GB10 = "2901", "3182", "2bb5", "2c31", "2941", "31c2", "2e12"
MIRROR = "http://mirror.example/debian"
SILENT = Problem("8 GPUs are there, and no driver has it.", "install NVIDIA's driver", blocks=True)
KERNELS = {"ubuntu": "6.8.0-1021-aws", "debian": "6.1.0-35-cloud-amd64", "amzn": "6.12.40-64.114.amzn2023.x86_64"}


def cards(*devices: str, driver: str = "") -> tuple[Card, ...]:
    return tuple(Card(f"0000:{16 + number:x}:00.0", "10de", one, "0302", driver) for number, one in enumerate(devices))


def host(*devices: str, system: str = "debian 12", switches: int = 0, **known: t.Any) -> Facts:
    name, version = system.split()
    kernel = known.pop("kernel", KERNELS.get(name, "5.14.0-503.el9.x86_64"))
    return Facts(name, version, kernel=kernel, cards=cards(*devices), switches=switches, problems=(SILENT,), **known)


def decided(facts: Facts, **asked: t.Any) -> Plan:
    return plan.decide(facts, Wish(**asked))


def names(made: Plan) -> list[str]:
    return [package.name for package in made.packages]


def refused(facts: Facts, **asked: t.Any) -> FinetuneError:
    with pytest.raises(FinetuneError) as error:
        decided(facts, **asked)
    return error.value
