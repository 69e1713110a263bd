# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From an empty account to a trained model and back: a stand-in of AWS whose instances are real hosts.

moto gives instances of a subnet its addresses in their order, from the fifth on, and those of dead ones again. The
second subnet of the network, a /28 that begins at .16, is the hosts from .20 on. What the stand-in tells as their
consoles are their real host keys.
"""

from __future__ import annotations

import shutil
import typing as t
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest

from ..aws import Endpoint
from . import machines
from .conftest import BASE, REPOSITORY, Outcome
from .machines import NAMES, ROOT, STATE, Cluster, adapters, address_of, read, root_sh
from .test_faults import wait_for

REGION = "us-east-1"
KNOWN = BASE / "known_hosts_chain"
STEPS: dict[str, t.Any] = {"max_steps": 300, "save_steps": 10, "logging_steps": 10, "save_total_limit": 3}


def host_at(address: str) -> str:
    return next(host for host in NAMES if address_of(host) == address)


def key_of(host: str) -> str:
    return root_sh(host, "cat /etc/ssh/ssh_host_ed25519_key.pub")


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
            "ec2_count": len(NAMES),
            "ec2_zones": [f"{REGION}b"],
            "ec2_cidr": f"{machines.address(0)}/25",
            "ec2_public_ip": "off",
            "ec2_max_nodes": len(NAMES),
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
                "ANSIBLE_HOST_KEY_CHECKING": "True",  # ansible-runner turns it off
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
        return [host_at(self.nodes()[str(index)]["PrivateIpAddress"]) for index in range(len(NAMES))]


@pytest.fixture(scope="module")
def chain(cluster: Cluster) -> t.Iterator[Chain]:
    endpoint = Endpoint()
    endpoint.start()

    def console(instance: str) -> str:
        ec2 = boto3.client("ec2", region_name=REGION)
        (some,) = ec2.describe_instances(InstanceIds=[instance])["Reservations"]
        (one,) = [one for one in some["Instances"] if one["InstanceId"] == instance]
        key = key_of(host_at(one["PrivateIpAddress"]))
        return f"-----BEGIN SSH HOST KEY KEYS-----\n{key}\n-----END SSH HOST KEY KEYS-----\n"

    endpoint.console = console
    with pytest.MonkeyPatch.context() as known:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            known.delenv(name, raising=False)
        for name, value in endpoint.environment().items():
            known.setenv(name, value)
        KNOWN.unlink(missing_ok=True)
        yield Chain(cluster, endpoint)
    endpoint.stop()


def test_from_an_empty_account_to_a_trained_model_and_back(chain: Chain) -> None:
    made = chain.play("llmops.finetune.provision")
    assert made.rc == 0, made.text
    assert chain.order() == list(NAMES)
    begun = chain.play("train.yml", train_wait=False)
    assert begun.rc == 0, begun.text
    run, order = str(begun.plan["id"]), chain.order()
    assert begun.plan["resolved"]["world_size"] == len(NAMES)
    assert list(begun.plan["nodes"]) == ["demo-000", "demo-001", "demo-002"]
    wait_for(lambda: int(read(order[0], run, "progress.json").get("step", 0)) > 15, 300)
    ranks = [read(host, run, "launch.json")["node_rank"] for host in order]
    assert ranks == [0, 1, 2], "a rank is the index of its instance"

    lost, old = chain.nodes()["1"]["InstanceId"], key_of(order[1])
    boto3.client("ec2", region_name=REGION).terminate_instances(InstanceIds=[lost])
    machines.podman("rm", "--force", "--time", "0", order[1])
    fewer = chain.play("train.yml")
    assert fewer.rc != 0 and "3 hosts have to take part, and 1 do: demo-000" in fewer.message, fewer.text
    shutil.rmtree(STATE / "disks" / order[1] / Path(ROOT).name / "runs" / run)
    machines.replaced(order[1])
    assert key_of(order[1]) != old

    healed = chain.play("llmops.finetune.provision")
    assert healed.rc == 0, healed.text
    tasks = [task.rpartition(" : ")[2] for task in healed.changed]
    assert tasks == ["Fleet | Have the nodes", "Fleet | Know them by their consoles"]
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
