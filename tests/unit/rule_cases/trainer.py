# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cases of the rules about the trainer (_rules/trainer.py)."""

from __future__ import annotations

from .situations import BEST, FSDP, HELD_OUT, OFFLOAD, ZERO3, Case

CASES: list[Case] = [
    ("searched for", {"auto_find_batch_size": True}, ZERO3, {"auto_find_batch_size": True}, FSDP),
    ("whole checkpoint", {**BEST, "save_only_model": True}, {**FSDP, **HELD_OUT}, BEST, {**FSDP, **HELD_OUT}),
    ("takes its Adam", {"optim": "adafactor"}, OFFLOAD, {"optim": "adamw_torch"}, OFFLOAD),
    ("bf16 and fp16", {"bf16": True, "fp16": True}, {"bf16": True}, {"bf16": True}, {"bf16": True}),
    ("part of the steps", {"warmup_ratio": 1.5}, {}, {"warmup_ratio": 0.5}, {}),
    (
        "evaluated when it is saved",
        {"load_best_model_at_end": True},
        {},
        {"load_best_model_at_end": True, "eval_strategy": "steps"},
        HELD_OUT,
    ),
    (
        "reduce_lr_on_plateau needs",
        {"lr_scheduler_type": "reduce_lr_on_plateau"},
        {},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps"},
        HELD_OUT,
    ),
    (
        "evaluated when it is saved",
        {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 30, "save_steps": 100},
        HELD_OUT,
        {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 50, "save_steps": 100},
        HELD_OUT,
    ),
    ("tf32 needs", {"tf32": True}, {}, {"tf32": False}, {}),
    (
        "only workers fetch ahead",
        {"dataloader_prefetch_factor": 2},
        {},
        {"dataloader_prefetch_factor": 2, "dataloader_num_workers": 1},
        {},
    ),
    ("torch_empty_cache_steps is", {"torch_empty_cache_steps": 0}, {}, {"torch_empty_cache_steps": 1}, {}),
    ("seed is out", {"seed": -1}, {}, {"seed": 0}, {}),
    ("warmup_steps is", {"warmup_steps": -1}, {}, {"warmup_steps": 0}, {}),
    ("logging_steps is 0", {"logging_steps": 0}, {}, {"logging_steps": 1}, {}),
    (
        "stands in for it",
        {"eval_strategy": "steps", "logging_steps": 0, "logging_strategy": "epoch"},
        HELD_OUT,
        {"eval_strategy": "steps", "logging_steps": 0, "logging_strategy": "epoch", "eval_steps": 9},
        HELD_OUT,
    ),
    ("logging_steps is neither", {"logging_steps": 2.5}, {}, {"logging_steps": 0.5}, {}),
    ("save_steps is neither", {"save_steps": 2.5}, {}, {"save_steps": 2}, {}),
    (
        "eval_steps is neither",
        {"eval_steps": 2.5, "eval_strategy": "steps"},
        HELD_OUT,
        {"eval_steps": 2, "eval_strategy": "steps"},
        HELD_OUT,
    ),
    ("there is no step", {"num_train_epochs": 0}, {}, {"num_train_epochs": 0, "max_steps": 3}, {}),
    ("learning rate below 0", {"learning_rate": -1.0}, {}, {"learning_rate": 1e-4}, {}),
    ("a managed run trains", {"do_train": False}, {}, {}, {}),
    ("trains nothing", {"learning_rate": 0}, {}, {"learning_rate": 1e-4}, {}),
    ("no checkpoint to go on", {"save_steps": 0}, {}, {"save_steps": 0, "save_strategy": "epoch"}, {}),
    ("dataloader_num_workers is", {"dataloader_num_workers": -1}, {}, {"dataloader_num_workers": 0}, {}),
    ("adam_beta1 is", {"adam_beta1": 1.0}, {}, {"adam_beta1": 0.0}, {}),
    ("adam_beta2 is", {"adam_beta2": -0.1}, {}, {"adam_beta2": 0.9}, {}),
    ("weight_decay is", {"weight_decay": -0.1}, {}, {"weight_decay": 0.0}, {}),
]
