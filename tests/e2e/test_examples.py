# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The example files of LLaMA-Factory, from its source distribution: planned on a node with GPUs, or refused and why.

The distribution is fetched by pip, held against the hashes of our lock, and thrown away.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _identity, _plan, _sources, _wish
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.plugin_utils import _import, _recipes

from ..unit import plans, test_import
from .conftest import REPOSITORY

SCHEMAS = _sources.schemas()
RECIPES = _recipes.read()
GPUS = 8

NO_TRAINING = {
    "accelerate": "accelerate's launcher",
    "extras/multi_tokens": "none of LLaMA-Factory's keys",
    "inference": "there to talk to a model",
    "ktransformers/accelerate": "accelerate's launcher",
    "merge_lora": "there to merge an adapter or to quantize",
    "v1": "LLaMA-Factory's v1 trainer",
}
"""Folders of files that are not for the trainer, and whose they are."""

_UNKNOWN = "There is no dataset"
_TWICE = "marked as ready twice"  # torchrun starts single ranks too, and DDP looks for unused weights
REFUSED = {
    "ascend/qwen3_5_full_sft_fsdp2": "for NPUs",
    "ascend/qwen3_full_sft_fsdp2": "for NPUs",
    "ascend/qwen3moe_full_sft_fsdp": "for NPUs",
    "ascend/qwen3vlmoe_full_sft_fsdp2": "for NPUs",
    "ascend/qwen3vlmoe_lora_sft_fsdp": "for NPUs",
    "extras/apollo/llama3_full_sft": "Layer-wise APOLLO",
    "extras/asft/llama2_full_asft": _UNKNOWN,
    "extras/asft/qwen2_full_asft": _UNKNOWN,
    "extras/fp8/llama3_fp8_deepspeed_sft": "WANDB_API_KEY",
    "extras/fp8/llama3_fp8_fsdp_sft": "WANDB_API_KEY",
    "extras/galore/llama3_full_sft": "Layer-wise GaLore",
    "extras/mod/llama3_full_sft": "transformers before 4.45",
    "extras/nlg_eval/llama3_lora_predict": "there to evaluate or to predict",
    "extras/oft/llama3_oft_sft": _TWICE,
    "extras/oft/qwen2_5vl_oft_sft": _TWICE,
    "extras/qoft/llama3_oft_sft_awq": "package autoawq",
    "extras/qoft/llama3_oft_sft_bnb_npu": _TWICE,
    "extras/qoft/llama3_oft_sft_gptq": "package gptqmodel",
    "ktransformers/train_lora/qwen3moe_lora_sft_kt": "another template for this very model",
    "train_lora/qwen3_lora_sft_ray": "package ray",
    "train_lora/qwen3_preprocess": "A relative tokenized_path",  # a later run would not find what it leaves
    "train_qlora/llama3_lora_sft_aqlm": "package aqlm",
    "train_qlora/llama3_lora_sft_awq": "package autoawq",
    "train_qlora/llama3_lora_sft_gptq": "package gptqmodel",
}
"""Files for the trainer that are refused on a node with NVIDIA GPUs: the hardware, package or data missing or wrong."""

BACKEND = """
from pathlib import Path

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    place = Path(folder) / "llamafactory-{version}.dist-info"
    place.mkdir()
    place.joinpath("METADATA").write_text("Metadata-Version: 2.1\\nName: llamafactory\\nVersion: {version}\\n")
    return place.name
"""
"""In place of the build backend, which pip asks for name and version of what it downloads: nothing is built."""


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `examples` of the version that our lock pins."""
    folder = tmp_path_factory.mktemp("llamafactory")
    (folder / "hatchling").mkdir()
    (folder / "hatchling/__init__.py").touch()
    version = SCHEMAS["main"].version
    (folder / "hatchling/build.py").write_text(BACKEND.format(version=version), encoding="utf-8")
    lock = (REPOSITORY / "requirements/node-main.txt").read_text(encoding="utf-8")
    pinned = re.search(r"^llamafactory==(?:.*\\\n)*.*", lock, re.MULTILINE)
    assert pinned
    (folder / "pinned.txt").write_text(pinned.group(), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*pip, "--require-hashes", "--no-binary", "llamafactory", "--dest", folder, "-r", folder / "pinned.txt"],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with tarfile.open(folder / f"llamafactory-{version}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / f"llamafactory-{version}" / "examples"


PICTURED = {
    "train_full/qwen3vl_full_sft",
    "train_lora/qwen3vl_lora_sft",
}
"""Files whose data bring pictures along."""


def planned(path: Path) -> tuple[str, bool]:
    """Why the file is refused, empty when it is planned; and whether media are sent along."""
    facts = {"a": plans.node(gpus=GPUS, sources=[], compilers=["c++", "nvcc"])}
    try:
        imported = _import.find(str(path), [path.parent], SCHEMAS)
        wish = _wish.read(test_import.DEFAULTS, SCHEMAS, RECIPES, imported)
        sources = _sources.sources(wish, [path.parent], facts)
        who = _identity.find(wish, sources, facts, corpus_digest="c" * 64)
        plan = _plan.make(who, sources, facts, environment=plans.LOCK, schema=SCHEMAS[wish.environment])
    except FinetuneError as refusal:
        assert refusal.where and refusal.change, refusal
        return str(refusal), False
    written = {line["key"] for line in plan.nodes["a"]["arguments"]}
    assert {"model_name_or_path", "dataset_dir", "output_dir", *imported.arguments} <= written
    return "", bool(plan.media)


def test_every_example_for_the_trainer_is_planned_or_names_what_is_missing(
    examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told = {str(path.relative_to(examples).with_suffix("")): planned(path) for path in files(examples)}
    assert len(told) > 80
    assert {name for name, (_refusal, pictured) in told.items() if pictured} == PICTURED
    for name, (refusal, _pictured) in told.items():
        whose = next((reason for folder, reason in NO_TRAINING.items() if name.startswith(f"{folder}/")), "")
        reason = whose or REFUSED.get(name, "")
        assert (reason in refusal) if reason else not refusal, (name, refusal)
    assert REFUSED.keys() <= told.keys()


def files(folder: Path) -> t.Iterator[Path]:
    return folder.rglob("*.yaml")
