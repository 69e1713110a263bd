# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From an empty account to a trained model and back: a stand-in of AWS whose instances are real hosts.

moto gives instances of a subnet its addresses in their order, from the fifth on, and those of dead ones again. So a
/29 that begins at .8 is three hosts, from .12 on. What the stand-in tells as their consoles are their real host keys.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

import boto3
import pytest

from ..aws import Endpoint
from . import machines
from .conftest import BASE, REPOSITORY, Outcome
from .machines import ROOT, STATE, Cluster, adapters, hosts, read, root_sh, sh
from .test_faults import wait_for

REGION = "us-east-1"
NODES = 3
KNOWN = BASE / "known_hosts_chain"
STEPS: dict[str, t.Any] = {"max_steps": 300, "save_steps": 10, "logging_steps": 10, "save_total_limit": 3}


def host_at(address: str) -> str:
    return f"{machines.PREFIX}{int(address.rpartition('.')[2]) - 10}"


@dataclass
class Chain:
    """What a user types, with AWS led to the stand-in."""

    cluster: Cluster
    endpoint: Endpoint

    def play(self, playbook: str, **variables: t.Any) -> Outcome:
        world = self.cluster.world
        fleet = {
            "ec2_name": "demo",
            "ec2_region": REGION,
            "ec2_instance_type": "g5.xlarge",
            "ec2_count": NODES,
            "ec2_zones": [f"{REGION}a"],
            "ec2_cidr": f"{machines.address(8)}/29",
            "ec2_public_ip": "off",
            "ec2_max_nodes": NODES,
            "ec2_max_hourly_usd": 10,
            "ec2_ssh_cidrs": [f"{machines.address(1)}/32"],
            "ec2_ssh_public_key": (STATE / "id_ed25519.pub").read_text().strip(),
            "ec2_known_hosts": str(KNOWN),
            "ec2_teardown_retries": 1,
        }
        login = {
            "ansible_user": "admin",
            "ansible_ssh_private_key_file": str(STATE / "id_ed25519"),
            "ansible_ssh_common_args": "-o StrictHostKeyChecking=yes -o HostKeyAlias={{ inventory_hostname }} "
            f"-o UserKnownHostsFile={KNOWN}",
        }
        on_nodes = playbook == "train.yml"
        given = {**machines.variables("chain", ROOT, offline=self.cluster.offline), **login} if on_nodes else fleet
        return world.play(
            playbook,
            variables={**given, **variables},
            inventory=world.clone / "inventories" / ("ec2.aws_ec2.yml" if on_nodes else "local.yml"),
            environment={
                **self.endpoint.environment(),
                "AWS_REGION": REGION,
                "ANSIBLE_COLLECTIONS_PATH": f"{world.clone}/collections:{REPOSITORY}/collections",
            },
            **STEPS,
        )

    def nodes(self) -> dict[str, dict[str, t.Any]]:
        """Instance by index, as AWS tells it."""
        found = boto3.client("ec2", region_name=REGION).describe_instances(
            Filters=[{"Name": "instance-state-name", "Values": ["running"]}]
        )
        instances = [one for some in found["Reservations"] for one in some["Instances"]]
        return {tag["Value"]: one for one in instances for tag in one["Tags"] if tag["Key"] == "llmops_index"}

    def order(self) -> list[str]:
        """Hosts by the index of their instances."""
        return [host_at(self.nodes()[str(index)]["PrivateIpAddress"]) for index in range(NODES)]


@pytest.fixture(scope="module")
def chain(cluster: Cluster) -> t.Iterator[Chain]:
    up = hosts("up", str(NODES + 1))
    assert up.returncode == 0, up.stderr
    machines.give_packages(cluster.world, f"{machines.PREFIX}{NODES + 1}", ROOT)
    endpoint = Endpoint()
    endpoint.start()

    def console(instance: str) -> str:
        ec2 = boto3.client("ec2", region_name=REGION)
        (some,) = ec2.describe_instances(InstanceIds=[instance])["Reservations"]
        key = root_sh(host_at(some["Instances"][0]["PrivateIpAddress"]), "cat /etc/ssh/ssh_host_ed25519_key.pub")
        return f"-----BEGIN SSH HOST KEY KEYS-----\n{key}\n-----END SSH HOST KEY KEYS-----\n"

    endpoint.console = console
    with pytest.MonkeyPatch.context() as known:
        for name, value in endpoint.environment().items():
            known.setenv(name, value)
        yield Chain(cluster, endpoint)
    endpoint.stop()


def test_from_an_empty_account_to_a_trained_model_and_back(chain: Chain) -> None:
    made = chain.play("llmops.finetune.provision")
    assert made.rc == 0, made.text
    begun = chain.play("train.yml", train_wait=False)
    assert begun.rc == 0, begun.text
    run, order = str(begun.plan["id"]), chain.order()
    assert begun.plan["resolved"]["world_size"] == NODES
    assert list(begun.plan["nodes"]) == ["demo-000", "demo-001", "demo-002"]
    wait_for(lambda: int(read(order[0], run, "progress.json").get("step", 0)) > 15, 300)
    assert machines.ranks(run, order) == [[0], [1], [2]], "a rank is the index of its instance"

    lost = chain.nodes()["1"]["InstanceId"]
    boto3.client("ec2", region_name=REGION).terminate_instances(InstanceIds=[lost])
    hosts("kill", order[1])
    fewer = chain.play("train.yml")
    assert fewer.rc != 0, "a run does not go on without a node"
    hosts("start", order[1])
    sh(order[1], f"rm -rf {ROOT}/runs {ROOT}/datasets; ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/new -C new")
    sh(order[1], "cd /etc/ssh && mv new ssh_host_ed25519_key && mv new.pub ssh_host_ed25519_key.pub")
    sh(order[1], "systemctl restart ssh")

    healed = chain.play("llmops.finetune.provision")
    assert healed.rc == 0 and healed.changed, healed.text
    assert chain.nodes()["1"]["InstanceId"] != lost and chain.order() == order
    done = chain.play("train.yml")
    assert done.rc == 0, done.text
    assert done.run["state"] == "finished" and done.plan["id"] == run, "the same run"
    assert machines.ranks(run, order) == [[0], [1], [2]]
    assert len(adapters(run, order)) == 1
    again = chain.play("train.yml")
    assert again.rc == 0 and again.changed == []

    ended = chain.play("llmops.finetune.teardown", ec2_teardown_confirm="demo")
    assert ended.rc == 0 and ended.changed, ended.text
    twice = chain.play("llmops.finetune.teardown", ec2_teardown_confirm="demo")
    assert twice.rc == 0 and twice.changed == [] and chain.nodes() == {}
