# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ray on two of three hosts over ssh: up, proved by an all-reduce, back after a lost host, and down again."""

from __future__ import annotations

import json
import subprocess
import typing as t
from dataclasses import dataclass

import pytest

from .conftest import Outcome
from .machines import NAMES, ROOT, STATE, Cluster, address_of, hosts, left, sh

HEAD, WORKER = NAMES[:2]
FOLDER = f"{ROOT}/ray"
LOCK = {"uv_env_lock": "node-ray.txt", "uv_env_imports": ["torch", "ray"]}
JOB = """
import json, ray
from ray.util.state import list_nodes
ray.init(log_to_driver=False, logging_level="ERROR")
print(json.dumps({node["node_ip"]: node["is_head_node"] for node in list_nodes()}))
"""


def ray(cluster: Cluster, *arguments: str, **asked: t.Any) -> Outcome:
    return cluster.play("llmops.finetune.ray", *arguments, name="ray", order=(HEAD, WORKER), asked=asked)


def proof(done: Outcome) -> dict[str, t.Any]:
    return next(line["result"] for line in done.results if "workers" in line["result"])


def job(prepare: str) -> str:
    """What a job on the head says, for a shell of Ray's account that was prepared so."""
    done = hosts("ssh", HEAD, f"sudo -u llmops sh -c '. {FOLDER}/activate; {prepare}; exec python -'", typed=JOB)
    return (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()[-1]


@dataclass
class Ray:
    predicted: Outcome
    done: Outcome
    again: Outcome


@pytest.fixture(scope="module")
def up(cluster: Cluster) -> Ray:
    """Packages that the demo does not have are fetched here, and put with the others where hosts are offline."""
    if cluster.offline:
        made = cluster.world.play("llmops.finetune.environment", variables=LOCK)
        assert made.rc == 0, made.text
        for host in (HEAD, WORKER):
            disk = STATE / "disks" / host
            subprocess.run(["cp", "-aln", cluster.world.root / "cache" / "uv", disk / "llmops" / "cache"], check=True)
            subprocess.run(["find", disk / "llmops", "-type", "d", "-exec", "chmod", "0777", "{}", "+"], check=True)
    predicted = ray(cluster, "--check")
    done = ray(cluster)
    assert done.rc == 0, done.text
    return Ray(predicted, done, ray(cluster))


def test_nodes_sum_a_tensor_together(up: Ray) -> None:
    workers = proof(up.done)["workers"]
    assert [one["address"] for one in workers] == [address_of(HEAD), address_of(WORKER)], "the head is the first host"
    assert {(one["least"], one["most"]) for one in workers} == {(3.0, 3.0)}


def test_check_mode_predicts_it_and_a_second_apply_changes_nothing(up: Ray) -> None:
    assert (up.predicted.rc, up.predicted.changes) == (0, up.done.changes), up.predicted.text
    assert (up.again.rc, up.again.changed) == (0, []), up.again.text
    assert len(up.again.on_node) <= 2 * 4


def test_a_job_needs_the_token_and_nobody_else_has_it(up: Ray) -> None:
    assert json.loads(job(":")) == {address_of(HEAD): True, address_of(WORKER): False}
    assert "ConnectionError" in job("unset RAY_AUTH_MODE RAY_AUTH_TOKEN_PATH")
    tokens = {sh(host, f"cat {FOLDER}/token") for host in (HEAD, WORKER)}
    assert len(tokens) == 1 and len(token := tokens.pop()) == 64
    assert sh(HEAD, f"stat -c '%a %U' {FOLDER} {FOLDER}/token") == "700 llmops\n600 llmops"
    assert not any(token in done.text for done in (up.predicted, up.done, up.again)), "said by -vvv"
    assert sh(HEAD, f"grep -rlsF {token} /etc /proc/[0-9]*/cmdline {ROOT}/ray", check=False) == f"{FOLDER}/token"


def test_the_dashboard_is_for_the_head_alone(up: Ray) -> None:
    assert sh(HEAD, "ss -Hltn sport = :8265 | awk '{print $4}'") == "127.0.0.1:8265"


def test_a_head_that_lost_its_power_and_a_node_that_was_stopped_are_back(cluster: Cluster, up: Ray) -> None:
    hosts("kill", HEAD)
    assert hosts("start", HEAD).returncode == 0
    back = ray(cluster)
    assert (back.rc, back.changed) == (0, []), back.text
    sh(WORKER, "systemctl stop llmops-ray")
    predicted = ray(cluster, "--check")
    back = ray(cluster)
    assert back.rc == 0 and len(proof(back)["workers"]) == 2
    assert back.changes == predicted.changes == [("start", FOLDER)]


def test_absent_leaves_nothing(cluster: Cluster, up: Ray) -> None:
    predicted = ray(cluster, "--check", ray_state="absent")
    done = ray(cluster, ray_state="absent")
    assert done.rc == 0 and done.changes == predicted.changes
    assert left() == []
    assert [sh(host, f"ls -d {FOLDER} /dev/shm/*", check=False) for host in (HEAD, WORKER)] == ["", ""]
    assert ray(cluster, ray_state="absent").changed == []
