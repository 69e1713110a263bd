# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cases of the rules about numbers out of their range (_rules/ranges.py)."""

from __future__ import annotations

import typing as t

from .situations import APOLLO, BADAM, DPO, GALORE, HELD_OUT, OFT, PPO, STREAM, WITH, ZERO3, Case

APART = {WITH: ["galore-torch", "apollo-torch", "badam"]}
EVALUATED = {"eval_strategy": "steps"}
BLOCKS = {**OFT, "oft_rank": 8, "oft_block_size": 0}

ROWS: list[tuple[str, float, t.Any, dict[str, t.Any], dict[str, t.Any]]] = [
    ("max_steps", -5, -1, {}, {}),
    ("max_steps", 0, 1, {}, {}),
    ("save_total_limit", -1, None, {}, {}),
    ("save_total_limit", 0, 1, {}, {}),
    ("max_grad_norm", -1.0, 0.0, {}, {}),
    ("neftune_noise_alpha", -5.0, None, {}, {}),
    ("label_smoothing_factor", -0.1, 0.0, {}, {}),
    ("label_smoothing_factor", 1.5, 1.0, {}, {}),
    ("adam_epsilon", -1e-8, 0.0, {}, {}),
    ("per_device_eval_batch_size", 0, 1, {}, {}),
    ("eval_accumulation_steps", 0, None, {}, {}),
    ("eval_delay", -1, 0, {}, {}),
    ("eval_steps", -5, 5, EVALUATED, HELD_OUT),
    ("logging_steps", -5, 5, {}, {}),
    ("early_stopping_steps", 0, 1, {}, {}),
    ("lora_rank", 0, 1, {}, {}),
    ("lora_rank", 10**19, 2**16, {}, {}),
    ("lora_alpha", 0, None, {}, {}),
    ("lora_alpha", -16, 1, {}, {}),
    ("loraplus_lr_ratio", 0.0, 0.5, {}, {}),
    ("pissa_iter", -2, -1, {"pissa_init": True}, {}),
    ("module_dropout", 2.0, 1.0, OFT, {}),
    ("oft_rank", -8, 8, BLOCKS, {}),
    ("oft_block_size", -1, 32, OFT, {}),
    ("galore_rank", 0, 1, GALORE, APART),
    ("galore_update_interval", 0, 1, GALORE, APART),
    ("apollo_rank", -1, 1, APOLLO, APART),
    ("apollo_update_interval", 0, 1, APOLLO, APART),
    ("badam_switch_interval", 0, None, BADAM, {**ZERO3, **APART}),
    ("buffer_size", 0, 1, STREAM, {}),
    ("dpo_label_smoothing", -0.1, 0.0, DPO, {}),
    ("dpo_label_smoothing", 0.6, 0.5, DPO, {}),
    ("pref_beta", -0.1, 0.0, DPO, {}),
    ("pref_ftx", -0.1, 0.0, {"stage": "kto"}, {}),
    ("ppo_buffer_size", -1, 1, PPO, {}),
    ("ppo_epochs", 0, 1, PPO, {}),
    ("max_new_tokens", 0, 1, PPO, {}),
    ("temperature", 0.0, 0.5, PPO, {}),
    ("top_k", -1, 0, PPO, {}),
    ("top_p", 1.5, 1.0, PPO, {}),
]
"""Key, out of its range, at its end, with which other keys, in which situation."""

CASES: list[Case] = [
    (f"{key} is out of its range", {**besides, key: wrong}, there, {**besides, key: right}, there)
    for key, wrong, right, besides, there in ROWS
]
