# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cases of the rules about data (_rules/data.py)."""

from __future__ import annotations

from ansible_collections.llmops.finetune.plugins.module_utils import _tools
from ansible_collections.llmops.finetune.plugins.module_utils._template import Choice

from .situations import HELD_OUT, PACKED, STREAM, WITH, Case

DROPS = {"dataloader_drop_last": True, "per_device_train_batch_size": 8}

CASES: list[Case] = [
    ("split off or given", {"val_size": 0.1}, HELD_OUT, {"val_size": 0.1}, {}),
    (
        "nothing to mix_strategy",
        {"interleave_probs": "0.5,0.5"},
        {"datasets": 2},
        {"interleave_probs": "0.5,0.5", "mix_strategy": "interleave_under"},
        {"datasets": 2},
    ),
    (
        "one number per dataset",
        {"interleave_probs": "0.5,0.5", "mix_strategy": "interleave_under"},
        {"datasets": 3},
        {"interleave_probs": "0.5,0.3,0.2", "mix_strategy": "interleave_under"},
        {"datasets": 3},
    ),
    *(
        (
            "parts of 1",
            {"interleave_probs": wrong, "mix_strategy": "interleave_over"},
            {"datasets": 3},
            {"interleave_probs": "0.1,0.2,0.7", "mix_strategy": "interleave_over"},
            {"datasets": 3},
        )
        for wrong in ("0.5,0.3,0.3", "1,1,-1", "5,3,2", "a,b,c", "nan,0.5,0.5")
    ),
    *(
        (
            "which one with the part 0 never does",
            {"interleave_probs": "0,1.0", "mix_strategy": "interleave_over"},
            {"datasets": 2},
            {"interleave_probs": "0,1.0", "mix_strategy": "interleave_over", **repaired},
            {"datasets": 2},
        )
        for repaired in ({"interleave_probs": "0.1,0.9"}, {"mix_strategy": "interleave_under"}, STREAM)
    ),
    ("has whole splits alone", STREAM, {"sliced": True}, {}, {"sliced": True}),
    *(
        ("leaves out what fills no batch", {**DROPS, **more}, there, {**DROPS, **more}, {**there, "records": enough})
        for more, there, enough in (
            ({}, {"records": 15, "world_size": 2}, 16),
            ({"val_size": 2}, {"records": 9}, 10),
        )
    ),
    (
        "leaves out what fills no batch",
        {**DROPS, "max_samples": 3},
        {"records": 99, "datasets": 2},
        {**DROPS, "max_samples": 4},
        {"records": 99, "datasets": 2},
    ),
    (
        "no interleave_once",
        {"mix_strategy": "interleave_once"},
        {"datasets": 2},
        {"mix_strategy": "interleave_over"},
        {"datasets": 2},
    ),
    ("no known length", {**STREAM, "val_size": 0.1}, {}, {**STREAM, "val_size": 10}, {}),
    ("max_samples does not", {**STREAM, "max_samples": 9}, {}, STREAM, {}),
    ("no known end", {**STREAM, "max_steps": -1}, {}, STREAM, {}),
    ("a relative tokenized_path", {"tokenized_path": "~/t"}, {}, {"tokenized_path": "/t"}, {}),
    ("stored in tokenized_path", {**STREAM, "tokenized_path": "/t"}, {}, {"tokenized_path": "/t"}, {}),
    ("no worker reads", {**STREAM, "dataloader_num_workers": 0}, {}, STREAM, {}),
    ("masks what the other", {"mask_history": True, "train_on_prompt": True}, {}, {"mask_history": True}, {}),
    ("no such template", {"template": "qwen33"}, {}, {"template": "qwen3"}, {}),
    ("no such template", {"template": ""}, {}, {"template": "empty"}, {}),
    ("nothing of a text", {"cutoff_len": 0}, {}, {"cutoff_len": 1}, {}),
    ("nothing of a text", {"cutoff_len": 1, "packing": True}, {}, {"cutoff_len": 2, "packing": True}, {}),
    ("val_size is below 0", {"val_size": -0.1}, {}, {"val_size": 0.1}, {}),
    ("no record to train on", {"val_size": 9}, {"records": 9}, {"val_size": 9}, {"records": 10}),
    ("no record to train on", {"val_size": 0.1}, {"records": 1}, {"val_size": 0.1}, {"records": 2}),
    (
        "no record to train on",
        {"val_size": 9, "max_samples": 9},
        {"records": 10},
        {"val_size": 9, "max_samples": 9},
        {"records": 18, "datasets": 2},
    ),
    ("no record to train on", {"val_size": 1.0}, {}, {"val_size": 1}, {}),
    (
        "takes texts alone",
        {"template": "qwen2_vl"},
        {"media": True, "model": "demo"},
        {"template": "qwen2_vl"},
        {"media": True, "model": "org/m"},
    ),
    ("no record of a dataset", {"max_samples": 0}, {}, {"max_samples": 1}, {}),
    (
        "preprocessing_num_workers is",
        {"preprocessing_num_workers": 0},
        {},
        {"preprocessing_num_workers": 1},
        {},
    ),
    (
        "end of text elsewhere",
        {"template": "glm4", "train_on_prompt": True},
        {},
        {"template": "llama3", "train_on_prompt": True},
        {},
    ),
    (
        "another template for this very model",
        {"template": "qwen"},
        {"model": "Qwen/Qwen3-4B", "template": Choice("qwen3", True, "")},
        {"template": "qwen3"},
        {"model": "Qwen/Qwen3-4B", "template": Choice("qwen3", True, "")},
    ),
    (
        "empty thoughts",
        {"template": "qwen3"},
        {"model": "Qwen/Qwen3-4B-Instruct-2507"},
        {"template": "qwen3_nothink"},
        {"model": "Qwen/Qwen3-4B-Instruct-2507"},
    ),
    ("template is for text", {"template": "llama3"}, {"media": True}, {"template": "qwen2_vl"}, {"media": True}),
    *(
        (
            f"hold {use.what}",
            {"template": dies},
            {"tools": {use: "dataset a: 1 record has it"}},
            {"template": takes},
            {"tools": {use: ""}},
        )
        for use, dies, takes in (
            (_tools.QUOTED, "qwen3_5", "qwen3"),
            (_tools.NO_OBJECT, "glm4_moe", "llama3"),
            (_tools.SEVERAL, "glm4", "glm4_moe"),
            (_tools.NAMELESS, "gemma4", "mistral"),
            (_tools.UNWRAPPED, "glm4", "gemma4"),
            (_tools.BARE, "alpaca", "phi4_mini"),
        )
    ),
    (
        f"hold {_tools.BARE.what}",
        {"template": "qwen3", "tool_format": "default"},
        {"tools": {_tools.BARE: ""}},
        {"template": "alpaca", "tool_format": "qwen"},
        {"tools": {_tools.BARE: ""}},
    ),
    (
        "batches of a stream",
        STREAM,
        {"world_size": 2},
        {**STREAM, "accelerator_config": {"dispatch_batches": False}},
        {"world_size": 2},
    ),
    (
        "one packed sequence",
        {**PACKED, "per_device_train_batch_size": 2},
        {WITH: ["flash-attn"]},
        PACKED,
        {WITH: ["flash-attn"]},
    ),
]
