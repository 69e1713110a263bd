# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`ansible-test sanity` on a real copy of the tree, and that it ran.

In the link farm ansible-test finds nothing to test and passes, so it gets a copy in a folder of the shape it wants.
Its environments stay in .cache/sanity between runs.
"""

from __future__ import annotations

from concurrent.futures import Future

import pytest
from ansible.release import __version__ as core_version

from .ansible_sanity import PYTHON, Report

FEWEST = 20


@pytest.fixture(scope="module")
def report(sanity_report: Future[Report]) -> Report:
    return sanity_report.result()


def test_ansible_test_ran(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nansible-test sanity: {len(report.ran)} tests, ansible-core {core_version}, Python {PYTHON}", end=" ")
        for warning in report.warnings:
            print(f"\n  {warning}", end=" ")
    assert len(report.ran) >= FEWEST, report.text


def test_no_sanity_test_failed(report: Report) -> None:
    assert report.rc == 0 and not report.errors, "\n".join(report.errors) or report.text
