# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long the playbooks of a fleet on EC2 take, with a stand-in that lets nobody wait."""

from __future__ import annotations

import statistics
import time
import typing as t
from pathlib import Path

from .aws import Endpoint
from .e2e.ec2_site import FLEET, Site
from .unit import ec2_facts

NODES = 8
TIMES = 3
TITLE = ("playbook", "on", "takes")
SIZE: dict[str, t.Any] = {"ec2_count": NODES, "ec2_max_nodes": NODES, "ec2_max_hourly_usd": 200}
PLAYS = (
    ("provision --check", "an empty account"),
    ("provision", "an empty account"),
    ("provision", "the fleet"),
    ("teardown", "the fleet"),
    ("teardown", "an empty account"),
)


def rows(base: Path) -> list[list[str]]:
    endpoint = Endpoint()
    endpoint.start()
    taken: list[list[float]] = [[] for _play in PLAYS]
    try:
        for number in range(TIMES):
            home = base / f"controller-{number}"
            home.mkdir()
            endpoint.reset()
            endpoint.quota, endpoint.console = 9999.0, lambda instance: ec2_facts.console(ec2_facts.key(instance))
            site = Site(endpoint, home)
            for place, (playbook, _on) in enumerate(PLAYS):
                taken[place].append(seconds(site, playbook))
    finally:
        endpoint.stop()
    return [[name, on, f"{statistics.median(times):.1f} s"] for (name, on), times in zip(PLAYS, taken, strict=True)]


def seconds(site: Site, playbook: str) -> float:
    name, *arguments = playbook.split()
    began = time.monotonic()
    done = site.play(f"llmops.finetune.{name}", *arguments, ec2_teardown_confirm=FLEET["ec2_name"], **SIZE)
    if done.rc:
        raise SystemExit(done.text)
    return time.monotonic() - began
