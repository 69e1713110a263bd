# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes wrong on EC2: a clear message, no instance that nobody knows of, and a next apply that goes on."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._ec2 import apply, client
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

from ..aws import Request
from .ec2 import Account, no_capacity, once


def test_no_capacity_anywhere_launches_nothing_and_says_where_it_asked(account: Account) -> None:
    account.endpoint.faults.append(no_capacity(*account.subnets))
    text = account.refused()
    assert "nothing was launched" in text and all(zone in text for zone in account.zones) and "ec2_market" in text
    assert account.instances() == [] and len(account.endpoint.sent("RunInstances")) == 3
    account.endpoint.faults.clear()
    assert len(account.apply()["nodes"]) == 3


@pytest.mark.parametrize("tagged", [0, 2])
def test_a_crash_between_launch_and_tagging_leaves_nodes_that_are_taken_up(account: Account, tagged: int) -> None:
    """tagged: nodes that got their index before."""

    def crash(request: Request) -> tuple[str, str] | None:
        late = request.action == "CreateTags" and len(account.endpoint.sent("CreateTags")) > tagged
        return ("AuthFailure", "AWS was not able to validate") if late else None

    account.endpoint.faults.append(crash)
    assert "goes on with the next apply" in account.refused()
    launched = {one["InstanceId"] for one in account.instances()}
    assert len(launched) == 3, "they run, and carry the fleet's tag"
    account.endpoint.faults.clear()
    made = account.apply()
    assert made["plan"]["steps"]["adopt"] == list(range(tagged, 3))
    assert {node["id"] for node in made["nodes"]} == launched
    assert len(account.endpoint.sent("RunInstances")) == 1 and account.apply()["changes"] == []


def test_a_launch_whose_answer_was_lost_is_the_same_launch(account: Account) -> None:
    """The instances are not described yet; the token keeps a second apply from a second launch."""
    account.apply()
    hidden = {one["InstanceId"] for one in account.instances()}
    account.ec2.delete_tags(Resources=sorted(hidden), Tags=[{"Key": "llmops_fleet"}])
    with pytest.raises(FinetuneError, match="unknown"):
        account.apply(timeout=0)
    assert {one["InstanceId"] for one in account.instances()} == hidden


def test_an_index_twice_is_not_guessed_about(account: Account) -> None:
    account.apply(count=2)
    first, second = account.nodes.values()
    account.ec2.create_tags(Resources=[second], Tags=[{"Key": "llmops_index", "Value": "0"}])
    text = account.refused(count=2)
    assert first in text and second in text and "node 0" in text
    assert len(account.instances()) == 2
    account.ec2.delete_tags(Resources=[second], Tags=[{"Key": "llmops_index"}, {"Key": "llmops_fleet"}])
    assert account.apply(count=2)["changes"] == ["launch node 1"], "as the message says"


def test_a_dry_run_that_is_refused_is_told(account: Account) -> None:
    account.endpoint.faults.append(
        lambda request: (
            ("UnauthorizedOperation", "You are not authorized") if request.action == "RunInstances" else None
        )
    )
    assert "These credentials may not do this" in account.refused(check=True)


@pytest.mark.parametrize(
    ("action", "code"),
    [
        ("RunInstances", "RequestLimitExceeded"),
        ("RunInstances", "InvalidParameterValue"),
        ("CreateTags", "InvalidInstanceID.NotFound"),
        ("DescribeInstances", "RequestLimitExceeded"),
    ],
)
def test_what_passes_is_waited_for(account: Account, action: str, code: str) -> None:
    account.endpoint.faults.append(once(action, code, 1))
    assert len(account.apply()["nodes"]) == 3
    assert len(account.instances()) == 3


def test_throttling_without_end_is_told_and_goes_on_later(account: Account) -> None:
    account.endpoint.faults.append(once("RunInstances", "RequestLimitExceeded", 99))
    text = account.refused()
    assert "takes no more requests for now" in text and "goes on" in text and account.instances() == []
    account.endpoint.faults.clear()
    assert len(account.apply()["nodes"]) == 3


@pytest.mark.parametrize("code", ["ExpiredToken", "RequestExpired", "InvalidClientTokenId"])
def test_credentials_that_ran_out(account: Account, code: str) -> None:
    account.endpoint.faults.append(lambda request: (code, "The security token included in the request is expired"))
    text = account.refused()
    assert "does not take the credentials" in text and "AWS_PROFILE" in text and account.endpoint.mutations == []
    account.endpoint.faults.clear()
    assert len(account.apply()["nodes"]) == 3


def test_no_credentials_at_all(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "There are no credentials" in account.refused()
    assert "ec2_profile" in account.refused(profile="nobody")


def test_a_region_that_is_not_one(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "ec2_region" in account.refused(region="us-esat-1", subnet_ids=[])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(client, "TRIES", 1)
    assert "cannot be asked" in account.refused()


def test_a_subnet_of_another_region(account: Account) -> None:
    assert "ec2_subnet_ids" in account.refused(region="us-west-2")


@pytest.mark.parametrize("quota", [0.0, 8.0])
def test_a_quota_that_does_not_suffice(account: Account, quota: float) -> None:
    account.endpoint.quota = quota
    text = account.refused()
    assert f"may run {quota:g} vCPUs" in text and "L-DB2E81BA" in text and account.endpoint.mutations == []
    account.endpoint.quota = 12.0
    assert len(account.apply()["nodes"]) == 3


def test_what_runs_counts_for_the_quota(account: Account) -> None:
    account.endpoint.quota = 16.0
    account.apply()
    assert "12 are in use, and 2 × g5.xlarge need 8" in account.refused(count=5)
    account.endpoint.quota = None
    assert any("is unknown" in line for line in account.apply(count=5)["plan"]["lines"])


def test_the_price_is_checked_before_anything(account: Account) -> None:
    text = account.refused(max_hourly_usd=7.4)
    assert "3 nodes cost 7.50 USD an hour" in text and "ec2_max_hourly_usd" in text
    account.endpoint.price = None
    assert "1.006 a node: list of 2026-07-20" in " ".join(account.apply(check=True)["plan"]["lines"])
    assert "ec2_price_usd" in account.refused(instance_type="p3dn.24xlarge")
    assert "2.000 a node: ec2_price_usd" in " ".join(account.apply(check=True, price_usd=2)["plan"]["lines"])
    assert account.endpoint.mutations == []


def test_instances_that_die_at_once_are_told(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    run = apply._run

    def dies(aws: client.Aws, asked: dict[str, t.Any], dry: bool) -> list[t.Any]:
        found = run(aws, asked, dry)
        account.ec2.terminate_instances(InstanceIds=[found[0]["InstanceId"]])
        return found

    with monkeypatch.context() as short:
        short.setattr(apply, "_run", dies)
        assert "ended while they started: node 0" in account.refused()
    assert account.apply()["changes"] == ["launch node 0"], "the others are kept"
