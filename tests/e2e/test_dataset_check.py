# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module dataset_check alone, as a pipeline that makes data calls it."""

from __future__ import annotations

import json
from pathlib import Path

from .conftest import World


def check(world: World, path: Path, **options: object) -> tuple[int, str]:
    arguments = json.dumps({"path": str(path), **options})
    command = ["ansible", "localhost", "-m", "llmops.finetune.dataset_check", "-a", arguments]
    done = world.shell(command, env=world.environment(path.with_suffix(".record")))
    return done.returncode, done.stdout + done.stderr


def test_it_passes_good_records_and_names_bad_ones(world: World, demo: object, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    path.write_text('{"question": "Why?", "good": "So.", "bad": "No."}\n' * 3, encoding="utf-8")
    rc, text = check(world, path, stage="dpo", columns=columns)
    assert rc == 0 and "records: 3" in text, text
    with path.open("a", encoding="utf-8") as file:
        file.write('{"question": "Why?", "good": "So.", "bad": null}\n')
    rc, text = check(world, path, stage="dpo", columns=columns)
    assert rc != 0 and "record 4: 'bad' is null" in text and "Traceback" not in text
    rc, text = check(world, tmp_path / "none.jsonl")
    assert rc != 0 and "There is no file" in text
