# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files on the node that survive a kill: atomic JSON, digests, and locks that die with their holder."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
import typing as t
from pathlib import Path


def write_json(path: Path, value: t.Any, mode: int = 0o644) -> None:
    """Replace `path` by `value` so that a reader sees the old or the new file, never half of one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    private = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(private, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)


def write_texts(folder: Path, contents: t.Mapping[str, str]) -> None:
    """Files by relative path, each replaced as a whole."""
    for name, text in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)


def read_json(path: Path) -> dict[str, t.Any]:
    """The object in `path`; empty when the file is missing, unreadable or torn."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as file:
        return sha256_of(file)


def sha256_of(file: t.BinaryIO) -> str:
    """The same of an open one, from where it is."""
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def receive(stream: t.IO[bytes], path: Path, digest: str, mode: int = 0o644) -> bool:
    """Store what comes from `stream` as `path` if its SHA-256 is `digest`; else False, and nothing is stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    seen = hashlib.sha256()
    try:
        with open(temporary, "wb") as file:
            while chunk := stream.read(1 << 20):
                seen.update(chunk)
                file.write(chunk)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        if seen.hexdigest() != digest:
            return False
        os.replace(temporary, path)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def lock(path: Path, patience: float = 0.5) -> int | None:
    """Take the kernel's lock on `path` and return its descriptor; None when another process holds it.

    The lock is gone when the last process that holds the descriptor is. `patience` in seconds outlasts `locked()`,
    which takes the lock for an instant to see whether it is free.
    """
    descriptor = _open(path)
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                return None
            time.sleep(0.05)


def locked(path: Path) -> bool:
    """Whether a living process holds the lock on `path`."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    """Open for writing, shared between users: in a sticky directory only the owner may pass O_CREAT for a file."""
    while True:
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            pass
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            continue
        os.fchmod(descriptor, 0o666)
        return descriptor
