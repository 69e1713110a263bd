# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which Python carries an environment."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _python

FACTS: dict[str, t.Any] = {
    "version": [3, 12, 3],
    "implementation": "CPython",
    "platform": "linux-x86_64",
    "free_threaded": False,
}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"version": [3, 11, 0]}, ""),
        ({"version": [3, 13, 9]}, ""),
        ({"version": [3, 10, 12]}, "Python 3.10.12"),
        ({"version": [3, 14, 0]}, "Python 3.14.0"),
        ({"implementation": "PyPy"}, "PyPy, not CPython"),
        ({"free_threaded": True}, "Python 3.12.3 without the GIL"),
        ({"platform": "linux-aarch64"}, "built for linux-aarch64"),
    ],
)
def test_judge_python(change: dict[str, t.Any], why: str) -> None:
    assert _python.judge({**FACTS, **change}) == why


def test_candidates_are_ordered_by_version_then_place() -> None:
    found = _python.candidates("/opt/bin:/usr/bin/:relative:", "/home/alice")
    assert found[:4] == [
        "/usr/bin/python3.11",
        "/usr/local/bin/python3.11",
        "/opt/bin/python3.11",
        "/home/alice/.local/bin/python3.11",
    ]
    assert found[-1] == "/home/alice/.local/bin/python3"
    assert len(found) == 16


def test_refusal_of_an_old_python_names_the_remedy() -> None:
    message = _python.refusal({"/usr/bin/python3": "Python 3.10.12"}, "", "alice").message()
    for part in ("/usr/bin/python3: Python 3.10.12", "apt install python3.11", "uv_env_python", "alice"):
        assert part in message
