# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A play that is refused: nothing is touched, and a person reads what to change."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest

from .conftest import Demo, World, tree

BROKEN = {"instruction": "Why?"}
"""A record without an answer."""


@pytest.mark.parametrize(
    ("variables", "where", "change"),
    [
        ({"train_set": "quantization_bit=3"}, "train_set, key quantization_bit", "change quantization_bit"),
        ({"train_datasets": [{"file": "{}/a.jsonl"}]}, "record 2", "output"),
    ],
)
def test_a_refused_play_touches_nothing_and_names_variable_and_remedy(
    world: World, demo: Demo, tmp_path: Path, variables: dict[str, t.Any], where: str, change: str
) -> None:
    record = {"instruction": "Why?", "output": "So."}
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(record)}\n{json.dumps(BROKEN)}\n", encoding="utf-8")
    given = json.loads(json.dumps(variables).replace("{}", str(tmp_path)))
    watched = [path for path in world.clone.iterdir() if path.name not in (".venv", ".git")]
    watched += [world.root, world.leases]  # what is the machine's, another worker may touch meanwhile
    before = tree(*watched)
    refused = world.play("train.yml", variables=given)
    assert tree(*watched) == before
    assert refused.rc == 2 and refused.changed == []
    assert where in refused.message.partition("where: ")[2]
    assert change in refused.message.partition("change: ")[2]
    assert "Traceback" not in refused.text
