# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the Trainer of transformers refuses."""

from __future__ import annotations

import typing as t

from .rule import Rule, View, remove

_TRANSFORMERS = "transformers training_args.py"
_LATER = "transformers trainer.py"
_OFFLOADED = ("adamw_torch", "adamw_torch_fused", "adagrad")
"""Optimizers that DeepSpeed has for state in the node's memory."""


def _no_beta(key: str) -> t.Callable[[View], t.Any]:
    return lambda c: not 0 <= c[key] < 1


def _fraction(kind: str) -> t.Callable[[View], t.Any]:
    """A number of steps that is neither whole nor a part of all steps."""

    def broken(c: View) -> bool:
        steps = c[f"{kind}_steps"]
        return bool(c[f"{kind}_strategy"] == "steps" and steps is not None and steps > 1 and steps != int(steps))

    return broken


def _saved_unevaluated(c: View) -> bool:
    """The best of the saved models is asked for, and some are not evaluated when they are saved."""
    if not c["load_best_model_at_end"] or c["save_strategy"] == "best":
        return False
    if c["eval_strategy"] != c["save_strategy"]:
        return True
    every = c["eval_steps"] or c["logging_steps"]
    return bool(c["eval_strategy"] == "steps" and every >= 1 and c["save_steps"] % every)


RULES: t.Tuple[Rule, ...] = (
    Rule(
        ("bf16", "fp16"),
        lambda c: c["bf16"] and c["fp16"],
        "bf16 and fp16 exclude each other",
        remove("bf16", "fp16", either=True),
        _TRANSFORMERS,
    ),
    Rule(
        ("bf16",),
        lambda c: (c["bf16"] or c["bf16_full_eval"]) and not c.now.bf16 and not c["use_cpu"],
        "bf16 needs GPUs of compute capability 8.0 or more, or use_cpu: true",
        remove("bf16"),
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
        _saved_unevaluated,
        "the best model is known only where it is evaluated when it is saved",
        "give eval_strategy and save_strategy the same value, and save_steps a multiple of eval_steps",
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
        ("tf32",),
        lambda c: c["tf32"] and not c.now.bf16,
        "tf32 needs GPUs of compute capability 8.0 or more",
        remove("tf32"),
        _TRANSFORMERS,
    ),
    Rule(
        ("dataloader_prefetch_factor", "dataloader_num_workers"),
        lambda c: c["dataloader_prefetch_factor"] is not None and c["dataloader_num_workers"] == 0,
        "only workers fetch ahead",
        remove("dataloader_prefetch_factor", before="set dataloader_num_workers: 1, or "),
        _TRANSFORMERS,
    ),
    Rule(
        ("torch_empty_cache_steps",),
        lambda c: c["torch_empty_cache_steps"] is not None and c["torch_empty_cache_steps"] < 1,
        "torch_empty_cache_steps is a number of steps",
        "use a whole number from 1",
        _TRANSFORMERS,
    ),
    Rule(
        ("seed",),
        lambda c: not 0 <= c["seed"] < 2**32,
        "seed is out of range",
        "use a whole number from 0 to 4294967295",
        "transformers trainer_utils.py set_seed",
    ),
    Rule(
        ("warmup_steps",),
        lambda c: c["warmup_steps"] < 0,
        "warmup_steps is a number of steps",
        "use a whole number from 0",
        _TRANSFORMERS,
    ),
    Rule(
        ("logging_steps", "logging_strategy"),
        lambda c: c["logging_strategy"] == "steps" and c["logging_steps"] == 0,
        "logging_steps is 0",
        "use a whole number from 1, or logging_strategy: epoch",
        _TRANSFORMERS,
    ),
    Rule(
        ("eval_steps", "logging_steps"),
        lambda c: c["eval_strategy"] == "steps" and not c["eval_steps"] and c["logging_steps"] <= 0,
        "eval_steps is 0, and so is logging_steps, which stands in for it",
        "set eval_steps",
        _TRANSFORMERS,
    ),
    *(
        Rule(
            (f"{kind}_steps",),
            _fraction(kind),
            f"{kind}_steps is neither whole nor a part of all steps",
            "use a whole number, or one below 1",
            _TRANSFORMERS,
        )
        for kind in ("logging", "eval", "save")
    ),
    Rule(
        ("max_steps", "num_train_epochs"),
        lambda c: c["do_train"] and c["max_steps"] < 0 and c["num_train_epochs"] <= 0,
        "there is no step to train",
        "set max_steps or num_train_epochs to a number above 0",
        _LATER,
    ),
    Rule(
        ("learning_rate",),
        lambda c: c["learning_rate"] < 0,
        "no optimizer takes a learning rate below 0",
        "use a number above 0, such as 1e-4",
        _LATER,
    ),
    Rule(
        ("do_train",),
        lambda c: not c["do_train"],
        "a managed run trains",
        remove("do_train", after=", or set it to true"),
        "train/sft/workflow.py",
    ),
    Rule(
        ("learning_rate",),
        lambda c: c["do_train"] and c["learning_rate"] == 0,
        "a learning rate of 0 trains nothing",
        "use a number above 0, such as 1e-4",
        _LATER,
    ),
    Rule(
        ("save_steps", "save_strategy"),
        lambda c: c["save_strategy"] == "steps" and c["save_steps"] <= 0,
        "save_steps saves no checkpoint to go on from",
        "use a whole number from 1, or save_strategy: epoch",
        _LATER,
    ),
    Rule(
        ("dataloader_num_workers",),
        lambda c: c["dataloader_num_workers"] < 0,
        "dataloader_num_workers is a number of processes",
        "use a whole number from 0",
        _LATER,
    ),
    *(
        Rule((key,), _no_beta(key), f"{key} is no decay of a mean", "use a number from 0 to below 1", _LATER)
        for key in ("adam_beta1", "adam_beta2")
    ),
    Rule(
        ("weight_decay",),
        lambda c: c["weight_decay"] < 0,
        "weight_decay is below 0",
        "use a number from 0",
        _LATER,
    ),
    Rule(
        ("auto_find_batch_size", "train_engine"),
        lambda c: c["auto_find_batch_size"] and c.zero3,
        "the batch size cannot be searched for under ZeRO-3",
        remove("auto_find_batch_size"),
        _LATER,
    ),
    Rule(
        ("save_only_model", "load_best_model_at_end", "train_engine"),
        lambda c: c["save_only_model"] and c["load_best_model_at_end"] and (c.deepspeed or c.now.engine.fsdp),
        "DeepSpeed and FSDP load the best model from a whole checkpoint alone",
        remove("save_only_model"),
        _LATER,
    ),
    Rule(
        ("optim", "use_muon", "use_adam_mini", "train_engine"),
        lambda c: c.now.engine.offload and (c["optim"] not in _OFFLOADED or c["use_muon"] or c["use_adam_mini"]),
        "DeepSpeed takes its Adam in place of this optimizer where the state lies in the node's memory",
        "set optim: adamw_torch, or choose a train_engine without offload",
        "accelerate utils/deepspeed.py map_pytorch_optim_to_deepspeed",
    ),
)
