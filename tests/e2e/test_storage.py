# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run whose only host is taken back by EC2 goes on from S3 on a fresh one; and a model is had from there. Both are
stand-ins on loopback."""

from __future__ import annotations

import hashlib
import json
import shutil
import typing as t
from pathlib import Path

import pytest

from ..unit.stored import S3, Metadata
from .conftest import Demo, Outcome, World, processes, tree, weights
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


def test_a_model_in_s3_is_fetched_once_and_trained_from_without_it(world: World, demo: Demo, s3: S3) -> None:
    made = Path(demo.applied.plan["nodes"]["localhost"]["model"]["path"])
    files = {path.name: path.read_bytes() for path in made.iterdir() if path.name != "manifest.json"}
    for name, content in {**files, "pytorch_model.bin": b"old"}.items():
        s3.client.put_object(Bucket="runs", Key=f"models/tiny/{name}", Body=content)

    def play(*arguments: str, gone: bool = False, **asked: t.Any) -> Outcome:
        secrets = {**s3.variables, **({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"} if gone else {})}
        given = {"train_name": "there", "train_model": "s3://runs/models/tiny", "train_secrets": secrets, **asked}
        short: dict[str, t.Any] = {
            "template": "qwen3_nothink",
            "gradient_accumulation_steps": 1,
            "max_steps": 2,
            "cutoff_len": 128,
        }
        return world.play(*(arguments or ("train.yml",)), variables={**given, "train_eval_datasets": []}, **short)

    before = tree(world.root / "models", world.root / "runs")
    predicted = play("train.yml", "--check")
    assert predicted.rc == 0 and tree(world.root / "models", world.root / "runs") == before, predicted.text
    folder = Path(predicted.plan["nodes"]["localhost"]["model"]["path"])
    assert ("fetch", str(folder)) in predicted.changes and folder.name.startswith("s3--tiny@")

    staged = play(train_state="staged")
    assert staged.rc == 0 and ("fetch", str(folder)) in staged.changes, staged.text
    there = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
    assert there == files
    done = play(gone=True)
    assert done.rc == 0 and done.run["state"] == "finished", done.text
    back = play()
    assert [Path(path).name for _action, path in back.changes] == [f"{done.plan['id']}.json"], "its secrets alone"
    again = play()
    assert again.rc == 0 and again.changed == [] and len(again.on_node) <= 4, again.on_node

    with open(folder / "model.safetensors", "r+b") as file:
        file.write(b"x")
    mended = play(train_set="learning_rate=2e-4", train_state="staged")
    assert mended.rc == 0 and ("update", str(folder)) in mended.changes, mended.text
    assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]

    s3.client.put_object(Bucket="runs", Key="models/tiny/config.json", Body=files["config.json"] + b"\n")
    moved = play()
    assert moved.rc == 0 and moved.changed == [], moved.text
    drift = [notice for notice in moved.plan["notices"] if notice.startswith("Drift")]
    assert len(drift) == 1 and "the run keeps model s3://runs/models/tiny" in drift[0]
    refused = play(train_model="s3://runs/models/none")
    assert refused.rc != 0 and "There is no model at s3://runs/models/none" in refused.message, refused.text


def test_a_run_begins_with_one_that_only_the_store_has(world: World, demo: Demo, s3: S3) -> None:
    def play(*arguments: str, **asked: t.Any) -> Outcome:
        given = {"train_store": "s3://runs/chain", "train_secrets": s3.variables, "train_eval_datasets": [], **asked}
        short: dict[str, t.Any] = {"gradient_accumulation_steps": 1, "max_steps": 2}
        return world.play(*(arguments or ("train.yml",)), variables=given, **short)

    first = play(train_name="first")
    assert first.rc == 0 and first.run["state"] == "finished", first.text
    folder = world.folder(first)
    left = weights(folder)
    shutil.rmtree(folder)
    later = {"train_name": "second", "train_from": "first"}
    predicted = play("train.yml", "--check", **later)
    assert predicted.rc == 0 and ("fetch", str(folder)) in predicted.changes and not folder.exists(), predicted.text
    second = play(**later)
    assert second.rc == 0 and second.run["state"] == "finished", second.text
    assert ("fetch", str(folder)) in second.changes and weights(folder) == left
    assert second.plan["resolved"]["arguments"]["adapter_name_or_path"] == f"run:{folder.name}"
    again = play(**later)
    assert again.rc == 0 and again.changed == [] and len(again.on_node) <= 4, again.on_node
    earlier = play(train_name="first")
    assert earlier.rc == 0 and earlier.run["state"] == "finished" and earlier.plan["id"] == folder.name, earlier.text
    assert weights(folder) == left, "it is one that this host has finished"
