# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Datasets in S3, fetched with its own client from a stand-in on loopback (moto)."""

from __future__ import annotations

import typing as t
import urllib.request
from pathlib import Path

import boto3
import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _dataset, _request, _sources, _wish
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.module_utils._wish.imported import Imported
from ansible_collections.llmops.finetune.plugins.plugin_utils import _import_data, _s3
from moto.server import ThreadedMotoServer

from .plans import DEFAULTS, RECIPES, SCHEMAS, make, node

ADDRESS = "s3://records/new/tickets.jsonl"
RECORD = b'{"instruction": "Why?", "output": "So."}\n'


class Bucket:
    def __init__(self) -> None:
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.server.start()
        self.address = "http://{}:{}".format(*self.server.get_host_and_port())
        self.secrets = {
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": self.address,
        }
        self.client = _s3._client(self.secrets, "train_datasets")
        self.client.create_bucket(Bucket="records")
        self.put(RECORD)

    def put(self, content: bytes) -> None:
        self.client.put_object(Bucket="records", Key="new/tickets.jsonl", Body=content)

    def fetch(self, address: str = ADDRESS) -> Path:
        return Path(_s3.fetch([address], self.secrets)[address])

    def close(self) -> None:
        urllib.request.urlopen(f"{self.address}/moto-api/reset", b"").close()
        self.server.stop()


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> t.Iterator[Bucket]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    served = Bucket()
    yield served
    served.close()


def test_an_object_is_fetched_once_as_long_as_it_is_the_same(bucket: Bucket, tmp_path: Path) -> None:
    first = bucket.fetch()
    assert first.read_bytes() == RECORD and first.is_relative_to(tmp_path / "cache")
    was = first.stat()
    assert bucket.fetch() == first and first.stat().st_ctime_ns == was.st_ctime_ns
    bucket.put(RECORD * 2)
    second = bucket.fetch()
    assert second.read_bytes() == RECORD * 2 and not first.exists(), "what it was before is not kept"
    second.write_bytes(b"cut")
    assert bucket.fetch().read_bytes() == RECORD * 2
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [second]
    assert _s3.fetch([], {}) == {}


def test_one_that_is_replaced_meanwhile_is_not_taken(bucket: Bucket) -> None:
    class Slow:
        def head_object(self, **asked: str) -> t.Any:
            told = bucket.client.head_object(**asked)
            bucket.put(RECORD * 3)
            return told

        def get_object(self, **asked: str) -> t.Any:
            return bucket.client.get_object(**asked)

    with pytest.raises(FinetuneError, match="it was replaced while it was fetched"):
        _s3._fetched(ADDRESS, Slow())


def test_half_of_one_is_nothing(bucket: Bucket, tmp_path: Path) -> None:
    class Cut:
        def head_object(self, **asked: str) -> t.Any:
            return {**bucket.client.head_object(**asked), "ContentLength": 10_000}

        def get_object(self, **asked: str) -> t.Any:
            return bucket.client.get_object(**asked)

    with pytest.raises(FinetuneError, match="it came in part"):
        _s3._fetched(ADDRESS, Cut())
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("address", ["s3://records/other.jsonl", "s3://elsewhere/new/tickets.jsonl"])
def test_what_is_not_there_is_told(bucket: Bucket, address: str) -> None:
    with pytest.raises(FinetuneError, match="there is no such object") as refusal:
        bucket.fetch(address)
    assert address in refusal.value.what


def test_who_may_not_read_it_is_told(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0)  # from now on keys count
    with pytest.raises(FinetuneError, match="may not be read") as refusal:
        bucket.fetch()
    assert "train_secrets" in refusal.value.change and "secret" not in refusal.value.what


def test_a_server_that_is_not_there_is_told(bucket: Bucket) -> None:
    bucket.secrets["AWS_ENDPOINT_URL_S3"] = "http://127.0.0.1:9"
    with pytest.raises(FinetuneError, match=r"cannot be fetched: .*127\.0\.0\.1:9"):
        bucket.fetch()
    bucket.secrets["AWS_ENDPOINT_URL_S3"] = "here"
    with pytest.raises(FinetuneError, match="S3 cannot be asked"):
        bucket.fetch()


def test_a_public_bucket_needs_no_credentials(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boto3.session.Session, "get_credentials", lambda self: None)
    signed = _s3._client({"AWS_ENDPOINT_URL_S3": bucket.address}, "train_datasets").meta.config.signature_version
    assert "UNSIGNED" in repr(signed)


def test_it_is_the_data_of_a_file_with_that_content(bucket: Bucket, tmp_path: Path) -> None:
    """Each record is checked, and it is the same run."""
    (tmp_path / "tickets.jsonl").write_bytes(RECORD)

    def found(entry: dict[str, str]) -> list[_dataset.Source]:
        wish = _wish.read({**DEFAULTS, "train_datasets": [entry]}, SCHEMAS, RECIPES)
        return _sources.sources(wish, [tmp_path], {}, _s3.fetch(wish.objects, bucket.secrets))

    plans = [
        make({"a": node()}, found(entry), train_datasets=[entry])
        for entry in ({"s3": ADDRESS}, {"file": "tickets.jsonl"})
    ]
    assert plans[0].id == plans[1].id and not _request.difference(plans[0].request, plans[1].request)
    assert [plan.nodes["a"]["launch"]["environment"]["HF_HUB_OFFLINE"] for plan in plans] == ["1", "1"]
    bucket.put(RECORD + b'{"instruction": 3}\n')
    with pytest.raises(FinetuneError) as refusal:
        found({"s3": ADDRESS})
    assert ADDRESS in refusal.value.where


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"s3": "records/a.jsonl"}, "is no object in S3"),
        ({"s3": "s3://records"}, "is no object in S3"),
        ({"s3": "s3://records/folder/"}, "no ending of a file with records"),
        ({"s3": ADDRESS, "file": "a.jsonl"}, "exactly one of"),
        ({"s3": ADDRESS, "split": "test"}, "no split but train"),
        (ADDRESS, "is no name"),
    ],
)
def test_what_is_no_object_is_refused_at_once(entry: t.Any, said: str) -> None:
    with pytest.raises(FinetuneError, match=said) as refusal:
        _dataset.parse([entry], "train_datasets")
    assert entry != ADDRESS or "{s3: " in refusal.value.change


def test_llamafactorys_own_word_for_it_is_taken_over(tmp_path: Path) -> None:
    text = '{"a": {"cloud_file_name": "%s"}, "b": {"cloud_file_name": "gs://records/a.jsonl"}}'
    (tmp_path / "dataset_info.json").write_text(text % ADDRESS)
    found = Imported(file="x.yaml", datasets=["a"], eval_datasets=["b"], dataset_dir=".")
    _import_data.describe(found, tmp_path / "x.yaml")
    assert found.datasets == [{"name": "a", "s3": ADDRESS}]
    assert "neither file_name nor hf_hub_url" in str(found.refused["train_eval_datasets"])
