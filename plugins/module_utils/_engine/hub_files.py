# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of a model on a hub: which of them a run reads, and whether those that came are what the hub says."""

from __future__ import annotations

import hashlib
import json
import re
import typing as t
from pathlib import Path

TRIES = 4
"""How often in a row nothing may come before a fetch is given up."""

_NOT_READ = re.compile(
    r"(.*/)?\..*|(original|onnx|openvino|coreml|gguf|tf|flax|metal|mlx)/.*|"
    r".*\.(gguf|ggml|onnx|onnx_data|h5|msgpack|tflite|ot|mlmodel|nemo|png|jpe?g|gif|webp|svg|mp4|pdf)",
    re.IGNORECASE,
)
"""The same weights in forms that transformers does not read from PyTorch, and pictures of the model's page."""
_AGAIN = re.compile(r"(pytorch_model|consolidated).*\.(bin|pth|pt|safetensors)(\.index\.json)?")
"""The same weights in an older form beside those that are read."""

Expected = t.Tuple[int, str]
"""Bytes of a file; its digest: SHA-256, SHA-1 as git counts it, MD5, or `<MD5 of the MD5s of parts>-<parts>/<bytes of a
part>` as S3 counts it. Empty where there is none to hold it against."""


class Failure(Exception):
    """kind: missing, revision, gated, unreachable, cut, full, damaged, moved."""

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


def pin(files: t.Mapping[str, Expected]) -> str:
    """40 hex digits for the content of what a run reads, where a hub tells no commit."""
    said = json.dumps([[name, files[name][1]] for name in wanted(files)])
    return hashlib.sha256(said.encode()).hexdigest()[:40]


def digests(folder: Path, expected: t.Mapping[str, Expected]) -> dict[str, str]:
    """SHA-256 of the files that are as the hub has them."""
    found = {}
    for name, (size, digest) in expected.items():
        path = folder / name
        if path.is_file() and path.stat().st_size == size:
            sha256, told = hashlib.sha256(), _counted(digest, size)
            with open(path, "rb") as file:
                while chunk := file.read(1 << 20):
                    sha256.update(chunk)
                    told.update(chunk)
            if digest in ("", sha256.hexdigest(), told.hexdigest()):
                found[name] = sha256.hexdigest()
    return found


class _Counted(t.Protocol):
    def update(self, chunk: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


class _Nothing:
    """SHA-256 is counted anyway."""

    def update(self, chunk: bytes, /) -> None:
        pass

    def hexdigest(self) -> str:
        return "none"


class _Parts:
    """MD5 of the MD5s of parts."""

    def __init__(self, each: int) -> None:
        self.each, self.left = each, each
        self.part, self.digests = hashlib.md5(usedforsecurity=False), list[bytes]()

    def update(self, chunk: bytes, /) -> None:
        while chunk:
            self.part.update(chunk[: self.left])
            took, chunk = min(self.left, len(chunk)), chunk[self.left :]
            self.left -= took
            if not self.left:
                self._close()

    def _close(self) -> None:
        self.digests.append(self.part.digest())
        self.part, self.left = hashlib.md5(usedforsecurity=False), self.each

    def hexdigest(self) -> str:
        if self.left < self.each:
            self._close()
        whole = hashlib.md5(b"".join(self.digests), usedforsecurity=False).hexdigest()
        return f"{whole}-{len(self.digests)}/{self.each}"


def _counted(digest: str, size: int) -> _Counted:
    """What counts a file in the way of a digest."""
    if "-" in digest:
        return _Parts(int(digest.rpartition("/")[2]))
    if len(digest) == 40:
        return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    return hashlib.md5(usedforsecurity=False) if len(digest) == 32 else _Nothing()


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
