# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What other estimators say. Bytes, of a run of a model with `parameters` weights.

Three are formulas that are published, and look at no tokens, so that none can be right for long sequences; they are
what people use. fitcheck-llm is asked itself, in an environment that uv makes and throws away.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import typing as t
from pathlib import Path

from ansible_collections.llmops.finetune.plugins.module_utils._vram.estimate import Estimate

from .rows import Row

GB = 10**9


def accelerate(row: Row, parameters: int) -> float:
    """estimate-memory: with Adam four times the weights, in the type that they have; it knows no adapters."""
    return 4 * parameters * (row.job.physics.trained_width if row.job.physics.method == "full" else row.bits / 8)


def deepspeed(row: Row, parameters: int) -> float:
    """estimate_zero2_model_states on one GPU without offload: 4 and 16 bytes a weight; all are trained."""
    return 20 * parameters


def llamafactory(row: Row, parameters: int) -> float:
    """The table of its README, by billions of weights: 18, 8 with pure_bf16, 2 with adapters, 1 and 0.5 quantized."""
    physics = row.job.physics
    if physics.method == "full":
        return (18 if physics.autocast else 8) * parameters
    return {4: 0.5, 8: 1.0, 16: 2.0}[row.bits] * parameters


OTHERS = {
    "accelerate estimate-memory": accelerate,
    "DeepSpeed ZeRO-2": deepspeed,
    "LLaMA-Factory's table": llamafactory,
}

FITCHECK = "fitcheck-llm==0.3.1"
SECONDS = 120
Answers = list[dict[str, float] | None]
_GPUS = {"Tesla T4": "t4", "NVIDIA A100-SXM4-80GB": "a100-80", "NVIDIA A100-SXM4-40GB": "a100-40"}
"""What fitcheck-llm calls them; others it knows by their memory."""
_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def fitcheck(found: t.Sequence[tuple[Row, Estimate]]) -> Answers | str:
    """Or why it does not answer."""
    uv = shutil.which("uv")
    if uv is None:
        return "uv is not on PATH"
    script = str(Path(__file__).with_name("ask_fitcheck.py"))
    command = [uv, "run", "--quiet", "--no-project", "--isolated", "--python", sys.executable, "--with", FITCHECK]
    questions = json.dumps([question(row, estimate) for row, estimate in found])
    try:
        done = subprocess.run(
            [*command, "python", "-I", script],
            input=questions,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {SECONDS} s"
    if done.returncode:
        return next(iter(done.stderr.strip().splitlines()), f"it ended with {done.returncode}")
    answers: Answers = json.loads(done.stdout)
    return answers


def question(row: Row, estimate: Estimate) -> dict[str, t.Any]:
    """A row in its words. The weights are counted, as it would have them from the hub; what it has no word for, such as
    DoRA, is left out."""
    shape, physics = row.job.shape, row.job.physics
    adapts = physics.method == "lora"
    quantization = {4: "nf4", 8: "int8"}.get(physics.quantization, "none")
    return {
        "gpu": _GPUS.get(row.gpu.name, row.gpu.name) if row.gpu else "",
        "memory": row.gpu.memory >> 20 if row.gpu else 0,
        "model": {
            "name": shape.family,
            "num_params": estimate.parameters - (estimate.trainable if adapts else 0),
            "hidden_size": shape.hidden,
            "num_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_kv_heads": shape.kv_heads,
            "intermediate_size": shape.intermediate,
            "vocab_size": shape.vocab,
            "head_dim": shape.head_dim,
            "tie_word_embeddings": shape.tied,
        },
        "training": {
            "precision": physics.half,
            "quantization": quantization,
            "double_quant": physics.double_quantization and quantization == "nf4",
            "batch_size": row.job.run.batch,
            "seq_len": row.job.run.length,
            "lora_rank": physics.rank if adapts else None if physics.method == "full" else 0,
            "lora_targets": sorted(physics.targets) or _LINEAR,
            "grad_checkpoint": physics.checkpointing != "off",
            "flash_attn": physics.attention != "eager",
            "grad_accum_steps": row.job.accumulation,
        },
    }
