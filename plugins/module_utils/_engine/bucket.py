# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run's place in S3, by boto3: the Python that runs this is that of the environment node-store.

Region, credentials and endpoint are boto3's to find: AWS_… variables, a profile, the role of the instance.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import shutil
import typing as t
from pathlib import Path

from . import files, store

PART = 64 << 20
"""Bytes above which an object goes and comes in parts, several at once."""

_REASONS = {
    "AccessDenied": "access is denied",
    "NoSuchBucket": "there is no such bucket",
    "InvalidAccessKeyId": "the access key is not known",
    "ExpiredToken": "the credentials have expired",
    "403": "access is denied",
}


class Refused(Exception):
    """S3 did not do what it was asked. `gone`: because there is no such object."""

    def __init__(self, why: str, gone: bool = False) -> None:
        super().__init__(why)
        self.gone = gone


class Damaged(Exception):
    """What is there is not what was told of it."""


def answer(work: t.Callable[[], t.Mapping[str, t.Any]]) -> int:
    """The end of a program: its last line says what came of the work."""
    try:
        told = dict(work())
    except Refused as error:
        told = {"refused": str(error)}
    except Damaged as error:
        told = {"damaged": str(error)}
    print(json.dumps(told))
    return 0


@contextlib.contextmanager
def asked(what: str) -> t.Iterator[None]:
    """Have every error of boto3 be a Refused with one line."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        why = _REASONS.get(code) or str(error.response["Error"].get("Message") or code)
        raise Refused(f"{what}: {why}", code in ("NoSuchKey", "404")) from None
    except (Boto3Error, BotoCoreError) as error:
        raise Refused(f"{what}: {error}") from None


class Bucket:
    """Names are relative to the run's place."""

    def __init__(self, url: str, part: int = PART) -> None:
        import boto3
        from boto3.s3.transfer import TransferConfig
        from botocore.config import Config

        self.url = url
        self.bucket, self.prefix = store.split(url)
        self.part = part
        self.parts = TransferConfig(multipart_threshold=part, multipart_chunksize=part)
        with asked("S3 cannot be asked"):
            self.client = boto3.client(
                "s3", config=Config(connect_timeout=10, read_timeout=60, retries={"mode": "standard"})
            )

    def names(self, under: str = "") -> dict[str, int]:
        """Bytes by name of the objects whose name begins so."""
        found: dict[str, int] = {}
        with asked(f"{self.url} cannot be listed"):
            pages = self.client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix + under):
                for entry in page.get("Contents", ()):
                    found[entry["Key"].removeprefix(self.prefix)] = int(entry["Size"])
        return found

    def read(self, name: str) -> dict[str, t.Any]:
        """A JSON object; empty where there is none."""
        try:
            with asked(f"{self.url}/{name} cannot be read"):
                answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + name)
                value = json.loads(answer["Body"].read())
        except Refused as error:
            if error.gone:
                return {}
            raise
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def write(self, name: str, value: t.Mapping[str, t.Any]) -> None:
        content = json.dumps(value, indent=1, sort_keys=True).encode()
        self.send(name, io.BytesIO(content), len(content), store.digest_of(content))

    def send(
        self, name: str, file: t.BinaryIO, size: int, digest: str, told: t.Callable[[int], None] = lambda _: None
    ) -> None:
        """What is in the file, of which S3 itself proves the digest: of the whole, or of each part."""
        file.seek(0)
        with asked(f"{self.url}/{name} cannot be written"):
            if size <= self.part:
                self.client.put_object(
                    Bucket=self.bucket,
                    Key=self.prefix + name,
                    Body=file,
                    ChecksumAlgorithm="SHA256",
                    ChecksumSHA256=base64.b64encode(bytes.fromhex(digest)).decode(),
                )
                told(size)
            else:
                self.client.upload_file(
                    f"/proc/self/fd/{file.fileno()}",  # also when its name is gone; parts are read from there
                    self.bucket,
                    self.prefix + name,
                    ExtraArgs={"ChecksumAlgorithm": "SHA256"},
                    Callback=told,
                    Config=self.parts,
                )

    def fetch(self, name: str, path: Path) -> None:
        with asked(f"{self.url}/{name} cannot be fetched"):
            self.client.download_file(self.bucket, self.prefix + name, str(path), Config=self.parts)

    def bring(self, name: str, path: Path, told: t.Mapping[str, t.Any]) -> bool:
        """Have an object as a file, unless that is here; False, and no file, where it is not what was told of it."""
        if not _is(path, told):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.fetch(name, path)
            if not _is(path, told):
                path.unlink()
                return False
        return True

    def bring_all(
        self, under: str, folder: Path, told: t.Mapping[str, t.Mapping[str, t.Any]], of: str, by: str
    ) -> None:
        """Have a folder with these files and no others; what a fetch that was cut left there is kept as far as it is
        right. told: size and sha256 by name below `under`; of, by: what they are, and what tells so, for errors."""
        for name in told:
            if name.startswith("/") or ".." in name.split("/"):
                raise Damaged(f"{name}, of {of} by what {by} says, leads out of its folder")
        folder.mkdir(parents=True, exist_ok=True)
        there = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
        for name, path in there.items():
            if name not in told:
                path.unlink()
        had = sum(path.stat().st_size for name, path in there.items() if name in told)
        size, free = sum(int(each["size"]) for each in told.values()), shutil.disk_usage(folder).free
        if size - had > free:
            raise Refused(f"{size / 1e9:.1f} GB of {of} are to come, and {free / 1e9:.1f} GB are free in {folder}")
        for name, each in told.items():
            if not self.bring(under + name, folder / name, each):
                raise Damaged(f"{name} of {of} in the store is not what {by} says")

    def remove(self, names: t.Iterable[str]) -> None:
        for name in names:
            with asked(f"{self.url}/{name} cannot be removed"):
                self.client.delete_object(Bucket=self.bucket, Key=self.prefix + name)

    def abandon(self, under: str = "") -> None:
        """Parts of what was never sent to its end, which are paid for and which no list of objects shows."""
        with contextlib.suppress(Refused), asked(""):  # who may not see them has to leave them to the bucket's rules
            found = self.client.list_multipart_uploads(Bucket=self.bucket, Prefix=self.prefix + under)
            for entry in found.get("Uploads", ()):
                self.client.abort_multipart_upload(Bucket=self.bucket, Key=entry["Key"], UploadId=entry["UploadId"])


def _is(path: Path, told: t.Mapping[str, t.Any]) -> bool:
    return path.is_file() and path.stat().st_size == told["size"] and files.sha256(path) == told["sha256"]
