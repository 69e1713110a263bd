# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""S3 as the controller asks it: for datasets and models, and for what the store of runs has recorded of one.

An object that is a dataset is fetched once as long as it is the same, and is a file from then on.
So it is checked record by record, is part of the run by its content, and reaches nodes that may not read the bucket.
Of a model the controller sees what it is now; nodes fetch it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import typing as t
from pathlib import Path

from ..module_utils import _hub, _model
from ..module_utils._engine import files, hub_files, hub_s3, store
from ..module_utils._errors import FinetuneError

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "aws_access_key_id",
    "AWS_SECRET_ACCESS_KEY": "aws_secret_access_key",
    "AWS_SESSION_TOKEN": "aws_session_token",
    "AWS_DEFAULT_REGION": "region_name",
}
"""What of train_secrets a session is begun with; what is not there, boto3 looks for in its own places."""
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_REASONS = {
    "403": (
        "it may not be read",
        "put AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of who may read it into train_secrets",
    ),
    "404": ("there is no such object", "correct bucket and key"),
    "412": ("it was replaced while it was fetched", "run again"),
}
_REACH = "see that this controller reaches it; AWS_ENDPOINT_URL_S3 in train_secrets names another server"
_PART = 1 << 20
_LEFT = ("config.json", "adapter_config.json")
"""What results say of a model or an adapter."""


def fetch(addresses: t.Iterable[str], secrets: t.Mapping[str, t.Any]) -> dict[str, str]:
    """Where each object is on this controller, by its address, `s3://bucket/key`."""
    wanted = list(dict.fromkeys(addresses))
    client = _client(secrets, "train_datasets") if wanted else None
    return {address: str(_fetched(address, client)) for address in wanted}


def model(place: str, revision: str, secrets: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """What is at `s3://bucket/prefix` now, as `_hub.facts` tells it of other hubs: its pin as `revision`, bytes that a
    run reads, what its config.json says; or why it is not known."""
    client = _client(secrets, "train_model")
    from botocore.exceptions import BotoCoreError, ClientError

    if revision != hub_s3.BRANCH and not _hub.COMMIT.fullmatch(revision):
        return {"kind": "revision", "said": "S3 has no branches"}
    try:
        found = hub_s3.tags(client, place)
        pin = hub_files.pin(found)
        if revision not in (hub_s3.BRANCH, pin):
            return {"kind": "moved", "said": f"it has {pin[:12]} now, and {revision[:12]} is asked for"}
        size = sum(found[name][0] for name in hub_files.wanted(found))
        return {"revision": pin, "bytes": size, "config": _sizes(client, place) if "config.json" in found else {}}
    except hub_files.Failure as failure:
        return {"kind": failure.kind, "said": str(failure)}
    except (BotoCoreError, ClientError, OSError) as error:
        return {"kind": "unreachable", "said": str(error)}


def _sizes(client: t.Any, place: str) -> dict[str, t.Any]:
    try:
        return _model.sizes(_json(client, place, "config.json"))
    except (ValueError, RecursionError):
        return {}


def record(place: str, secrets: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """What is recorded of the run at `s3://bucket/prefix/<run id>`; empty where it is not there."""
    client = _client(secrets, "train_store")
    with _seen(f"Whether {place} has the run"):
        return _json(client, place, store.RECORD)


def earlier(place: str, wanted: str, secrets: t.Mapping[str, t.Any]) -> list[dict[str, t.Any]]:
    """The finished runs of a name or id below `s3://bucket/prefix`, as `_node.earlier` tells those of a node."""
    client = _client(secrets, "train_store")
    bucket, prefix = store.split(place)
    found = []
    with _seen(f"Whether {place} has a run {wanted}"):
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix + wanted, Delimiter="/")
        names = [each["Prefix"][len(prefix) : -1] for page in pages for each in page.get("CommonPrefixes", ())]
        for run_id in names:
            if wanted not in (run_id, run_id.rpartition("-")[0]):
                continue
            record, results = (_json(client, f"{place}/{run_id}", name) for name in (store.RECORD, store.RESULTS))
            if record.get("resolved") and results.get("files"):
                kept = {key: record.get(key) for key in ("request", "resolved", "created")}
                left = _left(client, f"{place}/{run_id}/results", results["files"])
                found.append({"id": run_id, "state": "finished", **kept, "left": left})
    return found


def _left(client: t.Any, place: str, names: t.Container[str]) -> dict[str, t.Any]:
    """What decides how much memory a run takes that begins with these results."""
    config, adapter = (_json(client, place, name) if name in names else {} for name in _LEFT)
    return {"config": _model.sizes(config), "adapter": _model.adapted(adapter)}


def _json(client: t.Any, place: str, name: str) -> dict[str, t.Any]:
    """An object of JSON; empty where it is not there."""
    from botocore.exceptions import ClientError

    bucket, prefix = store.split(place)
    try:
        told = json.loads(client.get_object(Bucket=bucket, Key=prefix + name)["Body"].read())
        return told if isinstance(told, dict) else {}
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") == "NoSuchKey":
            return {}
        raise


@contextlib.contextmanager
def _seen(what: str) -> t.Iterator[None]:
    """Have every error be a refusal that begins so."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        why, change = _told(error)
    except (BotoCoreError, ValueError) as error:
        why, change = str(error), _REACH
    else:
        return
    raise FinetuneError(f"{what} cannot be seen: {why}.", where="train_store", change=change)


def _told(error: t.Any) -> tuple[str, str]:
    """What is wrong by S3's answer, and what to change."""
    code = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    said = error.response.get("Error", {})
    if said.get("Code") == "NoSuchBucket":
        return "there is no such bucket", "correct it, or make it"
    return _REASONS.get(code, (str(said.get("Message") or code), "see what it says"))


def _client(secrets: t.Mapping[str, t.Any], variable: str) -> t.Any:
    """Unsigned, as for public buckets, where nobody has credentials."""
    try:
        import boto3
        import botocore
        from botocore.config import Config
    except ImportError:
        raise FinetuneError(
            "S3 is asked with boto3, which this controller's Python lacks.",
            where=variable,
            change="install boto3 beside ansible-core; data and models may also be fetched by you, and named by path",
        ) from None
    given = {name: str(secrets[key]) for key, name in CREDENTIALS.items() if secrets.get(key)}
    endpoint = next((str(secrets[key]) for key in ENDPOINTS if secrets.get(key)), None)
    try:
        session = boto3.session.Session(**given)
        signature = None if session.get_credentials() else botocore.UNSIGNED
        config = Config(signature_version=signature, connect_timeout=10, retries={"mode": "standard"})
        return session.client("s3", endpoint_url=endpoint, config=config)
    except (botocore.exceptions.BotoCoreError, ValueError) as error:
        raise FinetuneError(
            f"S3 cannot be asked: {error}.", where="train_secrets", change="correct the AWS_… variables"
        ) from None


def _fetched(address: str, client: t.Any) -> Path:
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _slash, key = address.removeprefix("s3://").partition("/")
    try:
        head = client.head_object(Bucket=bucket, Key=key)
        place = _place(address, head["ETag"])
        if not (place.is_file() and place.stat().st_size == head["ContentLength"]):
            _store(client.get_object(Bucket=bucket, Key=key, IfMatch=head["ETag"])["Body"], place, head)
    except ClientError as error:
        what, change = _told(error)
        raise FinetuneError(f"{address} cannot be fetched: {what}.", where="train_datasets", change=change) from None
    except (BotoCoreError, OSError) as error:
        raise FinetuneError(
            f"{address} cannot be fetched: {error}.",
            where="train_datasets",
            change=_REACH,
        ) from None
    return place


def _place(address: str, tag: str) -> Path:
    """In the account's place for caches: a folder for each address, one in it for each content."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    words = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in (address, tag)]
    return cache / "llmops.finetune" / "s3" / words[0] / words[1] / Path(address).name


def _store(body: t.Any, place: Path, head: t.Mapping[str, t.Any]) -> None:
    """Take its place when it is whole; what was there before of the same address goes."""
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            while part := body.read(_PART):
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        if partial.stat().st_size != head["ContentLength"]:
            raise OSError("it came in part")
        os.replace(partial, place)
    finally:
        partial.unlink(missing_ok=True)
    files.sync_directory(place.parent)
    for other in place.parent.parent.iterdir():
        if other != place.parent:
            shutil.rmtree(other, ignore_errors=True)
