# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all tests share."""

from __future__ import annotations

import shutil
import subprocess
import typing as t
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

if t.TYPE_CHECKING:
    from .sanity.ansible_sanity import Report

REPOSITORY = Path(__file__).parents[1]


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


@pytest.fixture(scope="session", autouse=True)
def sanity_report(
    request: pytest.FixtureRequest,
    copy_tree: t.Callable[[Path], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> t.Iterator[Future[Report] | None]:
    """ansible-test runs beside the other tests, which leave a core idle most of the time; its own tests come last."""
    if not any("sanity" in item.path.parts for item in request.session.items):
        yield None
        return
    from .sanity.ansible_sanity import run

    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(run, copy_tree, tmp_path_factory.mktemp("sanity"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: "sanity" in item.path.parts)
