# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How ranks share the work: the engines of train_engine, what each adds to a run, and where it cannot run."""

from __future__ import annotations

import math
import typing as t
from types import MappingProxyType

from ._errors import FinetuneError

AUTO = "auto"


class Engine(t.NamedTuple):
    zero_stage: int | None = None
    """DeepSpeed's; None is another engine."""
    offload: bool = False
    """Optimizer, and in stage 3 weights too, lie in the node's memory. A run that goes on from a checkpoint was seen to
    come out otherwise than an undisturbed one, on the CPU with deepspeed 0.18.4; why is not known."""
    fsdp: bool = False
    environment: str = ""
    """The profile that has its packages; empty where that of the stage has them."""
    arguments: t.Mapping[str, t.Any] = MappingProxyType({})
    """Keys of train.yaml that stand for it."""
    variables: t.Mapping[str, str] = MappingProxyType({})
    """Environment variables of the ranks that stand for it."""
    gpus_alone: bool = False
    cpu_flags: t.Tuple[str, ...] = ()
    """Instructions that the CPUs must have besides."""
    unproved: bool = False
    """Rendered as its documents have it, and never run by this project."""

    @property
    def sharded(self) -> bool:
        """Its checkpoints hold one part per rank: only as many ranks can go on from them."""
        return bool(self.zero_stage) or self.environment == "megatron"

    def builds_with(self, gpus: bool) -> set[str]:
        """Compilers that DeepSpeed needs at its first use: for the optimizer of offloaded state, and without GPUs for
        its communication (op_builder/cpu_adam.py, op_builder/cpu/comm.py)."""
        if self.zero_stage is None or (gpus and not self.offload):
            return set()
        return {"c++", "nvcc"} if gpus else {"c++"}


ENGINES: dict[str, Engine] = {
    "single": Engine(),  # what ddp is with one rank
    "ddp": Engine(),
    "zero0": Engine(zero_stage=0),
    "zero2": Engine(zero_stage=2),
    "zero2_offload": Engine(zero_stage=2, offload=True),
    "zero3": Engine(zero_stage=3),
    "zero3_offload": Engine(zero_stage=3, offload=True),
    "fsdp2": Engine(fsdp=True),
    "megatron": Engine(environment="megatron", variables={"USE_MCA": "1"}, gpus_alone=True, unproved=True),
    "ktransformers": Engine(
        fsdp=True,
        environment="ktransformers",
        arguments={"use_kt": True},
        gpus_alone=True,
        cpu_flags=("avx512f",),
        unproved=True,
    ),
}
UNPROVIDED = {
    "ray": "LLaMA-Factory starts Ray's workers itself, where neither supervisor nor resume reaches them; playbook "
    "llmops.finetune.ray makes a cluster for jobs of your own",
}
"""Engines that LLaMA-Factory has and this collection does not start, and why."""

PROVIDED = (AUTO, *(name for name in ENGINES if name != "single"))
"""What train_engine may be."""
CHOICES = (*PROVIDED, *UNPROVIDED)
"""What it takes, if only to say why not."""

MODEL_SIZES = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
"""Megatron's keys that say over how many ranks one copy of the model is spread."""
EXPERT_SIZES = ("expert_tensor_parallel_size", "expert_model_parallel_size")
"""Those of a mixture of experts, which are spread over the ranks in their own way."""

CPUS_PER_DEVICE = 10
"""CPUs that LLaMA-Factory's Ray launcher reserves for each device of the cluster (train/trainer_utils.py)."""


def pick(wanted: str, arguments: t.Mapping[str, t.Any], world_size: int) -> str:
    """The engine for `auto`: ddp, unless an argument runs on another one alone."""
    if wanted == AUTO:
        layers = arguments.get("use_badam") and arguments.get("badam_mode", "layer") == "layer"
        wanted = "zero3" if layers else "ddp"
    return "single" if wanted == "ddp" and world_size == 1 else wanted


def refuse(engine: str, nodes: t.Mapping[str, dict[str, t.Any]]) -> None:
    """Refuse an engine that these nodes (facts by host) cannot run."""
    if engine == "ray":
        _refuse_unplaceable(nodes)
    if engine in UNPROVIDED:
        raise FinetuneError(
            f"Engine {engine} is not provided: {UNPROVIDED[engine]}.",
            where="train_engine",
            change="use auto; for weights that one GPU does not hold, zero3 or fsdp2",
        )
    for host, node in nodes.items():
        _refuse_hardware(engine, host, node)
        missing = sorted(ENGINES[engine].builds_with(bool(node["gpus"])) - set(node["compilers"]))
        if missing:
            raise FinetuneError(
                f"{host} has no {' and no '.join(missing)}, with which DeepSpeed builds a part of itself.",
                where=f"train_engine {engine}",
                change="use ddp or fsdp2; or install c++ with Python's headers (Debian: g++ python3-dev) and "
                "nvcc with the CUDA toolkit",
            )


def _refuse_hardware(engine: str, host: str, node: t.Mapping[str, t.Any]) -> None:
    needed = ENGINES[engine]
    lacks = [f"no {flag}" for flag in needed.cpu_flags if flag not in node["cpu_flags"]]
    if needed.gpus_alone and not node["gpus"]:
        lacks.insert(0, "no GPU")
    if lacks:
        raise FinetuneError(
            f"Engine {engine} runs on GPUs alone{', beside CPUs with ' * bool(needed.cpu_flags)}"
            f"{' and '.join(needed.cpu_flags)}; {host} has {' and '.join(lacks)}.",
            where="train_engine",
            change="leave such hosts out (--limit), or set train_engine: zero3 or fsdp2",
        )


def environment(engine: str) -> str:
    """The profile of an engine that has one of its own."""
    return ENGINES[engine].environment if engine in ENGINES else ""


def replicas(engine: str, arguments: t.Mapping[str, t.Any], world_size: int) -> int:
    """How many ranks, or groups of ranks with one copy of the model together, train on records of their own."""
    if environment(engine) != "megatron":
        return world_size
    return max(1, world_size // math.prod(int(arguments.get(key) or 1) for key in MODEL_SIZES))


def refuse_other_shards(run: t.Mapping[str, t.Any], world_size: int) -> None:
    """Refuse to go on with a run (facts of the node) on another number of ranks than its checkpoints are parts for."""
    was = run.get("resolved") or {}
    before = was.get("world_size", world_size)
    begun = run.get("state") in ("interrupted", "stopped", "failed")
    if begun and before != world_size and ENGINES[was["engine"]].sharded:
        raise FinetuneError(
            f"Run {run['id']} has checkpoints of engine {was['engine']} in {before} parts, now there are {world_size} "
            "ranks.",
            where="inventory, train_gpus",
            change=f"bring back {before} ranks, or remove the run with train_state=absent and begin again",
        )


def _refuse_unplaceable(nodes: t.Mapping[str, dict[str, t.Any]]) -> None:
    """LLaMA-Factory asks Ray for 10 CPUs beside each device of the cluster, and waits for them without end. What a
    device is, the first host says: its GPUs, or without one the CPUs of all hosts."""
    rows = []
    for host, node in nodes.items():
        cpus, gpus = node["cpus"], len(node["gpus"])
        if host == next(iter(nodes)) and not gpus:
            devices = sum(one["cpus"] for one in nodes.values())
            rows.append(
                f"{host}: the first host, and no GPU; each of the {devices} CPUs is a device then, which needs "
                f"{CPUS_PER_DEVICE * devices} CPUs, and there are {devices}"
            )
        elif not gpus:
            rows.append(f"{host}: {cpus} CPUs and no GPU; it would get no rank")
        elif cpus < CPUS_PER_DEVICE * gpus:
            need = "GPU needs" if gpus == 1 else "GPUs need"
            rows.append(f"{host}: {gpus} {need} {CPUS_PER_DEVICE * gpus} CPUs, and there are {cpus}")
    if rows:
        raise FinetuneError(
            f"Ray cannot place LLaMA-Factory's ranks: it is asked for {CPUS_PER_DEVICE} CPUs beside each device, and "
            "waits for them without end.",
            where="train_engine ray\n          " + "\n          ".join(rows),
            change="use auto, zero3 or fsdp2",
        )


def deepspeed(engine: str) -> dict[str, t.Any] | None:
    """deepspeed.json of an engine that is DeepSpeed's. What transformers knows from the arguments is `auto`; only
    values that are not DeepSpeed's defaults are given besides."""
    stage, offload = ENGINES[engine].zero_stage, ENGINES[engine].offload
    if stage is None:
        return None
    zero: dict[str, t.Any] = {"stage": stage, "overlap_comm": False}
    if stage in (0, 2):
        zero["round_robin_gradients"] = True
    else:
        zero |= {
            "reduce_bucket_size": "auto",  # the three from the model's hidden size
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_gather_16bit_weights_on_model_save": True,  # else there is no model.safetensors
        }
    if offload:
        place = {"device": "cpu", "pin_memory": True}
        zero |= {"offload_optimizer": place} | ({"offload_param": place} if stage == 3 else {})
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,  # any `optim` of transformers
        "fp16": {"enabled": "auto"},
        "bf16": {"enabled": "auto"},
        "zero_optimization": zero,
    }


def variables(engine: str, arguments: t.Mapping[str, t.Any], builds: str) -> dict[str, str]:
    """Environment variables of the ranks. builds: where DeepSpeed builds, for one environment alone.

    FSDP2 is asked for as `accelerate launch` does it: LLaMA-Factory's key `fsdp` means FSDP1 with transformers 4.
    """
    if ENGINES[engine].zero_stage is not None:
        return {"TORCH_EXTENSIONS_DIR": builds}
    if ENGINES[engine].fsdp:
        return {
            "ACCELERATE_USE_FSDP": "true",
            "FSDP_VERSION": "2",
            "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",  # at the layers that the model names itself
            "FSDP_RESHARD_AFTER_FORWARD": "true",
            # One rank of a node reads the weights for all; accelerate cannot do so with quantized ones.
            "FSDP_CPU_RAM_EFFICIENT_LOADING": "false" if arguments.get("quantization_bit") else "true",
            "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",  # sharded ones leave no model.safetensors
        }
    return dict(ENGINES[engine].variables)


def of_deepspeed(config: t.Mapping[str, t.Any]) -> str:
    """The engine for a DeepSpeed configuration that somebody has; empty where none is like it."""
    zero = config.get("zero_optimization") or {}
    places = [(zero.get(key) or {}).get("device", "none") for key in ("offload_optimizer", "offload_param")]
    wanted = Engine(zero_stage=zero.get("stage", 0), offload="cpu" in places)
    if "nvme" in places or "tensor_parallel" in config:
        return ""
    return next((name for name, engine in ENGINES.items() if engine == wanted), "")
