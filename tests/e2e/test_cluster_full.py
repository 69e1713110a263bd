# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Three hosts over ssh, and `train_preflight=full`: all ranks add up together before the run starts."""

from __future__ import annotations

import re
import typing as t
from collections import Counter

import pytest

from . import machines
from .machines import NAMES, ROOT, Cluster, read, sh

FULL = {"train_preflight": "full"}
SHORT: dict[str, t.Any] = {"max_steps": 2, "save_steps": 2, "logging_steps": 1}


def left() -> list[str]:
    """Processes and temp folders of an all-reduce, on all hosts."""
    looks = ("pgrep -f engine.allreduce -a", "find /tmp -maxdepth 1 -name 'llmops-*' -not -name llmops-leases")
    return [line for host in NAMES for look in looks for line in sh(host, look, check=False).splitlines()]


def test_all_hosts_add_up_together_though_they_are_called_one_after_the_other(cluster: Cluster) -> None:
    done = cluster.play("train.yml", "--forks=1", name="full", asked=FULL, **SHORT)
    assert done.rc == 0, done.text
    (line,) = re.findall(r"All-reduce over 3 nodes .*", done.text)
    assert re.fullmatch(
        r"All-reduce over 3 nodes \(3 ranks, gloo, 8 MiB\): bus bandwidth \d+\.\d\d GB/s, algorithm bandwidth "
        r"\d+\.\d\d GB/s(; \d+% of the slowest link's \d+\.\d\d GB/s)?",
        line.strip(),
    ), line
    answers = [one["result"]["allreduce"] for one in done.results if one["action"].endswith("train_allreduce")]
    assert [answer["ok"] for answer in answers] == [True] * 3
    for host, answer in zip(NAMES, answers, strict=True):
        assert read(host, str(done.plan["id"]), "allreduce.json") == answer, "recorded"
    assert answers[0]["bus_bandwidth"] == pytest.approx(4 / 3 * answers[0]["algorithm_bandwidth"])
    assert left() == []
    calls = Counter(done.on_node)
    assert (calls["train_run"], calls["train_allreduce"]) == (9, 3), "staged, compared and started"
    assert sum(calls.values()) - calls["train_run_info"] <= 9 * len(NAMES), "two more than without"
    again = cluster.play("train.yml", name="full", asked=FULL, **SHORT)
    assert (again.rc, again.changed, again.run["state"]) == (0, [], "finished"), again.text
    assert "All-reduce" not in again.text and len(again.on_node) <= 4 * len(NAMES)


def test_large_packets_that_are_lost_between_two_hosts_are_told_with_both(cluster: Cluster) -> None:
    """As where an MTU is too small on the way: whatever is small gets through, so do all tries of ports."""
    rule = f"OUTPUT -p tcp -d {machines.address_of(NAMES[1])} -m length --length 1000:65535 -j DROP"
    sh(NAMES[0], f"iptables -A {rule}")
    try:
        done = cluster.play("train.yml", name="large", asked=FULL, **SHORT)
    finally:
        sh(NAMES[0], f"iptables -D {rule}")
    assert done.rc != 0 and "The nodes do not fit together; nothing was started." in done.message, done.text
    found = re.findall(r"(\S+) +all-reduce +(.*)", done.message)
    assert found == [(NAMES[1], f"1 MiB from {NAMES[0]} did not come within 20 s, though small packets do")]
    assert "MTU" in done.message and "Traceback" not in done.message
    assert left() == []
    assert not any(sh(host, "pgrep -u llmops -a", check=False) for host in NAMES)


def test_torch_that_cannot_be_loaded_on_one_host_is_told_with_it(cluster: Cluster) -> None:
    """As on a disk that is mounted noexec: every byte is that of the lock, and no library can be loaded."""
    (library,) = sh(NAMES[2], f"ls -d {ROOT}/envs/*/lib/python*/site-packages/torch/lib").splitlines()
    sh(NAMES[2], f"mount --bind {library} {library}; mount -o remount,bind,noexec {library}")
    try:
        done = cluster.play("train.yml", name="noexec", asked=FULL, **SHORT)
    finally:
        sh(NAMES[2], f"umount {library}")
    assert done.rc != 0 and "Traceback" not in done.message
    found = re.findall(r"(\S+) +all-reduce +(.*)", done.message)
    assert [host for host, what in found] == [NAMES[2]], done.message
    assert re.match(r"torch cannot be loaded there: (ImportError|OSError): .*\.so", found[0][1])
    assert left() == []
