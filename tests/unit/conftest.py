# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What unit tests share."""

from __future__ import annotations

import functools
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._engine import files
from ansible_collections.llmops.finetune.plugins.module_utils._vram import estimate, walk


@pytest.fixture(scope="session", autouse=True)
def _walked_once() -> t.Iterator[None]:
    """Plans by the thousand are of few jobs: what a job takes of a GPU is a pure function of it, and the costly one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "walk", functools.lru_cache(maxsize=None)(walk.walk))
        yield


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose digest is made of their content."""
    names: list[str] = []
    sha256 = files.sha256

    def noted(path: Path) -> str:
        names.append(path.name)
        return sha256(path)

    monkeypatch.setattr(files, "sha256", noted)
    return names
