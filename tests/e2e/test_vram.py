# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory: the module vram_info as people call it, and peaks computed again by the environment of a node."""

from __future__ import annotations

import json
import shutil
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._engine import files, state

from ..hub import Hub
from ..vram import rows
from .conftest import BASE, REPOSITORY, Demo, World
from .test_demo_run import node_python

FOLDER = REPOSITORY / "tests" / "vram"
AGAIN = ("qwen2.5-0.5b:lora", "qwen2.5-0.5b:dpo full", "qwen2.5-0.5b:rm full")
"""Computed in a few seconds each."""
KEYS = ("model", "method", "precision", "grad_ckpt", "micro_batch", "seq_len", "optimizer", "note")


@pytest.fixture
def hub() -> t.Iterator[Hub]:
    made = Hub()
    yield made
    made.close()


def ask(world: World, folder: Path, hub: Hub, **options: object) -> tuple[int, str]:
    command = ["ansible", "localhost", "-m", "llmops.finetune.vram_info", "-a", json.dumps(options)]
    done = world.shell(command, env={**world.environment(folder / "record"), "HF_ENDPOINT": hub.address})
    return done.returncode, done.stdout + done.stderr


def test_it_says_what_fits_and_refuses_what_it_cannot_read(
    world: World, demo: object, hub: Hub, tmp_path: Path
) -> None:
    config = str(FOLDER / "configs" / "llama3-8b.json")
    small = {"bf16": True, "per_device_train_batch_size": 1, "cutoff_len": 1024}
    rc, text = ask(world, tmp_path, hub, config=config, recipe="qlora_sft", args=small, gpu="RTX 4090")
    assert rc == 0 and "verdict   fits" in text and "fits: true" in text and "changed: false" in text, text
    full = {**small, "finetuning_type": "full"}
    rc, text = ask(world, tmp_path, hub, config=config, args=full, gpu="H100", world_size=8, engine="zero3")
    assert rc == 0 and "unverified" in text and "engine zero3 on 8 ranks" in text, text
    known = json.loads(Path(config).read_text())
    rc, text = ask(world, tmp_path, hub, config=known, args=full, gpu="80GB", used="1GiB")
    assert rc == 0 and "does not fit" in text and "fits: false" in text, text
    hub.push("owner/small", {"config.json": (FOLDER / "configs" / "qwen2.5-0.5b.json").read_bytes()})
    rc, text = ask(world, tmp_path, hub, config="owner/small", args=small, engine="fsdp", world_size=2)
    assert rc == 0 and "0.50 B parameters" in text and "engine fsdp on 2 ranks" in text, text
    for wrong, word in (
        ({"config": "owner/model"}, "no file owner/model on this controller. The hub has no model owner/model"),
        ({"config": {**known, "num_hidden_layers": -1}}, "num_hidden_layers of the model"),
        ({"config": config, "torch": "new"}, "torch is new"),
        ({"config": config, "args": {"deepspeed": "ds_z3.json"}}, "name the engine: ddp, zero0, zero1"),
        ({"config": config, "padded": "perhaps"}, "padded is perhaps"),
        ({"config": {"model_type": "llama"}}, "has no hidden_size"),
        ({"config": config, "args": {"cutof_len": 1}}, "use cutoff_len"),
        ({"config": config, "gpu": "T1000"}, "no GPU that is known"),
        ({"config": config, "engine": "megatron"}, "engine is 'megatron'"),
        ({"config": config, "args": {"cutoff_len": -5}}, "cutoff_len is out of its range"),
        ({"config": config, "world_size": "many"}, "world_size is many"),
        ({"config": config, "recipe": "none"}, "There is no recipe none"),
    ):
        rc, text = ask(world, tmp_path, hub, **wrong)
        assert rc != 0 and word in text and "Traceback" not in text, text


def test_a_chain_is_estimated_before_its_first_run_is_there(world: World, demo: Demo) -> None:
    """A model of which all but one weight is missing: nothing is trained."""
    model = world.root / "models" / "llama"
    model.mkdir(parents=True)
    (model / "config.json").write_text((FOLDER / "configs" / "llama3-8b.json").read_text())
    header = json.dumps({"model.norm.weight": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"00")
    chain = [
        {"train_name": "m-docs", "train_recipe": "lora_sft", "train_args": {"template": "llama3", "lora_rank": 256}},
        {"train_name": "m-more", "train_from": "m-docs"},
    ]
    wish = {"train_model": str(model), "train_chain": chain, "train_assume_gpus": "H100", "train_eval_datasets": []}
    done = world.play("llmops.finetune.chain", "--check", variables=wish)
    shutil.rmtree(model)
    assert done.rc == 0, done.text
    plans = {
        line["result"]["plan"]["name"]: line["result"]["plan"] for line in done.results if "plan" in line["result"]
    }
    sizes = [plans[name]["memory"]["estimate"]["trainable"] for name in ("m-docs", "m-more")]
    assert sizes[0] == sizes[1] > 600_000_000


def test_what_is_measured_on_gpus_trains_as_llamafactory_does(world: World, demo: Demo, tmp_path: Path) -> None:
    """All of the way but the GPU: without one nothing is measured, and rows say so."""
    environment = Path(node_python(world, demo)).parents[1]
    written = tmp_path / "measured.csv"
    chosen = "--only 02 --only '17 ' --only '26 '"
    asked = f"ARGS=--tiny --out {written} --limit 300 {chosen}"
    done = world.shell(["make", "measure", f"ENVIRONMENT={environment}", asked])
    assert done.returncode == 0, done.stdout + done.stderr
    found = rows.records(written)
    assert [one["id"][:2] for one in found] == ["02", "17", "26"]
    for one in found:
        told = json.loads(one["notes"])
        assert (one["tier"], one["other_metric"], one["alloc_gib"]) == ("none", "", ""), done.stderr
        assert told["tokens_per_second"] > 0 and "llamafactory 0.9.5" in one["software"]
    again = world.shell(["make", "measure", f"ENVIRONMENT={environment}", asked])
    assert "3 rows are there" in again.stdout and rows.records(written) == found


def test_a_plan_is_corrected_by_what_a_finished_run_took(world: World, demo: Demo) -> None:
    """Its GPU is faked: the run is made up from a plan for a GPU that nobody has."""
    folder = BASE / "learned"
    model, root = folder / "model", folder / "root"
    model.mkdir(parents=True)
    shutil.copy(FOLDER / "configs" / "llama3-8b.json", model / "config.json")
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (model / name).write_text("{}", encoding="utf-8")

    def plan() -> dict[str, t.Any]:
        wish = {"train_root": str(root), "train_model": str(model), "train_assume_gpus": "H100"}
        done = world.play("llmops.finetune.plan", variables=wish, template="llama3")
        assert done.rc == 0, done.text
        return dict(done.plan["memory"])

    first = plan()
    assert not root.exists() and "corrected" not in str(first["told"])
    run = state.Run(root / "runs" / "other-00000000")
    run.output.mkdir(parents=True)
    reserved = first["predicted"]["reserved"] + first["estimate"]["process"] // 50
    rank = {"rank": 0, "steps": 9, "gpu": "NVIDIA H100 80GB HBM3", "cuda_reserved": reserved}
    files.write_json(run.memory, {"predicted": first["predicted"], "measured": [rank]})
    files.write_json(run.artefacts, state.inventory(run))
    again = plan()
    assert "corrected by +2.0 % from 1 run on NVIDIA H100 80GB HBM3 (llama, lora, sft, single)" in again["told"][2]
    assert again["estimate"]["bound"] == pytest.approx(1.02 * first["estimate"]["bound"])
    assert again["predicted"] == first["predicted"]
    run.memory.write_text(run.memory.read_text().replace(str(reserved), str(2 * reserved)), encoding="utf-8")
    assert plan() == first, "it is not what the run left"


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
