# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory: the module vram_info as people call it, and peaks computed again by the environment of a node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ..vram import rows
from .conftest import REPOSITORY, Demo, World
from .test_demo_run import node_python

FOLDER = REPOSITORY / "tests" / "vram"
AGAIN = ("qwen2.5-0.5b:lora", "qwen2.5-0.5b:dpo full", "qwen2.5-0.5b:rm full")
"""Computed in a few seconds each."""
KEYS = ("model", "method", "precision", "grad_ckpt", "micro_batch", "seq_len", "optimizer", "note")


def ask(world: World, folder: Path, **options: object) -> tuple[int, str]:
    command = ["ansible", "localhost", "-m", "llmops.finetune.vram_info", "-a", json.dumps(options)]
    done = world.shell(command, env=world.environment(folder / "record"))
    return done.returncode, done.stdout + done.stderr


def test_it_says_what_fits_and_refuses_what_it_cannot_read(world: World, demo: object, tmp_path: Path) -> None:
    config = str(FOLDER / "configs" / "llama3-8b.json")
    small = {"bf16": True, "per_device_train_batch_size": 1, "cutoff_len": 1024}
    rc, text = ask(world, tmp_path, config=config, recipe="qlora_sft", args=small, gpu="RTX 4090")
    assert rc == 0 and "verdict   fits" in text and "fits: true" in text and "changed: false" in text, text
    full = {**small, "finetuning_type": "full"}
    rc, text = ask(world, tmp_path, config=config, args=full, gpu="H100", world_size=8, engine="zero3")
    assert rc == 0 and "unverified" in text and "engine zero3 on 8 ranks" in text, text
    rc, text = ask(world, tmp_path, config=json.loads(Path(config).read_text()), args=full, gpu="80GB", used="1GiB")
    assert rc == 0 and "does not fit" in text and "fits: false" in text, text
    for wrong, word in (
        ({"config": "owner/model"}, "There is no file owner/model on this controller"),
        ({"config": {"model_type": "llama"}}, "has no hidden_size"),
        ({"config": config, "args": {"cutof_len": 1}}, "use cutoff_len"),
        ({"config": config, "gpu": "T1000"}, "no GPU that is known"),
        ({"config": config, "engine": "megatron"}, "engine is 'megatron'"),
        ({"config": config, "world_size": "many"}, "world_size is many"),
        ({"config": config, "recipe": "none"}, "There is no recipe none"),
    ):
        rc, text = ask(world, tmp_path, **wrong)
        assert rc != 0 and word in text and "Traceback" not in text, text


def test_the_environment_computes_the_same_peaks_again(world: World, demo: Demo, tmp_path: Path) -> None:
    """Another transformers, PEFT or PyTorch in the lock shows here."""
    python = node_python(world, demo)
    written = tmp_path / "truth.csv"
    done = world.shell([python, "-m", "tests.vram.fake", str(FOLDER / "configs"), str(written), *AGAIN])
    assert done.returncode == 0, done.stderr
    known = {tuple(record[key] for key in KEYS): record for record in rows.records(FOLDER / "truth.csv")}
    found = rows.records(written)
    assert len(found) >= 4
    for record in found:
        before = known[tuple(record[key] for key in KEYS)]
        for phase in ("peak_fwd", "peak_bwd", "peak_opt"):
            assert float(record[phase]) == pytest.approx(float(before[phase]), rel=1e-4), record
