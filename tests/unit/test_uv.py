# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""uv's command lines and words."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _uv
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError


def test_uv_sees_nobodys_settings() -> None:
    environ = {"UV_INDEX_URL": "x", "PIP_INDEX_URL": "x", "VIRTUAL_ENV": "x", "PYTHONPATH": "x", "https_proxy": "p"}
    got = _uv.environment(environ, "/r", "/home/a", "https://example.invalid/simple")
    assert not {"UV_INDEX_URL", "PIP_INDEX_URL", "VIRTUAL_ENV", "PYTHONPATH"} & set(got)
    assert (got["https_proxy"], got["HOME"], got["UV_CACHE_DIR"]) == ("p", "/home/a", "/r/cache/uv")
    assert (got["UV_NO_CONFIG"], got["UV_PYTHON_DOWNLOADS"]) == ("1", "never")
    assert got["UV_DEFAULT_INDEX"] == "https://example.invalid/simple"
    assert "UV_DEFAULT_INDEX" not in _uv.environment({}, "/r", "/home/a")


def test_sync_arguments() -> None:
    arguments = _uv.sync_arguments(
        "/e", "/e/lock.txt", constraints="/e/build.txt", reinstall=["a"], find_links="/wheels", offline=True
    )
    command = "pip sync --require-hashes --python /e/bin/python --build-constraints /e/build.txt --reinstall-package a"
    assert " ".join(arguments) == f"{command} --find-links /wheels --offline --no-index /e/lock.txt"
    assert "--no-index" not in _uv.sync_arguments("/e", "l", offline=True)
    bare = _uv.sync_arguments("/e", "l", find_links="/wheels")
    assert not {"--offline", "--build-constraints"} & set(bare)


@pytest.mark.parametrize(
    ("content", "digest", "action"),
    [(b"program", "", "update"), (b"program", hashlib.sha256(b"program").hexdigest(), ""), (None, "", "create")],
)
def test_the_program_is_put_there_whole_or_not_at_all(
    tmp_path: Path, content: bytes | None, digest: str, action: str
) -> None:
    shipped = {"version": "1.2.3", "size": 7, "sha256": digest}
    uv = _uv.Uv(str(tmp_path), "/home/a", shipped, io.BytesIO(content) if content else None, "")
    assert [change["action"] for change in uv.missing()] == ["create"]
    if action == "update":
        Path(uv.program).parent.mkdir(parents=True)
        Path(uv.program).write_bytes(b"torn")
    if action:
        with pytest.raises(FinetuneError, match=r"damaged on its way|was removed"):
            uv.install()
    else:
        uv.install()
        assert os.stat(uv.program).st_mode & 0o777 == 0o755
    assert [change["action"] for change in uv.missing()] == ([action] if action else [])
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]


@pytest.mark.parametrize(
    ("stderr", "meaning", "remedy"),
    [
        ("cause: Hash mismatch for `six==1.17.0`\n  Expected: sha256:0", "hash", "uv_env_index_url"),
        ("cause: No space left on device (os error 28)", "disk is full", "uv_env_root"),
        (
            "Because idna was not found in the cache and …\nhint: the network was disabled",
            "may not be used",
            "uv_env_offline",
        ),
        ("Because idna was not found in the provided package locations", "may not be used", "uv_env_find_links"),
        ("cause: client error (Connect)\ncause: dns error", "cannot be reached", "uv_env_find_links"),
        ("cause: tcp connect error\ncause: Connection refused (os error 111)", "cannot be reached", "uv_env_index_url"),
        ("Because there is no version of idna==9 and …", "does not have a package", "uv_env_index_url"),
        ("Failed to build `x==1`\ncause: gcc failed", "could not be built", "compiler"),
        ("x has no wheels with a matching platform tag", "no wheel for this node", "uv_env_python"),
        ("something new", "uv failed", "uv's words"),
    ],
)
def test_failures_of_uv_are_explained(stderr: str, meaning: str, remedy: str) -> None:
    error = _uv.explain(stderr, "node-main")
    assert meaning in error.what
    assert remedy in error.change
    assert stderr.splitlines()[0] in error.change


def test_credentials_do_not_reach_messages() -> None:
    assert _uv.strip_credentials("url (https://me:secret@example.invalid/simple/six/)") == (
        "url (https://***@example.invalid/simple/six/)"
    )
