# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stages: what pt, sft, rm, dpo, kto and ppo take."""

from __future__ import annotations

import math
import typing as t

from .. import _model
from .rule import Rule, View, remove

_PPO_LOGGERS = ("wandb", "tensorboard", "none")
_PARSER = "hparams/parser.py"
_FINETUNING = "hparams/finetuning_args.py"
_PPO = "train/ppo/trainer.py"


def _reward_folder(c: View) -> t.Container[str] | None:
    asked = c["stage"] == "ppo" and c["reward_model_type"] != "api"
    return c.now.folders.get(str(c["reward_model"])) if asked else None


def _no_reward_model(c: View) -> bool:
    there = _reward_folder(c)
    return there is not None and "value_head.safetensors" not in there


def _other_reward_model(c: View) -> bool:
    """A whole model where an adapter is due, or the other way round."""
    there, mark = _reward_folder(c), {"lora": "adapter_config.json", "full": "config.json"}
    return there is not None and "value_head.safetensors" in there and mark[c["reward_model_type"]] not in there


def _scores_another_model(c: View) -> bool:
    """The reward model's adapter goes onto what PPO makes of the model."""
    merged = _model.merged(c.words("adapter_name_or_path"), c["create_new_adapter"])
    return c["stage"] == "ppo" and c.now.scored_on is not None and list(c.now.scored_on) != merged


def _less_than_a_batch(c: View) -> bool:
    """PPO leaves out the batch that is not full, so that of too few records nothing is left."""
    keys = ("per_device_train_batch_size", "gradient_accumulation_steps", "ppo_buffer_size")
    batch = math.prod([c[key] for key in keys]) * c.now.world_size
    most = None if c["max_samples"] is None else c["max_samples"] * c.now.datasets
    return bool(
        c["stage"] == "ppo" and min(count for count in (c.now.records, most, batch) if count is not None) < batch
    )


def _ppo_steps(kind: str) -> t.Callable[[View], t.Any]:
    """PPO's own loop counts steps, whatever the strategy."""

    def broken(c: View) -> bool:
        steps = c[f"{kind}_steps"]
        return bool(c["stage"] == "ppo" and (steps < 1 or steps != int(steps) or c[f"{kind}_strategy"] != "steps"))

    return broken


RULES: t.Tuple[Rule, ...] = (
    Rule(
        ("stage", "train_engine"),
        lambda c: c["stage"] in ("rm", "ppo") and c.now.engine.fsdp,
        "the model with a value head that this stage makes cannot be split by FSDP2",
        "set train_engine: zero3",
        "accelerate utils/fsdp_utils.py fsdp2_load_full_state_dict: the wrapper's weights go by other names",
    ),
    Rule(
        ("predict_with_generate", "stage"),
        lambda c: c["stage"] != "sft" and c["predict_with_generate"],
        "answers are generated in stage sft alone",
        remove("predict_with_generate"),
        _PARSER,
    ),
    Rule(
        ("neat_packing", "stage"),
        lambda c: c["stage"] != "sft" and c["neat_packing"],
        "neat_packing is for stage sft",
        remove("neat_packing"),
        _PARSER,
    ),
    Rule(
        ("packing", "stage"),
        lambda c: c["stage"] not in ("pt", "sft") and c["packing"],
        "packing is for stages pt and sft: LLaMA-Factory passes over it",
        remove("packing"),
        "data/loader.py _get_dataset_processor",
    ),
    Rule(
        ("train_on_prompt", "mask_history", "stage"),
        lambda c: c["stage"] != "sft" and (c["train_on_prompt"] or c["mask_history"]),
        "train_on_prompt and mask_history are for stage sft",
        remove("train_on_prompt", "mask_history"),
        _PARSER,
    ),
    Rule(
        ("do_predict", "predict_with_generate"),
        lambda c: c["stage"] == "sft" and c["do_predict"] and not c["predict_with_generate"],
        "predictions are generated, or there are none",
        "set predict_with_generate: true",
        _PARSER,
    ),
    Rule(
        ("load_best_model_at_end", "stage"),
        lambda c: c["stage"] in ("rm", "ppo") and c["load_best_model_at_end"],
        "this stage cannot load the best model at its end",
        remove("load_best_model_at_end"),
        _PARSER,
    ),
    Rule(
        ("reward_model", "stage"),
        lambda c: c["stage"] == "ppo" and c["reward_model"] is None,
        "PPO needs a reward model",
        "set train_reward_from to the name of a run of recipe reward, or reward_model to a folder or hub id",
        _FINETUNING,
    ),
    Rule(
        ("reward_model",),
        _no_reward_model,
        "there is no reward model in that folder on every node",
        "name the folder `output` of a finished run of recipe reward, which the account may read",
        "train/trainer_utils.py",
    ),
    Rule(
        ("reward_model_type", "reward_model"),
        _other_reward_model,
        "the folder reward_model holds a reward model of the other type",
        lambda c: f"set reward_model_type: {'full' if c['reward_model_type'] == 'lora' else 'lora'}",
        "train/trainer_utils.py",
    ),
    Rule(
        ("reward_model_type", "finetuning_type"),
        lambda c: c["stage"] == "ppo" and c["reward_model_type"] == "lora" and not c.lora,
        "a reward model that is an adapter goes with finetuning_type lora",
        "set reward_model_type: full, or finetuning_type: lora",
        _FINETUNING,
    ),
    Rule(
        ("do_train", "stage"),
        lambda c: c["stage"] == "ppo" and not c["do_train"],
        "PPO only trains; stage sft evaluates",
        "set do_train: true",
        _PARSER,
    ),
    Rule(
        ("shift_attn", "stage"),
        lambda c: c["stage"] == "ppo" and c["shift_attn"],
        "PPO does not go with shift_attn",
        remove("shift_attn"),
        _PARSER,
    ),
    Rule(
        ("reward_model_type", "use_unsloth"),
        lambda c: c["stage"] == "ppo" and c["reward_model_type"] == "lora" and c["use_unsloth"],
        "a reward model that is an adapter does not go with unsloth",
        "set reward_model_type: full",
        _PARSER,
    ),
    Rule(
        ("report_to", "stage"),
        lambda c: c["stage"] == "ppo" and any(word not in _PPO_LOGGERS for word in c.words("report_to")),
        "PPO reports to wandb or tensorboard alone",
        "use one of them, or none",
        _PARSER,
    ),
    Rule(
        ("train_reward_from", "train_from", "create_new_adapter"),
        _scores_another_model,
        "the reward model is an adapter on another model: it was not trained with the same adapters merged below it",
        "begin both runs with the same one (train_from), or train all weights of the reward model",
        "model/adapter.py, train/trainer_utils.py create_reward_model",
    ),
    Rule(
        ("train_eval_datasets", "val_size"),
        lambda c: c["stage"] == "ppo" and (c.now.eval_datasets or c["val_size"] > 1e-6),
        "PPO takes no held-out data",
        remove("val_size", before="set train_eval_datasets: [], and "),
        _PPO,
    ),
    Rule(
        ("train_datasets", "train_global_batch_size", "max_samples"),
        _less_than_a_batch,
        "PPO trains on full batches alone, and there are fewer records than one",
        "lower train_global_batch_size or ppo_buffer_size, or give more records",
        _PPO,
    ),
    *(
        Rule(
            (f"{kind}_steps", f"{kind}_strategy"),
            _ppo_steps(kind),
            f"PPO counts {kind}_steps in whole steps, and knows no other {kind}_strategy",
            remove(f"{kind}_strategy", before=f"set {kind}_steps to a whole number from 1, and "),
            _PPO,
        )
        for kind in ("logging", "save")
    ),
    Rule(
        ("dpo_label_smoothing", "pref_loss"),
        lambda c: c["stage"] == "dpo" and c["pref_loss"] != "sigmoid" and c["dpo_label_smoothing"] > 1e-6,
        "labels are smoothed with pref_loss sigmoid alone",
        remove("dpo_label_smoothing"),
        _FINETUNING,
    ),
    Rule(
        ("pref_loss",),
        lambda c: c["stage"] == "dpo" and c["pref_loss"] == "kto_pair",
        "trl no longer has this loss, and LLaMA-Factory would train with sigmoid in its place",
        "use sigmoid, hinge, ipo, orpo or simpo, or recipe kto",
        "train/dpo/trainer.py, trl DPOTrainer.dpo_loss",
    ),
    Rule(
        ("do_eval", "eval_strategy", "do_predict", "predict_with_generate", "train_eval_datasets"),
        lambda c: (
            (c["do_eval"] or c["do_predict"] or c["predict_with_generate"] or c["eval_strategy"] != "no")
            and not c.now.eval_datasets
            and c["val_size"] < 1e-6
        ),
        "there is nothing to evaluate on",
        remove(
            "do_eval",
            "do_predict",
            "predict_with_generate",
            "eval_strategy",
            before="set train_eval_datasets or val_size, or ",
        ),
        _PARSER,
    ),
    Rule(
        ("predict_with_generate", "compute_accuracy"),
        lambda c: c["predict_with_generate"] and c["compute_accuracy"],
        "accuracy is computed without generating",
        remove("predict_with_generate", "compute_accuracy", either=True),
        _PARSER,
    ),
    Rule(
        ("predict_with_generate", "train_engine"),
        lambda c: c["predict_with_generate"] and c.zero3,
        "nothing can be generated under ZeRO-3",
        "choose another train_engine",
        _PARSER,
    ),
)
