# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What other estimators say, from their published formulas. Bytes, of a run that trains `parameters` weights.

None of them looks at tokens, so none can be right for long sequences; they are what people use.
"""

from __future__ import annotations

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
