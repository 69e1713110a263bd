# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the Trainer of transformers refuses, and trackers."""

from __future__ import annotations

import typing as t

from .rule import Rule

_TRANSFORMERS = "transformers training_args.py"
_PARSER = "hparams/parser.py"

RULES: t.Tuple[Rule, ...] = (
    Rule(
        ("bf16", "fp16"),
        lambda c: c["bf16"] and c["fp16"],
        "bf16 and fp16 exclude each other",
        "remove one of them",
        _TRANSFORMERS,
    ),
    Rule(
        ("bf16",),
        lambda c: (c["bf16"] or c["bf16_full_eval"]) and not c.now.bf16 and not c["use_cpu"],
        "bf16 needs GPUs of compute capability 8.0 or more, or use_cpu: true",
        "remove bf16",
        _TRANSFORMERS,
    ),
    Rule(
        ("warmup_ratio",),
        lambda c: c["warmup_ratio"] is not None and not 0 <= c["warmup_ratio"] <= 1,
        "warmup_ratio is a part of the steps",
        "use a number from 0 to 1",
        _TRANSFORMERS,
    ),
    Rule(
        ("load_best_model_at_end", "save_strategy", "eval_strategy"),
        lambda c: (
            c["load_best_model_at_end"] and c["save_strategy"] != "best" and c["eval_strategy"] != c["save_strategy"]
        ),
        "the best model is known only where it is evaluated when it is saved",
        "give eval_strategy and save_strategy the same value",
        _TRANSFORMERS,
    ),
    Rule(
        ("lr_scheduler_type", "eval_strategy"),
        lambda c: c["lr_scheduler_type"] == "reduce_lr_on_plateau" and c["eval_strategy"] == "no",
        "reduce_lr_on_plateau needs the loss of held-out data",
        "set eval_strategy: steps",
        _TRANSFORMERS,
    ),
    Rule(
        ("report_to",),
        lambda c: "trackio" in c.words("report_to") and not c["project"],
        "trackio needs a project",
        "set project",
        _PARSER,
    ),
)
