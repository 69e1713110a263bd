# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""fitcheck-llm's estimates, in a Python that has it: questions as JSON from stdin, answers in bytes to stdout. A model
that it does not take has none."""

from __future__ import annotations

import json
import sys
import typing as t

from fitcheck import ModelConfig, TrainingConfig, estimate, get_gpu

MIB = 1 << 20


def answer(asked: dict[str, t.Any]) -> dict[str, float] | None:
    """tensors: its five formulas; process: with its overhead."""
    try:
        gpu = get_gpu(asked["gpu"])
    except ValueError:
        gpu = get_gpu(vram_mib=asked["memory"] or 80 << 10)
    try:
        found = estimate(ModelConfig(**asked["model"]), TrainingConfig(**asked["training"]), gpu)
    except ValueError:
        return None
    return {"tensors": (found.total_mib - found.overhead_mib) * MIB, "process": found.total_mib * MIB}


if __name__ == "__main__":
    json.dump([answer(one) for one in json.load(sys.stdin)], sys.stdout)
