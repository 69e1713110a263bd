# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cases of the rules about stages (_rules/stages.py)."""

from __future__ import annotations

from .situations import ADAPTER, DPO, FSDP, HEAD, HELD_OUT, ON_TOP, PPO, WITH, ZERO3, Case

CASES: list[Case] = [
    ("generated in stage sft", {**DPO, "predict_with_generate": True}, HELD_OUT, DPO, {}),
    ("neat_packing is for", {**DPO, "neat_packing": True}, {}, DPO, {}),
    ("packing is for stages", {**DPO, "packing": True}, {}, {**DPO, "packing": False}, {}),
    ("are for stage sft", {**DPO, "mask_history": True}, {}, DPO, {}),
    (
        "predictions are generated",
        {"do_predict": True},
        HELD_OUT,
        {"do_predict": True, "predict_with_generate": True},
        HELD_OUT,
    ),
    (
        "cannot load the best",
        {"stage": "rm", "load_best_model_at_end": True, "save_strategy": "best"},
        {},
        {"stage": "rm"},
        {},
    ),
    ("needs a reward model", {"stage": "ppo"}, {}, PPO, {}),
    (
        "there is no reward model",
        PPO,
        {"folders": {"/reward": frozenset(["config.json"])}},
        PPO,
        {"folders": {"/reward": HEAD | ADAPTER}},
    ),
    ("an adapter on another model", {**PPO, **ON_TOP}, {"scored_on": ()}, {**PPO, **ON_TOP}, {"scored_on": ("/a",)}),
    (
        "an adapter on another model",
        {**PPO, "adapter_name_or_path": "/a,/b"},
        {"scored_on": ("/a", "/b")},
        {**PPO, "adapter_name_or_path": "/a,/b"},
        {"scored_on": ("/a",)},
    ),
    ("an adapter on another model", PPO, {"scored_on": ("/a",)}, PPO, {"scored_on": ()}),
    (
        "of the other type",
        PPO,
        {"folders": {"/reward": HEAD | {"config.json"}}},
        {**PPO, "reward_model_type": "full"},
        {"folders": {"/reward": HEAD | {"config.json"}}},
    ),
    (
        "of the other type",
        {**PPO, "reward_model_type": "full"},
        {"folders": {"/reward": HEAD | ADAPTER}},
        PPO,
        {"folders": {"/reward": HEAD | ADAPTER}},
    ),
    ("no held-out data", PPO, HELD_OUT, PPO, {}),
    ("no held-out data", {**PPO, "val_size": 0.1}, {}, PPO, {}),
    ("fewer records than one", PPO, {"records": 7, "world_size": 2}, PPO, {"records": 8}),
    ("fewer records than one", {**PPO, "max_samples": 9, "ppo_buffer_size": 2}, {}, {**PPO, "max_samples": 9}, {}),
    ("counts logging_steps", {**PPO, "logging_steps": 0.1}, {}, {**PPO, "logging_steps": 1}, {}),
    ("counts save_steps", {**PPO, "save_strategy": "no"}, {}, {**PPO, "save_steps": 9}, {}),
    ("PPO only trains", {**PPO, "do_train": False}, {}, PPO, {}),
    (
        "an adapter does not go with",
        {**PPO, "use_unsloth": True},
        {WITH: ["unsloth"]},
        {**PPO, "use_unsloth": True, "reward_model_type": "full"},
        {"gpus": True, WITH: ["unsloth"]},
    ),
    ("PPO reports to", {**PPO, "report_to": "mlflow"}, {}, PPO, {}),
    ("PPO reports to", {**PPO, "report_to": "trackio"}, {WITH: ["trackio"]}, {**PPO, "report_to": "tensorboard"}, {}),
    ("trl no longer has", {**DPO, "pref_loss": "kto_pair"}, {}, {**DPO, "pref_loss": "hinge"}, {}),
    (
        "pref_loss sigmoid alone",
        {**DPO, "pref_loss": "ipo", "dpo_label_smoothing": 0.1},
        {},
        {**DPO, "dpo_label_smoothing": 0.1},
        {},
    ),
    ("nothing to evaluate on", {"do_eval": True}, {}, {"do_eval": True}, HELD_OUT),
    ("nothing to evaluate on", {"eval_strategy": "steps"}, {}, {"eval_strategy": "steps", "val_size": 0.1}, {}),
    (
        "without generating",
        {"predict_with_generate": True, "compute_accuracy": True},
        HELD_OUT,
        {"compute_accuracy": True},
        HELD_OUT,
    ),
    (
        "generated under ZeRO-3",
        {"predict_with_generate": True},
        {**ZERO3, **HELD_OUT},
        {"predict_with_generate": True},
        HELD_OUT,
    ),
    ("split by FSDP2", {"stage": "rm"}, FSDP, {"stage": "rm"}, ZERO3),
]
