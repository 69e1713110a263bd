# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model of a hub, fetched file by file into a folder, each held against the digest that the hub tells.

`python -m engine.hub_model --model org/name --revision COMMIT --folder DIR` goes on with what is in the folder, and
prints a line of JSON: the files with their SHA-256, or what went wrong. Endpoint and token are in the environment, and
huggingface_hub is told by it to make plain requests, whose files go on after a cut where they were.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import time
import typing as t
from functools import partial
from pathlib import Path

TRIES = 4
"""How often in a row nothing may come before the fetch is given up."""
TOGETHER = 4
"""Files at a time."""
LARGEST = 50 * 10**9
"""Bytes that a file may have to be had by plain requests; larger ones are on hubs by Xet alone."""

CHUNK = 1 << 18
"""Bytes that a cut loses at most; huggingface_hub would lose 10 MiB, and begin small files again."""

_NOT_READ = re.compile(
    r"(.*/)?\..*|(original|onnx|openvino|coreml|gguf|tf|flax|metal|mlx)/.*|"
    r".*\.(gguf|ggml|onnx|onnx_data|h5|msgpack|tflite|ot|mlmodel|nemo|png|jpe?g|gif|webp|svg|mp4|pdf)",
    re.IGNORECASE,
)
"""The same weights in forms that transformers does not read from PyTorch, and pictures of the model's page."""
_AGAIN = re.compile(r"(pytorch_model|consolidated).*\.(bin|pth|pt|safetensors)(\.index\.json)?")
"""The same weights in an older form beside those that are read."""

Expected = t.Tuple[int, str]
"""Bytes of a file; its digest: SHA-256, or SHA-1 as git counts it."""


class Failure(Exception):
    """kind: missing, revision, gated, unreachable, cut, full, damaged."""

    def __init__(self, kind: str, said: str) -> None:
        super().__init__(said)
        self.kind = kind


def wanted(names: t.Iterable[str]) -> list[str]:
    """Which files of a repository a run reads."""
    kept = sorted(name for name in names if not _NOT_READ.fullmatch(name))
    for main in (r"model[^/]*\.safetensors", r"pytorch_model[^/]*\.bin"):
        if any(re.fullmatch(main, name) for name in kept):
            return [name for name in kept if re.fullmatch(rf"{main}(\.index\.json)?", name) or not _AGAIN.match(name)]
    return kept


def digests(folder: Path, expected: t.Mapping[str, Expected]) -> dict[str, str]:
    """SHA-256 of the files that are as the hub has them."""
    found = {}
    for name, (size, digest) in expected.items():
        path = folder / name
        if path.is_file() and path.stat().st_size == size:
            sha256, sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
            with open(path, "rb") as file:
                while chunk := file.read(1 << 20):
                    sha256.update(chunk)
                    if len(digest) == 40:
                        sha1.update(chunk)
            if digest in (sha256.hexdigest(), sha1.hexdigest()):
                found[name] = sha256.hexdigest()
    return found


def patiently(work: t.Callable[[], t.Any], come: t.Callable[[], int], pause: t.Callable[[float], None]) -> t.Any:
    """Do it again after a cut for as long as more comes. come: bytes that there are."""
    silent, most = 0, come()
    while True:
        try:
            return work()
        except Failure:
            raise
        except Exception as error:
            now = come()
            silent = 0 if now > most else silent + 1
            most = max(most, now)
            if silent == TRIES:
                raise Failure("cut" if most else "unreachable", f"{type(error).__name__}: {error}") from error
            pause(2**silent - 1)


def fetch(model: str, revision: str, folder: Path) -> dict[str, str]:
    """Everything in its place and whole; SHA-256 by file."""
    expected = patiently(partial(_translated, partial(_listed, model, revision)), lambda: 0, time.sleep)
    if max(size for size, _digest in expected.values()) < LARGEST:
        _plain_requests()
    for _ in range(2):  # a file that comes damaged is fetched once more, from nothing
        whole = digests(folder, expected)
        lacking = sorted(expected.keys() - whole.keys(), key=lambda name: -expected[name][0])
        for name in lacking:
            (folder / name).unlink(missing_ok=True)
        if not lacking:
            return _tidy(folder, whole)
        patiently(partial(_download, model, revision, folder, lacking), partial(_bytes, folder), time.sleep)
    whole = digests(folder, expected)
    if damaged := sorted(expected.keys() - whole.keys()):
        raise Failure("damaged", f"{damaged[0]} is not what the hub says it is")
    return _tidy(folder, whole)


def _plain_requests() -> None:
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_XET = True
    constants.HF_HUB_ENABLE_HF_TRANSFER = False
    constants.DOWNLOAD_CHUNK_SIZE = CHUNK


def _listed(model: str, revision: str) -> dict[str, Expected]:
    from huggingface_hub import HfApi

    siblings = HfApi().model_info(model, revision=revision, files_metadata=True, timeout=60).siblings or []
    known = {
        file.rfilename: (file.size, file.lfs.sha256 if file.lfs else str(file.blob_id))
        for file in siblings
        if file.size is not None
    }
    names = wanted(known)
    if not names:
        raise Failure("missing", f"{model} has no files")
    return {name: known[name] for name in names}


def _download(model: str, revision: str, folder: Path, names: t.Sequence[str]) -> None:
    from huggingface_hub import hf_hub_download

    def one(name: str) -> None:
        _translated(lambda: hf_hub_download(model, name, revision=revision, local_dir=folder))

    with concurrent.futures.ThreadPoolExecutor(TOGETHER) as pool:
        started = [pool.submit(one, name) for name in names]
        try:
            for done in concurrent.futures.as_completed(started):
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _translated(work: t.Callable[[], t.Any]) -> t.Any:
    """What will not be otherwise the next time is a Failure; the rest goes through as it is."""
    from huggingface_hub import errors

    try:
        return work()
    except errors.GatedRepoError as error:
        raise Failure("gated", str(error)) from error
    except errors.RepositoryNotFoundError as error:
        raise Failure("missing", str(error)) from error
    except errors.LocalEntryNotFoundError:
        raise  # the hub did not answer
    except (errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        raise Failure("revision", str(error)) from error
    except errors.HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise Failure("gated", str(error)) from error
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Failure("full", str(error)) from error
        raise


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _tidy(folder: Path, whole: dict[str, str]) -> dict[str, str]:
    """Nothing is left but the files themselves."""
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    for path in folder.rglob("*"):
        if path.is_file() and str(path.relative_to(folder)) not in whole:
            path.unlink()
    os.sync()  # the manifest is not to outlive what it names
    return whole


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("--model", "--revision", "--folder"):
        parser.add_argument(name, required=True)
    asked = parser.parse_args()
    folder = Path(asked.folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        answer: dict[str, t.Any] = {"files": fetch(asked.model, asked.revision, folder)}
    except Failure as failure:
        answer = {"kind": failure.kind, "said": " ".join(str(failure).split())[:200]}
    print(json.dumps(answer), flush=True)
    return 0 if "files" in answer else 1


if __name__ == "__main__":
    sys.exit(main())
