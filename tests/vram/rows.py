# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows of measured and of computed peaks, and the job that each of them tells of."""

from __future__ import annotations

import contextlib
import csv
import json
import re
import typing as t
from dataclasses import replace
from pathlib import Path

from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.module_utils._vram import (
    hardware,
    optimizers,
    options,
    shape,
    trust,
)
from ansible_collections.llmops.finetune.plugins.module_utils._vram.options import Situation
from ansible_collections.llmops.finetune.plugins.module_utils._vram.physics import Physics
from ansible_collections.llmops.finetune.plugins.module_utils._vram.stages import Run
from ansible_collections.llmops.finetune.plugins.module_utils._vram.tape import FULL, HALF
from ansible_collections.llmops.finetune.plugins.module_utils._vram.trust import FORMULA, REPLAYED, UNVERIFIED
from ansible_collections.llmops.finetune.plugins.module_utils._vram.walk import Job

GIB = 1 << 30
OWN = "llmops.finetune"
"""How the source of rows begins that measure.py wrote."""
Record = dict[str, str]
Phases = tuple[float, float, float]


class Row(t.NamedTuple):
    """One figure, and what it is a figure of."""

    name: str
    group: str
    """Tier and kind, under which it is summed up."""
    job: Job
    tag: str
    gpu: hardware.Gpu | None
    allocated: float
    """Bytes; 0 where it is not told."""
    reserved: float
    process: float
    phases: Phases
    """Peaks of forward, backward and optimizer; 0 where they are not told."""
    bits: int
    """Of the base model's weights, for estimators that know no more."""


class Out(t.NamedTuple):
    name: str
    group: str
    why: str


Made = Row | Out
Parts = tuple[Physics, str, int, bool, str]
"""Physics, optimizer, accumulation, expandable segments, tag."""


def records(path: Path) -> list[Record]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def configs(folder: Path) -> dict[str, dict[str, t.Any]]:
    """By name of the model; the files have __ for /."""
    return {
        path.stem.replace("__", "/"): json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")
    }


def truth(record: Record, known: t.Mapping[str, t.Any]) -> Made:
    """A row of computed peaks."""
    kind = "a T4's profile" if "T4" in record["kind"] else "LLaMA-Factory's profile"
    group = f"{kind}, {record['method']}"
    name = f"{record['model']} {record['method']} {record['micro_batch']}x{record['seq_len']}"
    if record["model"] not in known:
        return Out(name, group, "no config")
    found = shape.read(known[record["model"]])
    physics = _of_t4(record) if "T4" in record["kind"] else _of_llamafactory(record)
    job = Job(
        found,
        physics,
        optimizers.OPTIMIZERS[_optimizer(record["optimizer"])],
        Run(int(record["micro_batch"]), int(record["seq_len"])),
        accumulation=int((re.search(r"accumulation (\d+)", record["note"]) or [0, 1])[1]),
        expandable=False,
    )
    forward, backward, optimizer = (float(record[f"peak_{phase}"]) for phase in ("fwd", "bwd", "opt"))
    bits, phases = 4 if physics.quantization else 16, (forward, backward, optimizer)
    return Row(name, group, job, REPLAYED, None, float(record["peak_bytes"]), 0, 0, phases, bits)


def _of_llamafactory(record: Record) -> Physics:
    stage, _blank, method = record["method"].rpartition(" ")
    amp, adapters = record["precision"] == "amp_bf16", "lora" in record["method"]
    turned = 32 if method == "oft" else 0
    return Physics(
        stage=stage or "sft",
        method="lora" if adapters else method,
        autocast=amp,
        outputs_in_full=amp,
        trained_width=FULL if amp else HALF,
        adapter_width=FULL if amp else HALF,
        rank=int(record["lora_rank"]) if adapters else 0,
        dropout=float(record["lora_dropout"] or 0),
        dora="dora" in method,
        turned=turned,
        quantization=4 if "nf4" in record["quant"] else 0,
        double_quantization="dq" in record["quant"],
        trained_layers=2 if method == "freeze" else None,
        checkpointing="on" if record["grad_ckpt"] == "True" else "off",
        attention=record["attn"],
        padded="mask" in record["note"],
        reference=stage in ("dpo", "kto") and not (adapters or turned),
    )


def _of_t4(record: Record) -> Physics:
    """fp16 without autocast, after PEFT's k-bit preparation, by transformers 5 and a loop that keeps its outputs."""
    quantized = "nf4" in record["quant"]
    return Physics(
        half="fp16",
        autocast=False,
        outputs_in_full=False,
        keeps_outputs=True,
        reentrant=False,
        frozen_width=FULL if quantized else HALF,
        rank=int(record["lora_rank"]),
        targets=frozenset(("q_proj", "k_proj", "v_proj", "o_proj")),
        quantization=4 if quantized else 0,
        attention="eager" if record["attn"] == "eager" else "sdpa",
    )


def _optimizer(text: str) -> str:
    text = text.lower()
    if "8-bit" in text or "8bit" in text:
        return "adamw_bnb_8bit"
    return "adamw_torch" if "foreach" in text or not text else "adamw_torch_fused"


# Measured


def measured(record: Record, known: t.Mapping[str, t.Any]) -> Made:
    group = f"{record['tier']}: {record['source'][:24]}, {record['method']}"
    model = record["model"]
    name = f"{record['id']} {model}"
    if model not in known:
        return Out(name, group, "no config")
    if record["source"].startswith(OWN):
        return _own(record, known[model], name, group)
    if record["n_gpus"] != "1":
        return Out(name, group, "several GPUs, and how they share is not told")
    length = re.search(r"\d+", record["seq_len"])
    if not length or not record["micro_batch"].isdigit():
        return Out(name, group, "length or batch not told")
    parts = _profile(record)
    if isinstance(parts, str):
        return Out(name, group, parts)
    physics, optimizer, accumulation, expandable, tag = parts
    gpu = _gpu(record["gpu"])
    job = Job(
        shape.read(known[model]),
        physics,
        optimizers.OPTIMIZERS[optimizer],
        Run(int(record["micro_batch"]), int(length.group())),
        accumulation=accumulation,
        expandable=expandable,
        varied="swift" in record["source"],  # PEFT's comparison, whose lengths vary too, empties the cache
        workspace=gpu.workspace if gpu else 0,
    )
    allocated, reserved, process = (_bytes(record[key]) for key in ("alloc_gib", "reserved_gib", "process_gib"))
    other = _bytes(record["other_gb"])
    if other and "reserved" in record["other_metric"]:
        reserved = other * 1e9 / GIB
    elif other and "peak per GPU" in record["other_metric"]:
        allocated = other
    elif other:
        process = other
    bits = 4 if physics.quantization == 4 else 16
    return Row(name, group, job, tag, gpu, allocated, reserved, process, (0, 0, 0), bits)


def _own(record: Record, config: t.Mapping[str, t.Any], name: str, group: str) -> Made:
    """A row of measure.py, which says in LLaMA-Factory's keys what was trained."""
    if record["other_metric"]:
        return Out(name, group, f"nothing was measured: {record['other_metric']}")
    told, gpu = json.loads(record["notes"]), _gpu(record["gpu"])
    situation = Situation(gpu=gpu, torch=told["torch"], padded=told["padded"], expandable=told["expandable"])
    reading = options.read(shape.read(config), told["args"], situation)
    job = replace(reading.job, varied=False)  # all records are of one length, or of two that come in one batch
    allocated, reserved, process = (_bytes(record[key]) for key in ("alloc_gib", "reserved_gib", "process_gib"))
    bits, peaks = 4 if job.physics.quantization == 4 else 16, told["peaks_mib"]
    phases = tuple(peaks.get(phase, 0) * 2**20 for phase in ("forward", "backward", "optimizer"))
    return Row(name, group, job, reading.tag, gpu, allocated, reserved, process, t.cast(Phases, phases), bits)


def _bytes(text: str) -> float:
    return float(text) * GIB if text else 0


def _gpu(text: str) -> hardware.Gpu | None:
    for name in (text, f"{text}B", re.sub(r"[- ]\d+GB?$", "", text)):
        with contextlib.suppress(FinetuneError):
            return hardware.find(name)
    return None


def _profile(record: Record) -> Parts | str:
    """Who trained, and how."""
    source, method = record["source"], record["method"]
    if method not in ("lora", "qlora", "full", "dora", "oft"):
        return "a method that LLaMA-Factory does not have"
    if source.startswith("fitcheck"):
        return _of_t4(record), "adamw_torch", 1, False, REPLAYED
    physics = _common(record)
    accumulation = int((re.search(r"\bga=(\d+)", record["notes"]) or [0, 1])[1])
    if "torchtune" in source:
        optimizer = _optimizer(record["notes"])
        in_backward = "optimizer in backward" in record["notes"].replace("-", " ") or "8-bit" in record["notes"]
        if "8-bit" in record["notes"] or "lora" in method:  # the table adds one technique to another, offloading before
            physics = _replaced(physics, checkpointing="host")
        physics = _replaced(physics, fused=True, autocast=False, trained_width=HALF, adapter_width=HALF)
        physics = _replaced(physics, loss="parts" if "chunked" in record["loss_kernel"] else "plain")
        tag = FORMULA if optimizer in trust.OPTIMIZERS else UNVERIFIED
        return _replaced(physics, layerwise=in_backward, outputs_in_full=False), optimizer, 1, False, tag
    if "Unsloth" in record["engine"]:
        physics = _replaced(physics, fused=True, loss="kept", checkpointing="host")
        return physics, "adamw_torch", accumulation, False, UNVERIFIED  # as estimates of runs with unsloth are
    if "swift" in source and method == "full":  # its weights stay in half, as their size shows
        physics = _replaced(physics, trained_width=HALF)
    told = "PEFT" in source or _gpu(record["gpu"])
    return physics, "adamw_torch", accumulation, False, FORMULA if told else UNVERIFIED


def _common(record: Record) -> Physics:
    """What the columns say, the rest as in LLaMA-Factory."""
    method, precision = record["method"], record["precision"]
    targets = record["targets"].replace("+", " ").replace(",", " ").split()
    named = frozenset(word if word.endswith("proj") else f"{word}_proj" for word in targets if word in _SHORT)
    autocast = "no autocast" not in precision and "true" not in precision and "pure" not in precision
    return Physics(
        method="full" if method == "full" else "oft" if method == "oft" else "lora",
        autocast=autocast,
        outputs_in_full=autocast,
        trained_width=FULL if autocast else HALF,
        rank=0 if method in ("full", "oft") else int(record["lora_rank"] or 8),
        turned=32 if method == "oft" else 0,
        dora=method == "dora",
        targets=named,
        quantization=4 if "4" in record["quant"] else 8 if "8" in record["quant"] else 0,
        double_quantization="True" in record["double_quant"],
        checkpointing="off" if record["grad_ckpt"] == "False" else "on",
        attention="fa2" if record["attn"] == "FA2" else "eager" if "eager" in record["attn"] else "sdpa",
    )


_SHORT = ("q", "k", "v", "o", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def _replaced(physics: Physics, **changes: t.Any) -> Physics:
    return Physics(**{**physics.__dict__, **changes})
