# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of a LLaMA-Factory file says how ranks share the work becomes train_engine, or is refused with what to write."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible_collections.llmops.finetune.plugins.module_utils import _sources, _wish
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.module_utils._wish.imported import Imported
from ansible_collections.llmops.finetune.plugins.plugin_utils import _import, _recipes

SCHEMAS = _sources.schemas()
RECIPES = _recipes.read()
DEFAULTS: dict[str, t.Any] = yaml.safe_load(
    (Path(__file__).parents[2] / "roles/train/defaults/main.yml").read_text(encoding="utf-8")
) | {"train_name": "", "train_eval_datasets": []}
START = "model_name_or_path: org/model\nstage: sft\ndo_train: true\n"


def read(text: str, folders: t.Sequence[Path] = ()) -> Imported:
    return _import.read(START + text, "my.yaml", SCHEMAS, folders)


@pytest.mark.parametrize(
    ("text", "engine"),
    [
        ("deepspeed: examples/deepspeed/ds_z0_config.json\n", "zero0"),
        ("deepspeed: examples/deepspeed/ds_z2_config.json\n", "zero2"),
        ("deepspeed: ds_z3_offload_config.json\n", "zero3_offload"),
        ("deepspeed: {zero_optimization: {stage: 2, offload_optimizer: {device: cpu}}}\n", "zero2_offload"),
        ("fsdp: full_shard auto_wrap\nfsdp_config: {fsdp_version: 2}\n", "fsdp2"),
        ("fsdp: [full_shard, auto_wrap]\n", "fsdp2"),
        ("fsdp: true\n", "fsdp2"),
        ("deepspeed:\nfsdp: ''\n", ""),
        ("use_kt: true\nkt_config: {kt_backend: auto}\n", "ktransformers"),
        ("use_kt: true\nfsdp: true\n", "ktransformers"),
        ("fsdp: true\nuse_kt: false\n", "fsdp2"),
        ("tensor_model_parallel_size: 2\nuse_distributed_optimizer: true\n", "megatron"),
        ("expert_model_parallel_size: 2\n", "megatron"),
        ("fsdp_config: fsdp.json\n", ""),  # which LLaMA-Factory itself passes over
    ],
)
def test_the_engine_of_a_file(text: str, engine: str) -> None:
    found = read(text)
    assert found.engine == engine
    assert not found.arguments.keys() & {"deepspeed", "fsdp", "fsdp_config", "use_kt"}
    told = [f"my.yaml, line 4: it becomes train_engine {engine}, where that is left at auto."] if engine else []
    if text == "fsdp_config: fsdp.json\n":
        told = ["my.yaml, line 4: fsdp_config is left out, as there is no fsdp."]
    assert found.notices == told


def test_a_deepspeed_file_above_the_config_is_read(tmp_path: Path) -> None:
    path = tmp_path / "examples/deepspeed/ds_z2_config.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"zero_optimization": {"stage": 3}}), encoding="utf-8")
    (tmp_path / "examples/my.yaml").write_text(START + "deepspeed: examples/deepspeed/ds_z2_config.json\n")
    assert _import.find("my.yaml", [tmp_path / "examples"], SCHEMAS).engine == "zero3"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(FinetuneError, match="cannot be read: line 1 is no JSON") as refusal:
        _import.find("my.yaml", [tmp_path / "examples"], SCHEMAS)
    assert "which is JSON, or remove it and set train_engine" in refusal.value.change


@pytest.mark.parametrize(
    ("text", "told", "change"),
    [
        ("deepspeed: mine.json\n", "There is no file mine.json", "zero2 or zero3"),
        ("deepspeed: examples/deepspeed/ds_z2_autotp_config.json\n", "no file", "zero2 or zero3"),
        ("deepspeed: {zero_optimization: {stage: 1}}\n", "No engine is like", "zero2"),
        ("fsdp: full_shard offload\n", "offload", "zero3_offload"),
        ("fsdp: shard_grad_op auto_wrap\n", "shard_grad_op", "fsdp2"),
        ("deepspeed: ds_z3_config.json\nfsdp: full_shard\n", "exclude each other", "remove all but one"),
        ("deepspeed: ds_z3_config.json\nuse_kt: true\n", "deepspeed and use_kt exclude", "remove all but one"),
    ],
)
def test_what_has_no_engine_is_refused_with_its_line(text: str, told: str, change: str) -> None:
    with pytest.raises(FinetuneError) as refusal:
        read(text)
    assert told in refusal.value.what and change in refusal.value.change
    assert "my.yaml, line 4" in refusal.value.where


def test_keys_of_megatron_do_not_go_with_another_engine() -> None:
    told = "fsdp and pipeline_model_parallel_size exclude each other"
    with pytest.raises(FinetuneError, match=told):
        read("fsdp: true\npipeline_model_parallel_size: 2\n")
    found = read("dataset: mine\npipeline_model_parallel_size: 2\n")
    with pytest.raises(FinetuneError, match="no key pipeline_model_parallel_size") as refusal:
        _wish.read(DEFAULTS | {"train_engine": "zero3"}, SCHEMAS, RECIPES, found)
    assert refusal.value.change == "set train_engine: megatron"


def test_train_engine_goes_over_the_file() -> None:
    found = read("dataset: mine\ndeepspeed: ds_z3_config.json\n")
    assert _wish.read(DEFAULTS | {"train_datasets": ["demo"]}, SCHEMAS, RECIPES, found).engine == "zero3"
    assert _wish.read(DEFAULTS | {"train_engine": "fsdp2"}, SCHEMAS, RECIPES, found).engine == "fsdp2"
