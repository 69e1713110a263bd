# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of datasets on the controller: a model that sees trains on them on the node, for real."""

from __future__ import annotations

import json
import shutil
import subprocess
import typing as t
from pathlib import Path

import pytest

from ..unit.broken_records import ANSWER, alpaca, talk, write
from .conftest import BASE, REPOSITORY, Demo, Outcome, World

HERE = BASE / "pictures"


def picture(red: int) -> bytes:
    return b"P6 56 56 255\n" + bytes([red, 0, 255 - red]) * 56 * 56


@pytest.fixture(scope="module")
def asked(demo: Demo) -> dict[str, t.Any]:
    """Two datasets in folders of their own, with pictures beside them, and a model that sees."""
    shutil.rmtree(HERE, ignore_errors=True)
    for path in ("one/signs/red.ppm", "one/signs/blue.ppm", "two/more/red.ppm"):
        (HERE / path).parent.mkdir(parents=True, exist_ok=True)
        (HERE / path).write_bytes(picture(200 if "red" in path else 0))
    signs = [alpaca(instruction="<image>Why?", images=[f"signs/{name}.ppm"]) for name in ("red", "blue")]
    ask = {"from": "human", "value": "<image><image>Which?"}
    talks = [talk(ask, ANSWER, images=["more/red.ppm", "./more//red.ppm"])]
    write(HERE / "one/signs.jsonl", signs * 4)
    write(HERE / "two/talks.json", talks * 4)
    launch = json.loads((demo.folder / "launch.json").read_text())
    base = demo.applied.plan["nodes"]["localhost"]["model"]["path"]
    command = [launch["python"], REPOSITORY / "tests/e2e/vision_model.py", base, HERE / "model"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    for file in (HERE / "model").iterdir():
        file.chmod(0o644)  # runs may belong to another account
    return {
        "train_name": "seeing",
        "train_model": str(HERE / "model"),
        "train_datasets": [
            {"name": "signs", "file": str(HERE / "one/signs.jsonl")},
            {"name": "talks", "file": str(HERE / "two/talks.json"), "formatting": "sharegpt"},
        ],
        "train_eval_datasets": [],
    }


def play(world: World, asked: dict[str, t.Any], *arguments: str) -> Outcome:
    cache = {"XDG_CACHE_HOME": str(HERE / "cache")}
    short: dict[str, t.Any] = {"template": "qwen2_vl", "max_steps": 3, "save_steps": 3, "logging_steps": 1}
    return world.play("train.yml", *arguments, variables=asked, environment=cache, **short)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_pictures_are_sent_trained_on_mended_and_part_of_who_the_run_is(world: World, asked: dict[str, t.Any]) -> None:
    predicted = play(world, asked, "--check")
    assert predicted.rc == 0, predicted.text
    applied = play(world, asked)
    assert applied.rc == 0, applied.text
    media = applied.plan["nodes"]["localhost"]["media"]
    assert ("create", media["folder"]) in predicted.changes
    assert predicted.changes == applied.changes
    stored = Path(media["folder"]) / "files"
    assert {path.name: path.read_bytes() for path in (stored / "signs").iterdir()} == {
        "red.ppm": picture(200),
        "blue.ppm": picture(0),
    }
    log = (world.folder(applied) / "logs/attempt-1.log").read_text(encoding="utf-8")
    assert "does not exist in `media_dir`" not in log
    assert (world.folder(applied) / "output/adapter_model.safetensors").stat().st_size > 500

    again = play(world, asked)
    assert again.rc == 0 and again.changed == [], again.text

    flip_a_byte(stored / "more/red.ppm")
    mended = play(world, asked)
    assert mended.changes == [("update", media["folder"])], mended.text
    assert (stored / "more/red.ppm").read_bytes() == picture(200)

    flip_a_byte(HERE / "one/signs/blue.ppm")
    other = play(world, asked, "--check")
    assert other.rc == 0, other.text
    assert other.plan["id"] != applied.plan["id"]
    assert any("datasets.signs.media" in line for line in other.plan["difference"])
