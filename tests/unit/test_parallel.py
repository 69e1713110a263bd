# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Engines: what auto picks, what each adds to a run, and where it is refused."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
import yaml
from ansible_collections.llmops.finetune.plugins.module_utils import _parallel
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

BADAM = {"use_badam": True}


def node(
    gpus: int = 0, cpus: int = 8, compilers: t.Sequence[str] = ("c++",), flags: t.Sequence[str] = ("avx512f",)
) -> dict[str, t.Any]:
    return {"gpus": [{}] * gpus, "cpus": cpus, "compilers": list(compilers), "cpu_flags": list(flags)}


@pytest.mark.parametrize(
    ("wanted", "arguments", "world_size", "engine"),
    [
        ("auto", {}, 1, "single"),
        ("auto", {}, 2, "ddp"),
        ("ddp", {}, 1, "single"),
        ("auto", {"finetuning_type": "full"}, 8, "ddp"),
        ("auto", BADAM, 1, "zero3"),
        ("auto", BADAM, 2, "zero3"),
        ("auto", {**BADAM, "badam_mode": "ratio"}, 2, "ddp"),
        ("ddp", BADAM, 2, "ddp"),
        ("zero3_offload", {}, 1, "zero3_offload"),
        ("fsdp2", {}, 1, "fsdp2"),
    ],
)
def test_what_is_picked(wanted: str, arguments: dict[str, t.Any], world_size: int, engine: str) -> None:
    assert _parallel.pick(wanted, arguments, world_size) == engine


def test_the_role_takes_every_engine() -> None:
    spec = yaml.safe_load((Path(__file__).parents[2] / "roles/train/meta/argument_specs.yml").read_text())
    assert spec["argument_specs"]["main"]["options"]["train_engine"]["choices"] == list(_parallel.CHOICES)


@pytest.mark.parametrize(
    ("engine", "stage", "offloaded", "gathers"),
    [
        ("zero0", 0, [], False),
        ("zero2", 2, [], False),
        ("zero2_offload", 2, ["offload_optimizer"], False),
        ("zero3", 3, [], True),
        ("zero3_offload", 3, ["offload_optimizer", "offload_param"], True),
    ],
)
def test_deepspeed_json(engine: str, stage: int, offloaded: list[str], gathers: bool) -> None:
    config = _parallel.deepspeed(engine)
    assert config is not None
    zero = config["zero_optimization"]
    assert zero["stage"] == stage and zero["overlap_comm"] is False
    assert sorted(key for key in zero if key.startswith("offload")) == offloaded
    assert ("stage3_gather_16bit_weights_on_model_save" in zero) == gathers
    assert {config[key] for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_clipping")} == {
        "auto"
    }
    assert _parallel.of_deepspeed(config) == engine


@pytest.mark.parametrize(
    ("engine", "arguments", "replicas"),
    [
        ("zero3", {"tensor_model_parallel_size": 4}, 8),
        ("megatron", {}, 8),
        ("megatron", {"tensor_model_parallel_size": 2, "context_parallel_size": None}, 4),
        ("megatron", {"pipeline_model_parallel_size": 4, "expert_model_parallel_size": 2}, 2),
        (
            "megatron",
            {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "context_parallel_size": 2},
            1,
        ),
        ("megatron", {"tensor_model_parallel_size": 16}, 1),
    ],
)
def test_ranks_that_hold_a_model_together_train_on_the_same_records(
    engine: str, arguments: dict[str, t.Any], replicas: int
) -> None:
    assert _parallel.replicas(engine, arguments, 8) == replicas


@pytest.mark.parametrize("engine", ["single", "ddp", "fsdp2", "megatron", "ktransformers"])
def test_other_engines_have_no_deepspeed_json(engine: str) -> None:
    assert _parallel.deepspeed(engine) is None


def test_variables_of_the_ranks() -> None:
    assert _parallel.variables("ddp", {}, "/b") == {}
    assert _parallel.variables("zero2", {}, "/b") == {"TORCH_EXTENSIONS_DIR": "/b"}
    fsdp = _parallel.variables("fsdp2", {}, "/b")
    assert (fsdp["ACCELERATE_USE_FSDP"], fsdp["FSDP_VERSION"]) == ("true", "2")
    assert fsdp["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"
    assert fsdp["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"
    assert _parallel.variables("ktransformers", {}, "/b") == fsdp
    assert _parallel.variables("megatron", {}, "/b") == {"USE_MCA": "1"}
    assert _parallel.variables("fsdp2", {"quantization_bit": 4}, "/b")["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"


@pytest.mark.parametrize(
    ("engine", "there"),
    [
        ("ddp", node(compilers=())),
        ("fsdp2", node(compilers=())),
        ("zero3", node(gpus=1, compilers=())),
        ("zero3", node()),
        ("zero3_offload", node()),
        ("zero3_offload", node(gpus=1, compilers=("c++", "nvcc"))),
        ("megatron", node(gpus=1, compilers=(), flags=())),
        ("ktransformers", node(gpus=1, compilers=())),
    ],
)
def test_what_runs(engine: str, there: dict[str, t.Any]) -> None:
    _parallel.refuse(engine, {"a": there})


@pytest.mark.parametrize(
    ("engine", "there", "told"),
    [
        ("zero2", node(compilers=()), "b has no c++"),
        ("zero3_offload", node(gpus=1), "b has no nvcc"),
        ("zero3_offload", node(gpus=1, compilers=()), "b has no c++ and no nvcc"),
        ("ray", node(gpus=8, cpus=80), "Engine ray is not provided"),
        ("megatron", node(cpus=96), "Engine megatron runs on GPUs alone; b has no GPU"),
        ("ktransformers", node(flags=()), "beside CPUs with avx512f; b has no GPU and no avx512f"),
        ("ktransformers", node(gpus=1, flags=("avx2",)), "b has no avx512f"),
    ],
)
def test_what_is_refused(engine: str, there: dict[str, t.Any], told: str) -> None:
    good = node(gpus=8, cpus=96, compilers=("c++", "nvcc"))
    with pytest.raises(FinetuneError, match=r"change:") as refused:
        _parallel.refuse(engine, {"a": good, "b": there})
    assert told in str(refused.value) and "train_engine" in str(refused.value)


@pytest.mark.parametrize(
    ("nodes", "told"),
    [
        ([node(cpus=96)], ["a: the first host, and no GPU; each of the 96 CPUs", "needs 960 CPUs, and there are 96"]),
        ([node(cpus=2), node(gpus=1, cpus=32)], ["each of the 34 CPUs", "needs 340 CPUs, and there are 34"]),
        ([node(gpus=1, cpus=9)], ["a: 1 GPU needs 10 CPUs, and there are 9"]),
        ([node(gpus=8, cpus=80), node(gpus=8, cpus=79)], ["b: 8 GPUs need 80 CPUs, and there are 79"]),
        ([node(gpus=8, cpus=80), node(cpus=8)], ["b: 8 CPUs and no GPU"]),
        ([node(gpus=2, cpus=8), node(gpus=4, cpus=39)], ["a: 2 GPUs need 20", "b: 4 GPUs need 40"]),
    ],
)
def test_hosts_on_which_ray_would_place_no_ranks(nodes: list[dict[str, t.Any]], told: list[str]) -> None:
    with pytest.raises(FinetuneError) as refused:
        _parallel.refuse("ray", dict(zip("ab", nodes, strict=False)))
    assert "without end" in str(refused.value) and "train_engine ray" in str(refused.value)
    assert [words for words in told if words not in str(refused.value)] == []
    assert ("\n          a:" in str(refused.value)) == (len(nodes) == 1 or nodes[0]["cpus"] < 80)


@pytest.mark.parametrize("nodes", [[node(gpus=1, cpus=10)], [node(gpus=8, cpus=80), node(gpus=1, cpus=10)]])
def test_where_ray_could_place_ranks_the_reason_is_another(nodes: list[dict[str, t.Any]]) -> None:
    with pytest.raises(FinetuneError, match=r"not provided: .*supervisor(.|\n)*playbook llmops.finetune.ray"):
        _parallel.refuse("ray", dict(zip("ab", nodes, strict=False)))


@pytest.mark.parametrize(
    ("engine", "state", "ranks", "refused"),
    [
        ("zero3", "interrupted", 4, True),
        ("zero2", "stopped", 4, True),
        ("zero3", "interrupted", 2, False),
        ("zero3", "staged", 4, False),
        ("zero3", "finished", 4, False),
        ("zero0", "interrupted", 4, False),
        ("ddp", "interrupted", 4, False),
        ("fsdp2", "interrupted", 4, False),
        ("megatron", "interrupted", 4, True),
    ],
)
def test_shards_are_for_as_many_ranks_as_wrote_them(engine: str, state: str, ranks: int, refused: bool) -> None:
    run = {"id": "x-1", "state": state, "resolved": {"engine": engine, "world_size": 2}}
    if not refused:
        _parallel.refuse_other_shards(run, ranks)
        return
    with pytest.raises(FinetuneError, match="in 2 parts, now there are 4 ranks"):
        _parallel.refuse_other_shards(run, ranks)


def test_a_run_that_is_not_there_has_no_shards() -> None:
    _parallel.refuse_other_shards({}, 4)


@pytest.mark.parametrize(
    ("config", "engine"),
    [
        ({}, "zero0"),
        ({"zero_optimization": {"stage": 2}}, "zero2"),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}, "zero3_offload"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "none"}}}, "zero3"),
        ({"zero_optimization": {"stage": 1}}, ""),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, ""),
        ({"zero_optimization": {"stage": 2}, "tensor_parallel": {"autotp_size": 2}}, ""),
    ],
)
def test_the_engine_of_a_configuration(config: dict[str, t.Any], engine: str) -> None:
    assert _parallel.of_deepspeed(config) == engine
