# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page of soaks: a part that ran replaces its own table and leaves the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..e2e import soak


def test_a_part_replaces_its_own_table_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "PAGE", tmp_path / "soak.md")
    soak.write("recipes", [], ["| a |"], ended_well=True)
    soak.write("faults", [], ["| b |"], ended_well=True)
    soak.write("recipes", ["-k", "dora"], ["| c |"], ended_well=False)
    text = soak.PAGE.read_text(encoding="utf-8")
    assert text.startswith("# Soak\n\n## What is killed\n\n`make soak PART=faults` on commit ")
    assert "| b |\n\n## Recipes\n\n`make soak PART=recipes -k dora` on commit " in text
    assert "| a |" not in text and text.endswith("what is not in the table.\n\n| c |\n")
