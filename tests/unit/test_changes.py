# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What modules say of what they change."""

from __future__ import annotations

from ansible_collections.llmops.finetune.plugins.module_utils import _changes


def test_changes_are_told_and_with_diff_shown_one_a_line() -> None:
    changes = _changes.Changes(dry=True)
    assert [changes.add("create", "/a b"), changes.add("start", "/c")] == [False, False]
    answer = _changes.answer(changes.made, diff=True)
    assert answer == {"changed": True, "changes": changes.made, "diff": {"prepared": "create /a b\nstart /c\n"}}
    assert "diff" not in _changes.answer(changes.made, diff=False)
    assert _changes.answer([], diff=True) == {"changed": False, "changes": []}
