# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Models below a prefix of S3, by boto3. Names and entity tags of the objects stand in for a commit.

The controller lists them for the plan, and a node, by the Python of node-store, fetches those that were pinned then.
"""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import errno
import os
import typing as t
from pathlib import Path

from .hub_files import Expected, Failure, pin
from .store import split

PREFIX = "s3://"
"""How train_model begins then."""
BRANCH = "main"
"""What there is of it now; anything else that may be asked for is a pin."""
TOGETHER = 8
"""Files at a time, each by one request: S3 gives one some 100 MB/s."""
CHUNK = 1 << 16
"""Bytes of a file that a cut loses."""
PARTIAL = ".s3"
"""In the folder: files that have come in part."""

_KINDS = {"403": "gated", "404": "missing", "412": "moved"}


def tags(client: t.Any, model: str) -> dict[str, Expected]:
    """Bytes and entity tag by name of what is below the prefix; no name leads out of a folder."""
    bucket, prefix = split(model)
    found: dict[str, Expected] = {}
    with _translated():
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for entry in page.get("Contents", ()):
                name = entry["Key"].removeprefix(prefix)
                if name and not name.endswith("/") and ".." not in name.split("/") and not name.startswith("/"):
                    found[name] = (int(entry["Size"]), entry["ETag"].strip('"'))
    if not found:
        raise Failure("missing", f"nothing is below {model}/")
    return found


def listed(model: str, asked: str, revision: str) -> dict[str, Expected]:
    """What is pinned, each with what it can be proved by."""
    client = _client()
    found = _pinned(client, model, revision)
    return {name: (size, _proof(client, model, name, size, tag)) for name, (size, tag) in found.items()}


def download(model: str, asked: str, revision: str, folder: Path, names: t.Sequence[str], largest: int) -> None:
    client = _client()
    found = _pinned(client, model, revision)
    with concurrent.futures.ThreadPoolExecutor(TOGETHER) as pool:
        started = [pool.submit(_bring, client, model, folder, name, *found[name]) for name in names]
        try:
            for done in concurrent.futures.as_completed(started):
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _client() -> t.Any:
    """Region, endpoint and credentials are boto3's to find. Unsigned, as for public buckets, where nobody has any."""
    import boto3
    import botocore
    from botocore.config import Config

    session = boto3.session.Session()
    signature = None if session.get_credentials() else botocore.UNSIGNED
    config = Config(signature_version=signature, connect_timeout=10, read_timeout=60, retries={"mode": "standard"})
    return session.client("s3", config=config)


def _pinned(client: t.Any, model: str, revision: str) -> dict[str, Expected]:
    found = tags(client, model)
    if pin(found) != revision:
        raise Failure("moved", f"it has {pin(found)[:12]} now, and {revision[:12]} is asked for")
    return found


def _proof(client: t.Any, model: str, name: str, size: int, tag: str) -> str:
    """The digest of a file as far as S3 tells one: SHA-256 where the sender gave it; else the entity tag, which is an
    MD5, or that of the MD5s of parts, unless a key of KMS is used. Empty where there is none."""
    bucket, prefix = split(model)
    asked = {"Bucket": bucket, "Key": prefix + name}
    with _translated():
        told = client.head_object(**asked, IfMatch=f'"{tag}"', ChecksumMode="ENABLED")
        sha256 = str(told.get("ChecksumSHA256") or "")
        if sha256 and "-" not in sha256 and told.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT":
            return base64.b64decode(sha256).hex()
        if str(told.get("ServerSideEncryption") or "AES256") != "AES256":
            return ""
        parts = int(tag.partition("-")[2] or 0)
        if not parts:
            return tag
        each = int(client.head_object(**asked, PartNumber=1)["ContentLength"])
        return f"{tag}/{each}" if each and -(-size // each) == parts else ""


def _bring(client: t.Any, model: str, folder: Path, name: str, size: int, tag: str) -> None:
    """Goes on where a cut left it."""
    from botocore.exceptions import FlexibleChecksumError

    bucket, prefix = split(model)
    partial = folder / PARTIAL / name
    partial.parent.mkdir(parents=True, exist_ok=True)
    had = partial.stat().st_size if partial.exists() else 0
    if had < size or not partial.exists():
        asked = {"Range": f"bytes={had}-"} if had else {}
        with _translated():
            answer = client.get_object(Bucket=bucket, Key=prefix + name, IfMatch=f'"{tag}"', **asked)
            goes_on = str(answer.get("ContentRange") or "").startswith(f"bytes {had}-")
            try:
                with open(partial, "ab" if goes_on else "wb") as file:
                    for chunk in answer["Body"].iter_chunks(CHUNK):
                        file.write(chunk)
            except FlexibleChecksumError:
                partial.unlink()
                raise
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    os.replace(partial, folder / name)


@contextlib.contextmanager
def _translated() -> t.Iterator[None]:
    """What will not be otherwise the next time is a Failure; the rest goes through as it is."""
    from botocore.exceptions import ClientError

    try:
        yield
    except ClientError as error:
        status = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
        if status in _KINDS:
            told = error.response.get("Error", {})
            raise Failure(_KINDS[status], str(told.get("Message") or told.get("Code"))) from error
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Failure("full", str(error)) from error
        raise
