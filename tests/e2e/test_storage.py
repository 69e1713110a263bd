# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run whose only host is taken back by EC2 goes on from S3 on a fresh one. Both are stand-ins on loopback."""

from __future__ import annotations

import hashlib
import json
import shutil
import typing as t

import pytest

from ..unit.stored import S3, Metadata
from .conftest import Demo, World, processes, weights
from .test_faults import read, step, wait_for

LONG: dict[str, t.Any] = {"max_steps": 160, "save_steps": 20, "save_total_limit": 2}
"""Long enough for a notice to be heard while it trains."""


@pytest.fixture(scope="module")
def s3() -> t.Iterator[S3]:
    served = S3()
    yield served
    served.close()


@pytest.fixture
def metadata() -> t.Iterator[Metadata]:
    served = Metadata()
    yield served
    served.close()


def keys(s3: S3, under: str) -> list[str]:
    found = s3.client.list_objects_v2(Bucket="runs", Prefix=under).get("Contents", ())
    return [entry["Key"].removeprefix(under) for entry in found]


def test_a_run_goes_on_from_the_store_when_all_that_its_host_had_is_gone(
    world: World, demo: Demo, s3: S3, metadata: Metadata
) -> None:
    quiet = world.play(variables={"train_name": "undisturbed"}, **LONG)
    assert quiet.rc == 0, quiet.text
    ec2 = {"AWS_EC2_METADATA_DISABLED": "false", "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata.address}
    variables = {"train_name": "spot", "train_store": "s3://runs/team", "train_secrets": {**s3.variables, **ec2}}

    started = world.play(variables={**variables, "train_wait": False}, **LONG)
    assert started.rc == 0, started.text
    folder, place = world.folder(started), f"team/{started.plan['id']}/"
    assert ("update", f"s3://runs/{place}run.json") in started.changes
    wait_for(lambda: keys(s3, f"{place}manifests/"))
    assert processes(folder.name), "it is sent while the run trains"
    metadata.said = {"spot/instance-action": {"action": "terminate", "time": "2026-11-29T05:02:00Z"}}
    wait_for(lambda: read(folder / "state.json").get("state") == "interrupted" and not processes(folder.name))
    reached = step(folder)
    assert 20 < reached < LONG["max_steps"]
    assert any(key.startswith(f"{reached}-") for key in keys(s3, f"{place}manifests/")), "that of the notice is there"
    assert len(keys(s3, f"{place}manifests/")) <= 2
    explained = world.play("llmops.finetune.explain", variables={"train_run_id": folder.name})
    assert "EC2 terminates this spot instance at 2026-11-29T05:02:00Z." in explained.text

    metadata.said = {}  # a fresh instance has no notice
    shutil.rmtree(folder)
    for name in ("datasets", "models", "secrets"):
        shutil.rmtree(world.root / name, ignore_errors=True)
    predicted = world.play("train.yml", "--check", variables=variables, **LONG)
    assert predicted.rc == 0 and not folder.exists() and "interrupted" in predicted.text
    assert ("fetch", str(folder / f"output/checkpoint-{reached}")) in predicted.changes
    resumed = world.play(variables=variables, **LONG)
    assert resumed.rc == 0, resumed.text
    assert ("fetch", str(folder / f"output/checkpoint-{reached}")) in resumed.changes
    assert resumed.run["from_step"] == reached and resumed.run["state"] == "finished"
    assert resumed.plan["resolved"] == started.plan["resolved"]
    assert weights(folder) == weights(world.folder(quiet)), "as if nothing had happened"
    log = [json.loads(line) for line in (folder / "output/trainer_log.jsonl").read_text().splitlines()]
    steps = [line["current_steps"] for line in log if "loss" in line]
    assert steps == sorted(set(steps)) and steps[0] < reached, "with what was logged before"
    assert f"stored    s3://runs/{place}results" in resumed.text

    told = json.loads(s3.client.get_object(Bucket="runs", Key=f"{place}results.json")["Body"].read())["files"]
    assert told["adapter_model.safetensors"]["sha256"] == weights(folder)
    for name, was in told.items():
        content = s3.client.get_object(Bucket="runs", Key=f"{place}results/{name}")["Body"].read()
        assert hashlib.sha256(content).hexdigest() == was["sha256"], name

    again = world.play(variables=variables, **LONG)
    assert again.rc == 0 and again.changed == [] and len(again.on_node) <= 4, again.on_node

    gone = world.play(variables={**variables, "train_state": "absent"}, **LONG)
    assert gone.rc == 0 and not folder.exists() and keys(s3, place) == [], gone.text
    assert world.play(variables={**variables, "train_state": "absent"}, **LONG).changed == []
