# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of a model on a hub: which of them a run reads, and whether those that came are what the hub says."""

from __future__ import annotations

import hashlib
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
"""Bytes of a file; its digest: SHA-256, or SHA-1 as git counts it."""


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
