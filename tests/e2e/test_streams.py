# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Data that is read as it comes, mixed from two sets of which one is in S3: an interrupted run comes out the same."""

from __future__ import annotations

import typing as t

import boto3
import pytest
from moto.server import ThreadedMotoServer

from .conftest import BASE, REPOSITORY, Demo, World, weights
from .test_faults import killer, read, write_plan


@pytest.fixture
def bucket() -> t.Iterator[dict[str, str]]:
    """The held-out demo in a stand-in of S3 on loopback, and what leads there."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    place = "http://{}:{}".format(*server.get_host_and_port())
    key, secret = "somebodys-key", "nobodys-secret"
    client = boto3.client(
        "s3", endpoint_url=place, aws_access_key_id=key, aws_secret_access_key=secret, region_name="us-east-1"
    )
    client.create_bucket(Bucket="records")
    client.upload_file(str(REPOSITORY / "roles/train/files/demo_heldout.jsonl"), "records", "held/out.jsonl")
    yield {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_ENDPOINT_URL_S3": place}
    server.stop()


def test_streams_of_two_sets_go_on_in_the_pass_they_were_in(world: World, demo: Demo, bucket: dict[str, str]) -> None:
    """The smaller set, which comes from S3 and is drawn more often, ends a pass after six steps or so. Two ranks read
    the stream, with more workers than ranks."""
    cache = {"XDG_CACHE_HOME": str(BASE / "cache-of-objects")}
    variables = {
        "train_name": "stream",
        "train_datasets": ["demo", {"s3": "s3://records/held/out.jsonl"}],
        "train_secrets": bucket,
        "train_eval_datasets": [],
        "train_processes_per_node": 2,
    }
    short: dict[str, t.Any] = {
        "streaming": True,
        "mix_strategy": "interleave_under",
        "interleave_probs": "0.2,0.8",
        "buffer_size": 16,
        "dataloader_num_workers": 3,
        "accelerator_config": {"dispatch_batches": False},
        "max_samples": None,
        "max_steps": 12,
    }
    whole = world.play(variables=variables, environment=cache, **short)
    assert whole.rc == 0, whole.text
    plan = BASE / "killer-stream.json"
    write_plan(plan, [["checkpoint-8", "complete.json"]])
    killed = world.play(
        variables={**variables, "train_name": "stream-killed"}, environment={**cache, **killer(plan)}, **short
    )
    assert killed.rc == 0, killed.text
    assert killed.run["attempt"] == 2
    assert weights(world.folder(killed)) == weights(world.folder(whole))
    state = read(world.folder(whole) / "output/checkpoint-8/trainer_state.json")
    assert state["epoch"] > 1, "it dies in the second pass"
