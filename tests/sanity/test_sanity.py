# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`ansible-test sanity` on a real copy of the tree, and that it ran.

In the link farm ansible-test finds nothing to test and passes, so it gets a copy in a folder of the shape it wants.
Its environments stay in .cache/sanity between runs. In `make test` it looks at what is shipped; in `make sanity` at the
tests too, whose style is otherwise ruff's and mypy's to judge.
"""

from __future__ import annotations

import os
import typing as t
from pathlib import Path

import pytest
from ansible.release import __version__ as core_version

from .ansible_sanity import PYTHON, Report, run

FEWEST = 20


@pytest.fixture(scope="module")
def report(copy_tree: t.Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Report:
    without = () if os.environ.get("SANITY_TESTS") else ("tests",)
    return run(copy_tree, tmp_path_factory.mktemp("sanity"), without=without)


def test_ansible_test_ran(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nansible-test sanity: {len(report.ran)} tests, ansible-core {core_version}, Python {PYTHON}", end=" ")
        for warning in report.warnings:
            print(f"\n  {warning}", end=" ")
    assert len(report.ran) >= FEWEST, report.text


def test_no_sanity_test_failed(report: Report) -> None:
    assert report.rc == 0 and not report.errors, "\n".join(report.errors) or report.text
