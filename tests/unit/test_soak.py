# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page of soaks: a part that ran replaces its own table and leaves the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..e2e import soak


def test_a_part_replaces_its_own_rows_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "PAGE", tmp_path / "soak.md")
    head = ["| what | took |", "|---|---|"]
    soak.write("recipes", [], [*head, "| a | 1 s |", "| b | 1 s |"], "1a", ended_well=True)
    soak.write("faults", [], [*head, "| c | 1 s |"], "1a", ended_well=True)
    soak.write("recipes", ["-k", "b"], [*head, "| b | 2 s |"], "2b", ended_well=False)
    text = soak.PAGE.read_text(encoding="utf-8")
    assert text.startswith("# Soak\n\n## What is killed\n\n`make soak PART=faults`: ")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    head_row = "| what | took | commit |"
    assert rows == [head_row, "| c | 1 s | 1a |", head_row, "| a | 1 s | 1a |", "| b | 2 s | 2b |"]
    assert text.count("FAILED") == 1 and text.count("\n|---|---|---|\n") == 2
    soak.write("recipes", [], [*head, "| d | 1 s |"], "2b", ended_well=True)
    text = soak.PAGE.read_text(encoding="utf-8")
    assert "| a | 1 s |" not in text and "| d | 1 s |" in text and "| c | 1 s |" in text
