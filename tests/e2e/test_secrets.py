# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A secret is found in its file, in the ranks, and nowhere else."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

from .conftest import BASE, Demo, World

CANARY = "canary-5f0c1d"
NAMED = {"train_name": "secretive"}


def holding(canary: str, *folders: Path) -> list[Path]:
    return [
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and canary.encode() in path.read_bytes()
    ]


def test_a_secret_is_only_in_its_file(world: World, demo: Demo) -> None:
    secret = {**NAMED, "train_secrets": {"HF_TOKEN": CANARY}}
    done = world.play(variables=secret, max_steps=2, save_steps=2)
    assert done.rc == 0, done.text
    kept = world.root / "secrets" / f"{done.plan['id']}.json"
    assert json.loads(kept.read_text()) == {"HF_TOKEN": CANARY}
    assert (kept.stat().st_mode & 0o777, kept.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert CANARY not in done.text and CANARY not in json.dumps(done.results)
    given = BASE / "runner" / str(world.count) / "env" / "extravars"  # how this test hands it over
    elsewhere = holding(CANARY, world.root / "runs", world.root / "secrets", BASE / "runner" / str(world.count))
    assert set(elsewhere) <= {kept, given}, elsewhere

    assert world.play(variables=secret, max_steps=2, save_steps=2).changed == []
    gone = world.play(variables=NAMED, max_steps=2, save_steps=2)
    assert gone.changes == [("remove", str(kept))] and not kept.exists()


def test_an_absent_run_leaves_no_folder_and_no_secret(world: World, demo: Demo) -> None:
    short: dict[str, t.Any] = {"max_steps": 2, "save_steps": 2}
    staged = world.play(
        variables={"train_name": "brief", "train_secrets": {"A": CANARY}, "train_state": "staged"}, **short
    )
    assert staged.rc == 0 and world.folder(staged).is_dir()
    absent = {"train_name": "brief", "train_state": "absent"}
    assert world.play("train.yml", "--check", variables=absent, **short).changes == [
        ("remove", str(world.folder(staged)))
    ]
    gone = world.play(variables=absent, **short)
    assert gone.rc == 0 and not world.folder(staged).exists()
    assert holding(CANARY, world.root / "secrets") == []
    assert world.play(variables=absent, **short).changed == []
