# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run needs of each rank's GPU, of the host and of the disk; and whether that fits. All sizes are bytes."""

from __future__ import annotations

import typing as t
from dataclasses import asdict, dataclass, field, replace

from . import learned, options, shape, tower
from .engines import COLLECTIVE
from .hardware import Gpu
from .options import Situation
from .tape import FULL, HALF
from .trust import BAND, QUICK, REPLAYED
from .walk import Job, Walk, walk

GIB = 1 << 30
PROCESS = 4 * GIB
"""Memory of the host for Python, PyTorch and the file of weights that is being read; not measured."""
UNKNOWN_CONTEXT = 448 << 20
"""A CUDA context on a GPU that is not named."""
WORDS = {
    "load": "load",
    "forward": "forward",
    "loss forward": "loss, forward",
    "loss backward": "loss, backward",
    "backward": "backward of the layers",
    "backward end": "end of backward",
    "generation": "generation",
    "optimizer": "optimizer step",
    "evaluation": "evaluation",
    "save": "save",
}
ADVICE = {
    "forward": "a shorter cutoff_len or a smaller per_device_train_batch_size; gradient checkpointing, if it is off",
    "loss, forward": "enable_liger_kernel (pt and sft), a smaller per_device_train_batch_size or cutoff_len",
    "loss, backward": "enable_liger_kernel (pt and sft), a smaller per_device_train_batch_size or cutoff_len",
    "backward of the layers": "a shorter cutoff_len, a smaller per_device_train_batch_size, or gradient checkpointing, "
    "if it is off",
    "end of backward": "pure_bf16, lora, or an engine that shards (zero2, zero3, fsdp2)",
    "optimizer step": "optim adamw_torch_fused or an 8-bit one, lora, or an engine that shards (zero2, zero3, fsdp2)",
    "evaluation": "a smaller per_device_eval_batch_size",
    "load": "quantization_bit 4, or an engine that shards weights (zero3, fsdp2)",
    "generation": "a smaller max_new_tokens or per_device_train_batch_size",
}


@dataclass(frozen=True)
class Estimate:
    """Of one rank. The estimate itself is unbiased; decisions use the bound."""

    parameters: int
    """Elements."""
    trainable: int
    """Elements."""
    resident: int
    """Between steps: weights, states of the optimizer, buffers."""
    moments: t.Dict[str, int]
    """Peak of the tensors at each moment of a step."""
    binding: str
    """The moment that decides."""
    tensors: int
    """Their peak."""
    allocated: int
    """What torch.cuda.max_memory_allocated would tell."""
    reserved: int
    """And max_memory_reserved."""
    context: int
    """What CUDA and NCCL take outside of PyTorch."""
    process: int
    """What nvidia-smi would tell of the process."""
    bound: int
    """What the process is taken to need in decisions."""
    host: int
    """Memory of the host for this rank."""
    checkpoint: int
    """One checkpoint on disk, all ranks together, with the states of the optimizer."""
    tag: str
    """replayed, formula or unverified."""
    band: float
    """Bound beyond the estimate, as a part of it."""
    reasons: t.List[str] = field(default_factory=list)
    """Why the tag is not `replayed`."""
    batch: int = 0
    """Records of a micro-batch that it is for."""
    length: int = 0
    """Tokens of a sequence that it is for."""
    evaluated: int = 0
    """Records of a batch in evaluation; 0 where there is none."""

    def as_dict(self) -> dict[str, t.Any]:
        return asdict(self)


class Verdict(t.NamedTuple):
    fits: bool
    free: int
    """Left over, by the bound; negative where it does not fit."""
    why: str


def estimate(
    config: t.Mapping[str, t.Any],
    arguments: t.Mapping[str, t.Any],
    situation: Situation | None = None,
    thorough: bool = False,
) -> Estimate:
    """config: the model's config.json; arguments: LLaMA-Factory's keys."""
    situation = situation or Situation()
    reading = options.read(shape.read(config), arguments, situation)
    found = of_job(reading.job, situation.gpu, reading.tag, reading.reasons, reading.patches, thorough)
    fix = correction(found, reading, situation)
    if fix is None:
        return found
    return replace(found, process=round(found.process * fix.factor), bound=round(found.bound * fix.factor))


def correction(found: Estimate, reading: options.Reading, situation: Situation) -> learned.Correction | None:
    """What finished runs make of an estimate."""
    if not situation.seen or situation.gpu is None:
        return None
    kind = learned.kind_of(reading, situation.gpu.name)
    return learned.correction(situation.seen, kind, found.reserved + found.context)


def of_job(
    job: Job,
    gpu: Gpu | None = None,
    tag: str = REPLAYED,
    reasons: t.Sequence[str] = (),
    patches: int = 0,
    thorough: bool = False,
) -> Estimate:
    walked, seeing = walk(job, thorough), tower.of(job, patches)
    moments = {name: round(size + seeing.at(name)) for name, size in _told(walked).items()}
    elements, trained = round(walked.elements) + seeing.elements, round(walked.trained) + seeing.trained
    tensors = max(moments.values())
    allocated, reserved = round(tensors + walked.unsplit), round(tensors + walked.cached)
    context = (gpu.context if gpu else UNKNOWN_CONTEXT) + (COLLECTIVE if job.engine.world > 1 else 0)
    process, band = reserved + context, BAND[tag] + (0 if thorough else QUICK)
    return Estimate(
        parameters=elements,
        trainable=trained,
        resident=round(walked.resident + seeing.resident),
        moments=moments,
        binding=max(moments, key=lambda name: moments[name]),
        tensors=tensors,
        allocated=allocated,
        reserved=reserved,
        context=context,
        process=process,
        bound=round(process * (1 + band)),
        host=round(PROCESS + job.engine.on_host(elements, trained) + _on_host(job, walked)),
        checkpoint=round(_checkpoint(job, elements, trained, walked.states + seeing.states)),
        tag=tag,
        band=band,
        reasons=list(reasons),
        batch=job.run.batch,
        length=job.run.length,
        evaluated=job.evaluation.batch if job.evaluation else 0,
    )


def verdict(found: Estimate, memory: int, used: int = 0) -> Verdict:
    """memory: of the GPU; used: what others hold of it."""
    free = memory - used - found.bound
    room = f"{gib(memory - used)} of {gib(memory)}" if used else gib(memory)
    why = f"needs {gib(found.process)}, up to {gib(found.bound)} ({found.tag}), and there is {room}"
    if free < 0:
        remedy = ADVICE.get(found.binding, "a smaller per_device_train_batch_size or cutoff_len")
        why += f"; {found.binding} decides, so what helps is {remedy}"
    return Verdict(free >= 0, free, why)


def gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def _told(walked: Walk) -> dict[str, float]:
    """Moments as people name them; saving takes what lies there between steps."""
    named = {WORDS[name]: size for name, size in walked.moments.items() if name in WORDS}
    return {**named, "save": walked.resident}


def _on_host(job: Job, walked: Walk) -> float:
    """Inputs of layers that wait there for backward, and states that may be paged out."""
    kept = job.shape.layers * job.run.tokens * job.shape.hidden * HALF if job.physics.checkpointing == "host" else 0
    return kept + (walked.states if job.optimizer.paged else 0)


def _checkpoint(job: Job, elements: float, trained: float, kept: float) -> float:
    """Weights as they are saved, and the states of the optimizer."""
    engine = job.engine
    adapters = job.physics.rank or job.physics.method == "oft"
    width = HALF if engine.half_weights or job.physics.trained_width == HALF else FULL
    saved = trained * width if adapters else elements * width
    share = engine.share()
    states = kept / share if share else 3 * FULL * trained
    return saved + states
