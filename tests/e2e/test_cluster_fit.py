# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Three hosts over ssh that do not fit together, or cannot be worked on: which one, in what, and what to change."""

from __future__ import annotations

import json
import re
import time
import typing as t
from pathlib import Path

import pytest

from . import machines
from .conftest import BASE, Outcome
from .machines import NAMES, ROOT, STEPS, Cluster, First, hosts, left, sh
from .test_faults import wait_for


def refused(cluster: Cluster, name: str, **asked: t.Any) -> Outcome:
    done = cluster.play("train.yml", name=name, asked=asked, **STEPS)
    assert done.rc != 0 and "Traceback" not in done.message
    wait_for(lambda: not any(sh(host, "pgrep -u llmops -a", check=False) for host in NAMES), 20)
    return done


@pytest.mark.parametrize(("ports", "told"), [("29500", "29500"), ("29501:65535", r"\d+")], ids=["rendezvous", "kernel"])
def test_ports_that_are_closed_one_way_are_named_with_both_hosts(
    cluster: Cluster, first: First, ports: str, told: str
) -> None:
    """That of the rendezvous, which is rank 0's; or those that the kernel picks."""
    sh(NAMES[0], f"iptables -A INPUT -p tcp --syn --dport {ports} -s {machines.address_of(NAMES[1])} -j DROP")
    try:
        done = refused(cluster, "closed")
    finally:
        sh(NAMES[0], "iptables -F INPUT")
    assert re.search(rf"{NAMES[1]} +reach +→ {NAMES[0]}: \S+:{told} does not answer", done.message), done.message
    assert len(re.findall("reach +→", done.message)) == 1


def test_a_port_in_use_and_another_run_are_named(cluster: Cluster, first: First) -> None:
    taken = "import socket, time; s = socket.create_server((str(), 29500)); time.sleep(60)"
    sh(NAMES[0], f'setsid python3 -c "{taken}" > /dev/null 2>&1 < /dev/null & echo $! > /tmp/taken')
    time.sleep(1)
    try:
        done = refused(cluster, "port")
    finally:
        sh(NAMES[0], "kill $(cat /tmp/taken)")
    assert "Port 29500 of this node cannot be used" in done.message and "train_port" in done.message


def test_another_lock_on_one_host_is_named(cluster: Cluster, first: First) -> None:
    """A run keeps its environment when the lock moves on; a host that was replaced meanwhile has not got that one."""
    staged = cluster.play("train.yml", name="lock", asked={"train_state": "staged"}, **STEPS)
    assert staged.rc == 0, staged.text
    environment = Path(staged.plan["nodes"][NAMES[1]]["launch"]["python"]).parents[1]
    lock = (cluster.world.clone / "requirements" / "node-main.txt").read_text()
    newer = BASE / "newer.txt"
    newer.write_text(re.sub(r"^yarl==.*\n(?: .*\n)*", "", lock, flags=re.MULTILINE))
    assert newer.read_text() != lock
    sh(NAMES[1], f"mv {environment} {environment}.away")
    try:
        done = refused(cluster, "lock", train_lock=str(newer))
    finally:
        sh(NAMES[1], f"mv {environment}.away {environment}")
    assert f"{environment.name}, which the run was resolved with, is not on this node" in done.message, done.message
    assert next(line["host"] for line in done.results if line["status"] == "failed") == NAMES[1]


def test_another_model_on_one_host_is_named(cluster: Cluster, first: First) -> None:
    made = first.done.plan["nodes"][NAMES[0]]["model"]["path"]
    for host in NAMES:
        sh(host, f"cp -r {made} /srv/model; chmod -R a+rX /srv/model")
    weights = "/srv/model/model.safetensors"
    sh(NAMES[1], f"printf x | dd of={weights} bs=1 seek=$(($(stat -c %s {weights}) - 1)) conv=notrunc status=none")
    done = refused(cluster, "weights", train_model="/srv/model")
    assert re.search(rf"{NAMES[1]} +model +\w+, the others \w+", done.message), done.message
    sh(NAMES[1], 'sed -i \'s/"hidden_size": 128/"hidden_size": 129/\' /srv/model/config.json')
    done = refused(cluster, "config", train_model="/srv/model")
    assert f"The model in /srv/model is not the same on {NAMES[0]} and {NAMES[1]}." in done.message, done.message


# --- the way to a host ---


def test_a_dataset_that_differs_in_a_byte_on_one_host_is_named(cluster: Cluster, first: First) -> None:
    record = json.dumps({"instruction": "Say it.", "output": "It."}) + "\n"
    for host in NAMES:
        sh(host, f"cat > /srv/it.jsonl <<'END'\n{record * 8}END")
    sh(NAMES[2], "sed -i '5s/It/is/' /srv/it.jsonl")
    done = refused(cluster, "byte", train_datasets=[{"path": "/srv/it.jsonl", "name": "it"}])
    assert "Dataset 'it' differs between nodes." in done.message
    told = dict(re.findall(r"(\w+): ([0-9a-f]{12})\b", done.message))
    assert told[NAMES[0]] == told[NAMES[1]] != told[NAMES[2]], done.message


def test_a_full_disk_is_named(cluster: Cluster, first: First) -> None:
    sh(NAMES[1], f"mount -t tmpfs -o size=300m,mode=0777 none {ROOT}/runs")
    try:
        done = refused(cluster, "full")
    finally:
        sh(NAMES[1], f"umount {ROOT}/runs")
    assert re.search(rf"{NAMES[1]} +disk +0\.3 GB free, checkpoints need 1\.1 GB", done.message), done.message
    assert "save_total_limit" in done.message


AHEAD = """
import time
real = time.time
time.time = lambda: real() + 30
"""


def test_a_clock_that_is_off_is_named(cluster: Cluster, first: First) -> None:
    """Injected: containers have the clock of their machine. Python there takes it for half a minute later."""
    wrapper = '#!/bin/sh\nPYTHONPATH=/srv/ahead exec /usr/bin/python3 "$@"\n'
    sh(NAMES[1], f"mkdir -p /srv/ahead; cat > /srv/ahead/sitecustomize.py <<'END'\n{AHEAD}END")
    sh(NAMES[1], f"cat > /usr/local/bin/ahead <<'END'\n{wrapper}END\nchmod 0755 /usr/local/bin/ahead")
    done = cluster.play(
        "train.yml", name="clock", of={NAMES[1]: {"ansible_python_interpreter": "/usr/local/bin/ahead"}}
    )
    assert done.rc != 0 and re.search(rf"{NAMES[1]} +clock +30\.\d s ahead", done.message), done.message
    assert "chrony" in done.message and len(re.findall(" clock ", done.message)) == 1


def test_a_host_that_another_run_has_is_named(cluster: Cluster, first: First) -> None:
    other = cluster.play("train.yml", name="other", order=NAMES[2:], asked={"train_wait": False}, **STEPS)
    assert other.rc == 0, other.text
    try:
        done = cluster.play("train.yml", name="third", **STEPS)
    finally:
        stopped = cluster.play("llmops.finetune.stop", name="other", order=NAMES[2:])
    assert done.rc != 0 and str(other.plan["id"]) in done.message and NAMES[2] in done.message, done.message
    assert stopped.rc == 0 and left() == [], stopped.text


def test_a_host_without_power_is_named(cluster: Cluster, first: First) -> None:
    assert hosts("kill", NAMES[1]).returncode == 0
    try:
        done = cluster.play("train.yml", name="dead", of={NAMES[1]: {"ansible_ssh_timeout": 3}}, **STEPS)
    finally:
        on = hosts("start", NAMES[1])
    assert on.returncode == 0, on.stderr
    assert done.rc != 0 and NAMES[1] in done.message and "does not answer" in done.message, done.message
    assert left() == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"ansible_user": "nobody-there"}, "does not let nobody-there in"),
        ({"ansible_ssh_private_key_file": "/no/such/key"}, "There is no key /no/such/key"),
        (
            {"ansible_host": machines.address(99), "ansible_ssh_timeout": 3},
            f"does not answer at {machines.address(99)}",
        ),
        ({"ansible_port": 2222}, "nothing listens for ssh"),
        ({"ansible_python_interpreter": "/opt/no/python3"}, f"There is no Python on {NAMES[1]}"),
    ],
)
def test_a_host_that_cannot_be_worked_on_is_told_with_its_remedy(
    cluster: Cluster, change: dict[str, t.Any], expected: str
) -> None:
    done = cluster.play("llmops.finetune.plan", name="way", of={NAMES[1]: change})
    assert done.rc != 0 and expected in done.message, done.message
    assert "change:" in done.message and "Traceback" not in done.message


def test_a_login_without_sudo_is_told_so(cluster: Cluster) -> None:
    sh(NAMES[1], "mv /etc/sudoers.d/90-login /var/")
    try:
        done = cluster.play("llmops.finetune.plan", name="way")
    finally:
        machines.root_sh(NAMES[1], "mv /var/90-login /etc/sudoers.d/")
    assert done.rc != 0 and f"admin may not become root on {NAMES[1]}" in done.message, done.text


def test_a_login_that_may_not_use_sudo_trains_in_a_folder_of_its_own(cluster: Cluster, first: First) -> None:
    for host in NAMES:
        folder = "mkdir -p /data/own/cache; cp -al /data/llmops/cache/uv /data/own/cache/uv; chown admin /data/own"
        mine = "rm -f uv/sdists-v*/.git; find . -type d -exec chmod 0777 {} +"  # uv writes to that file and to folders
        sh(host, f"{folder}; cd /data/own/cache; {mine}; mv /etc/sudoers.d/90-login /var/")
    try:
        asked = {"train_user": "", "train_root": "/data/own"}
        done = cluster.play("train.yml", name="own", asked=asked, **{**STEPS, "max_steps": 4})
    finally:
        for host in NAMES:
            machines.root_sh(host, "mv /var/90-login /etc/sudoers.d/")
    assert done.rc == 0, done.text
    for rank, host in enumerate(NAMES):
        found = sh(host, f"stat -c %U /data/own/runs/{done.plan['id']}/logs/memory-rank{rank}.json")
        assert found == "admin" and not sh(host, "pgrep -u admin -f engine", check=False)
