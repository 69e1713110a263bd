# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long one estimate of memory takes, and the choice of the fastest way for eight nodes, in this process."""

from __future__ import annotations

import statistics
import time
import typing as t

from ansible_collections.llmops.finetune.plugins.module_utils._vram import estimate

from .unit import plans, test_fastest, test_memory

TIMES = 9
TITLE = ("what", "of", "takes", "at most")


def rows() -> list[list[str]]:
    stages = ("pt", "sft", "dpo", "kto", "rm")
    jobs = [
        lambda config=config, stage=stage: estimate.estimate(config, {"stage": stage, "bf16": True})
        for config in test_memory.CONFIGS.values()
        for stage in stages
    ]
    nodes = {
        name: test_memory.host(gpus=8, interfaces=plans.eth0(f"10.0.0.{number}"))
        for number, name in enumerate("abcdefgh", 1)
    }
    large = {**test_fastest.FASTEST, "train_global_batch_size": 4096}
    chosen = [
        lambda recipe=recipe: plans.make(nodes, **large, train_recipe=recipe)
        for recipe in ("full_sft", "lora_sft", "freeze_sft", "dpo")
    ]
    return [
        row("one estimate", f"{len(test_memory.CONFIGS)} models, {', '.join(stages)}", jobs),
        row("the plan of 8 nodes with 8 GPUs, all options", "full_sft, lora_sft, freeze_sft, dpo", chosen),
    ]


def row(what: str, of: str, jobs: t.Sequence[t.Callable[[], t.Any]]) -> list[str]:
    taken = [statistics.median(seconds(job) for _time in range(TIMES)) for job in jobs]
    line = [what, of, f"{statistics.median(taken) * 1000:.0f} ms", f"{max(taken) * 1000:.0f} ms"]
    print(" | ".join(line), flush=True)
    return line


def seconds(job: t.Callable[[], t.Any]) -> float:
    began = time.monotonic()
    job()
    return time.monotonic() - began
