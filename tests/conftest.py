# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all tests share."""

from __future__ import annotations

import shutil
import subprocess
import typing as t
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

FIRST = ("test_demo_run.py", "test_sanity.py", "test_supervisor.py")
"""One of two workers builds the environment, while the other one has to do what needs none."""
LONG = (
    "test_ppo.py",
    "test_faults.py",
    "test_explained.py",
    "test_nodes.py",
    "test_hub_model.py",
    "test_engines.py",
    "test_chain.py",
)
"""Files that take minutes. The shortest, those of unit tests, come last, so that both workers end at about one time."""


def files() -> list[Path]:
    """Paths, relative to the checkout, of what git tracks or would track; links to folders count as one path."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    names = sorted({name for name in listed.split("\0") if name})
    return [Path(name) for name in names if (REPOSITORY / name).exists() or (REPOSITORY / name).is_symlink()]


@pytest.fixture(scope="session")
def copy_tree() -> t.Callable[[Path], Path]:
    """A function that copies the checkout, without what git ignores, to a folder."""

    def copy(target: Path) -> Path:
        for path in files():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / path, target / path, follow_symlinks=False)
        return target

    return copy


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def order(item: pytest.Item) -> tuple[int, bool]:
        name, before = item.path.name, (*FIRST, *LONG)
        return before.index(name) if name in before else len(before), "unit" in item.path.parts

    items.sort(key=order)
