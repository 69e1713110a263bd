# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules that tell of EC2 and change nothing there: types, what is left of a fleet, host keys."""

from __future__ import annotations

import stat
import typing as t
from pathlib import Path

import boto3
import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.llmops.finetune.plugins.module_utils._ec2 import belongings, client
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.modules import ec2_gpu_type_info, ec2_host_keys

from ..aws import Request
from ..unit.ec2_facts import console, key
from .ec2 import REGION, Account
from .ec2_site import Site


def ask(**given: t.Any) -> list[dict[str, t.Any]]:
    checked = ArgumentSpecValidator(ec2_gpu_type_info.OPTIONS).validate({"region": REGION, **given})
    assert not checked.error_messages
    return ec2_gpu_type_info.run(checked.validated_parameters)


def test_what_a_type_has_where_it_is_and_what_it_costs(account: Account) -> None:
    (told,) = ask(types=["p5.48xlarge"])
    assert (told["gpu"], told["gpus"], told["gpu_mib"], told["cards"], told["efa"]) == ("H100", 8, 81920, 32, 32)
    assert (told["quota_code"], told["quota_vcpus"], told["used_vcpus"]) == ("L-417A185B", 768, 0)
    assert (told["price_usd"], told["price_source"]) == (2.5, "AWS, list")
    assert told["zones"] and all(zone.startswith(REGION) for zone in told["zones"])
    account.apply(count=2)
    (told,) = ask(types=["g5.xlarge"])
    assert told["used_vcpus"] == 8 and account.endpoint.sent("GetProducts")


def test_what_aws_does_not_tell_is_nothing(account: Account) -> None:
    account.endpoint.price = account.endpoint.quota = None
    (told,) = ask(types=["p3dn.24xlarge"], market="spot", prices=False)
    assert told["price_usd"] is None and told["quota_vcpus"] is None
    with pytest.raises(FinetuneError, match=r"no instance type p9\.huge"):
        ask(types=["p9.huge"])
    with pytest.raises(FinetuneError, match="no NVIDIA GPU"):
        ask(types=["m5.large"])


def learn(path: Path, *, check: bool = False, **given: t.Any) -> tuple[bool, list[str]]:
    asked = {"region": REGION, "name": "demo", "path": str(path), "timeout": 0, **given}
    checked = ArgumentSpecValidator(ec2_host_keys.OPTIONS).validate(asked)
    assert not checked.error_messages
    return ec2_host_keys.run(checked.validated_parameters, check)


def test_host_keys_are_learned_once_and_forgotten_with_their_node(account: Account, tmp_path: Path) -> None:
    path = tmp_path / "ssh" / "known"
    account.apply(count=2)
    account.endpoint.console = lambda instance: console(key(instance))
    assert learn(path, check=True) == (True, ["demo-000", "demo-001"]) and not path.parent.exists()
    assert learn(path) == (True, ["demo-000", "demo-001"])
    first, second = account.nodes.values()
    assert path.read_text() == f"demo-000 {key(first)} {first}\ndemo-001 {key(second)} {second}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    account.endpoint.requests.clear()
    assert learn(path) == (False, []) and not account.endpoint.sent("GetConsoleOutput")
    account.apply(count=1, allow_scale_down=True)
    assert learn(path, check=True) == (True, []) and len(path.read_text().splitlines()) == 2
    assert learn(path) == (True, []) and len(path.read_text().splitlines()) == 1


def test_a_console_that_tells_no_key_is_not_believed_and_not_waited_for_without_end(
    account: Account, tmp_path: Path
) -> None:
    account.apply(count=2)
    silent = account.nodes["1"]
    account.endpoint.console = lambda instance: "booting" if instance == silent else console(key(instance))
    with pytest.raises(FinetuneError, match="consoles of demo-001 do not tell"):
        learn(tmp_path / "known")
    assert not (tmp_path / "known").exists()


def test_consoles_of_an_older_hypervisor(account: Account, tmp_path: Path) -> None:
    def old(request: Request) -> tuple[str, str] | None:
        newest = request.action == "GetConsoleOutput" and request.params.get("Latest") == "true"
        return ("UnsupportedOperation", "not on this instance type") if newest else None

    account.apply(count=1)
    account.endpoint.console = lambda instance: console(key(instance))
    account.endpoint.faults.append(old)
    assert learn(tmp_path / "known") == (True, ["demo-000"])


def test_what_is_left_is_told_and_machines_of_others_too(account: Account) -> None:
    aws = client.Aws(REGION)
    assert belongings.left(belongings.find(aws, "demo")) == ["placement groups: demo"], "the endpoint's own"
    account.ec2.create_tags(Resources=[account.vpc, *account.subnets], Tags=[{"Key": "llmops_fleet", "Value": "demo"}])
    account.apply(count=1)
    account.ec2.run_instances(ImageId="ami-1e749f67", MinCount=1, MaxCount=1, SubnetId=account.subnets[0])
    found = belongings.find(aws, "demo")
    assert len(found["instances"]) == 1 and len(found["strangers"]) == 1 and len(found["subnets"]) == 3
    assert found["strangers"][0]["id"] != found["instances"][0]["id"]
    account.apply(state="absent")
    text = " ".join(belongings.left(belongings.find(aws, "demo")))
    assert "vpcs: vpc-" in text and "strangers: i-" in text and "instances: " not in text.replace("strangers", "")


def test_an_inventory_lists_nodes_by_their_index_whatever_their_ids(account: Account, tmp_path: Path) -> None:
    fleet: dict[str, t.Any] = {"name": "big-demo", "count": 12, "max_nodes": 12, "placement_group": "none"}
    account.apply(**fleet)
    account.ec2.terminate_instances(InstanceIds=[account.nodes[index] for index in ("0", "5", "11")])
    account.apply(**fleet)
    listed = Site(account.endpoint, tmp_path).trainers()
    assert listed.stdout.split()[-12:] == [f"big-demo-{index:03d}" for index in range(12)], listed.stdout
    assert "reserved name" not in listed.stderr


def test_a_bucket_is_the_fleets_only_where_it_was_made_for_it(account: Account) -> None:
    s3 = boto3.client("s3", region_name=REGION)
    for name in ("mine", "made"):
        s3.create_bucket(Bucket=f"bucket-{name}")
    s3.put_bucket_tagging(Bucket="bucket-made", Tagging={"TagSet": [{"Key": "llmops_fleet", "Value": "demo"}]})
    aws = client.Aws(REGION)
    found = {
        name: belongings.find(aws, "demo", name)["buckets"] for name in ("bucket-made", "bucket-mine", "bucket-no")
    }
    assert found == {"bucket-made": [{"id": "bucket-made"}], "bucket-mine": [], "bucket-no": []}
