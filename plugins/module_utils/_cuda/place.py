# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files, keys and archives that are put on a node."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
from hashlib import sha256
from pathlib import Path

from .._errors import FinetuneError
from . import key, packages
from .facts import Plan, Repository


def repository_is(one: Repository) -> bool:
    return text_of(one.path) == one.text and (not one.key or key.matches(text_of(one.key_path), one.pin))


def add(one: Repository) -> None:
    if one.key:
        text = _fetch(one.key).decode("ascii", "replace")
        if not key.matches(text, one.pin):
            raise FinetuneError(
                "The key of a package repository is not the one that is known.",
                where=f"{one.key}: {', '.join(key.fingerprints(text)) or 'no key'}, and not {one.pin}",
                change="find out why; the fingerprint of a new key of its maker's goes into cuda_repository_pin",
            )
        write(Path(one.key_path), text)
    write(Path(one.path), one.text)


def _fetch(address: str) -> bytes:
    from ansible.module_utils import urls  # only where a repository is added

    try:
        with urls.open_url(address, timeout=60) as answer:
            return bytes(answer.read())
    except (OSError, ValueError, urls.ConnectionError) as error:
        raise FinetuneError(
            f"{address} cannot be fetched: {error}.",
            where="this host",
            change="let it reach that address, or name a mirror with cuda_repository",
        ) from None


def install_efa(version: str, made: Plan) -> None:
    """AWS's installer is a script in an archive, whose digest is known."""
    address, digest = made.efa_source
    content = _fetch(address)
    if sha256(content).hexdigest() != digest:
        raise FinetuneError(
            f"The EFA installer {version} is not the one that is known.",
            where=f"{address}, sha256 {sha256(content).hexdigest()}",
            change="find out why, or give its digest with cuda_efa_digest",
        )
    folder = tempfile.mkdtemp(prefix="llmops-efa-")
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            archive.extractall(folder)  # noqa: S202 - its digest is known
        script = next(Path(folder).glob("*/efa_installer.sh"))
        packages.run("sh", "-c", 'cd "$0" && ./efa_installer.sh --yes', str(script.parent))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def text_of(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(0o644)
    os.replace(temporary, path)
