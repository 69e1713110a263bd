# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records checked where they lie: by the module dataset_check alone, and on a node by its environment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from ..unit.broken_records import ALPACA, alpaca, table, write_table
from .conftest import BASE, Demo, World
from .test_demo_run import node_python


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
    write_table(tmp_path / "rows.parquet", table([ALPACA, alpaca(output=None)]))
    rc, text = check(world, tmp_path / "rows.parquet")
    assert rc != 0 and "record 2: 'output' is null" in text
    rc, text = check(world, tmp_path / "none.jsonl")
    assert rc != 0 and "There is no file" in text


def test_the_environment_reads_what_the_python_of_the_node_cannot(world: World, demo: Demo) -> None:
    """A parquet file on a node without pyarrow; while its environment is damaged too, once that is mended."""
    bare = Path(sys.base_prefix) / "bin" / "python3"
    assert subprocess.run([bare, "-c", "import pyarrow"], capture_output=True, check=False).returncode != 0
    path = BASE / "pairs.parquet"
    wanted = {
        "ansible_python_interpreter": str(bare),
        "train_name": "parquet",
        "train_datasets": [{"path": str(path)}],
        "train_eval_datasets": [],
        "train_state": "staged",
    }
    pyarrow = next(Path(node_python(world, demo)).parents[1].glob("lib/python3.*/site-packages/pyarrow"))

    write_table(path, table([ALPACA, alpaca(output=None)]))
    refused = world.play("train.yml", "--check", variables=wanted)
    assert refused.rc != 0 and "record 2: 'output' is null" in refused.message, refused.text

    write_table(path, table([ALPACA, ALPACA]))
    (pyarrow / "__init__.py").unlink()
    others = list((world.root / "envs").glob("*/lib/python3.*/site-packages/pyarrow/__init__.py"))
    for other in others:  # of another recipe: it would be asked
        other.rename(other.with_suffix(".hidden"))
    predicted = world.play("train.yml", "--check", variables=wanted)
    assert predicted.rc == 0 and "its records are read when the environment is there" in predicted.text
    staged = world.play("train.yml", variables=wanted)
    for other in others:
        other.with_suffix(".hidden").rename(other)
    assert staged.rc == 0, staged.text
    assert predicted.changes == staged.changes
    info = json.loads((world.folder(staged) / "dataset_info.json").read_text(encoding="utf-8"))
    assert info["pairs"]["columns"] == {"prompt": "instruction", "query": "input", "response": "output"}
    again = world.play("train.yml", variables=wanted)
    assert again.rc == 0 and again.changed == [], again.changes
