# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ways to tune: adapters, and optimizers that save memory."""

from __future__ import annotations

import typing as t

from .rule import Rule, View, remove

_OPTIMIZERS = ("use_galore", "use_apollo", "use_badam")
_GALORE_OPTIM = ("adamw_torch", "adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit", "adafactor")
_PARSER = "hparams/parser.py"
_FINETUNING = "hparams/finetuning_args.py"


def _asft(c: View) -> bool:
    return bool(c["use_asft_loss"] and c["stage"] == "sft")


def _only_lora(key: str) -> t.Callable[[View], t.Any]:
    return lambda c: c[key] and not c.lora


RULES: t.Tuple[Rule, ...] = (
    Rule(
        ("use_llama_pro", "finetuning_type"),
        lambda c: c["use_llama_pro"] and c["finetuning_type"] == "full",
        "LLaMA-Pro goes with freeze or lora",
        "set finetuning_type: freeze",
        _FINETUNING,
    ),
    Rule(
        ("finetuning_type", *_OPTIMIZERS),
        lambda c: c.lora and any(c[key] for key in _OPTIMIZERS),
        "GaLore, APOLLO and BAdam train the weights themselves, not an adapter",
        "set finetuning_type: full",
        _FINETUNING,
    ),
    Rule(
        _OPTIMIZERS,
        lambda c: sum(bool(c[key]) for key in _OPTIMIZERS) > 1,
        "GaLore, APOLLO and BAdam exclude each other",
        "keep one of them",
        _FINETUNING,
    ),
    Rule(
        ("pissa_init", "stage"),
        lambda c: c["pissa_init"] and (c["stage"] in ("ppo", "kto") or c.with_reference),
        "PiSSA changes the base model, which this stage needs as it was",
        remove("pissa_init"),
        _FINETUNING,
    ),
    *(
        Rule((key, "finetuning_type"), _only_lora(key), f"{key} is for LoRA", remove(key), _FINETUNING)
        for key in ("loraplus_lr_ratio", "use_rslora", "use_dora", "pissa_init")
    ),
    Rule(
        ("pissa_init", "train_engine"),
        lambda c: c["pissa_init"] and c.zero3,
        "PiSSA cannot start under ZeRO-3",
        "choose another train_engine",
        _PARSER,
    ),
    Rule(
        ("use_unsloth", "finetuning_type"),
        lambda c: c["use_unsloth"] and c["finetuning_type"] == "oft",
        "unsloth does not go with OFT",
        remove("use_unsloth", before="set finetuning_type: lora, or "),
        "model/adapter.py",
    ),
    Rule(
        ("freeze_trainable_layers", "finetuning_type"),
        lambda c: (
            c["finetuning_type"] == "freeze"
            and c["freeze_trainable_layers"] == 0
            and not c.words("freeze_extra_modules")
            and c["freeze_multi_modal_projector"]
        ),
        "there is no layer to train",
        "set freeze_trainable_layers to a number of layers, below 0 for the first ones",
        "model/adapter.py",
    ),
    Rule(
        ("oft_rank", "oft_block_size"),
        lambda c: c["finetuning_type"] == "oft" and bool(c["oft_rank"]) == bool(c["oft_block_size"]),
        "exactly one of oft_rank and oft_block_size is not zero; oft_block_size is 32 unless it is set",
        remove("oft_rank", before="set oft_block_size: 0 beside oft_rank, or "),
        "peft OFTConfig",
    ),
    Rule(
        ("ddp_find_unused_parameters", "use_reentrant_gc", "finetuning_type"),
        lambda c: (
            c["finetuning_type"] == "oft"
            and not (c.deepspeed or c.now.engine.fsdp)
            and c["ddp_find_unused_parameters"] is not False
            and c["use_reentrant_gc"]
            and not c["disable_gradient_checkpointing"]
        ),
        "OFT's weights are marked as ready twice where ranks look for unused ones, and the first step fails",
        "set ddp_find_unused_parameters: false",
        "train/tuner.py; torch DistributedDataParallel, with checkpoints that are entered again",
    ),
    Rule(
        ("pure_bf16",),
        lambda c: c["pure_bf16"] and not c.now.bf16,
        "pure_bf16 needs GPUs of compute capability 8.0 or more",
        remove("pure_bf16"),
        _PARSER,
    ),
    Rule(
        ("pure_bf16", "train_engine"),
        lambda c: c["pure_bf16"] and c.zero3,
        "pure_bf16 does not go with ZeRO-3",
        "choose another train_engine",
        _PARSER,
    ),
    Rule(
        ("galore_layerwise", "use_galore"),
        lambda c: c["use_galore"] and c["galore_layerwise"],
        "layer-wise GaLore is not for ranks that torchrun starts",
        remove("galore_layerwise"),
        _PARSER,
    ),
    Rule(
        ("apollo_layerwise", "use_apollo"),
        lambda c: c["use_apollo"] and c["apollo_layerwise"],
        "layer-wise APOLLO is not for ranks that torchrun starts",
        remove("apollo_layerwise"),
        _PARSER,
    ),
    Rule(
        ("badam_mode", "use_badam"),
        lambda c: c["use_badam"] and c["badam_mode"] == "ratio",
        "BAdam by ratio is not for ranks that torchrun starts",
        "set badam_mode: layer",
        _PARSER,
    ),
    Rule(
        ("use_badam", "train_engine"),
        lambda c: c["use_badam"] and c["badam_mode"] == "layer" and not c.zero3,
        "layer-wise BAdam needs ZeRO-3 where torchrun starts the ranks",
        "set train_engine: zero3",
        _PARSER,
    ),
    Rule(
        ("use_galore", "use_apollo", "train_engine"),
        lambda c: c.deepspeed and (c["use_galore"] or c["use_apollo"]),
        "GaLore and APOLLO do not go with DeepSpeed",
        "choose another train_engine",
        _PARSER,
    ),
    Rule(
        ("use_galore", "optim"),
        lambda c: c["use_galore"] and c["optim"] not in _GALORE_OPTIM,
        "GaLore does not know this optimizer (the default is adamw_torch_fused)",
        "set optim: adamw_torch",
        "train/trainer_utils.py",
    ),
    Rule(
        ("use_apollo", "optim"),
        lambda c: c["use_apollo"] and c["optim"] != "adamw_torch",
        "APOLLO does not know this optimizer (the default is adamw_torch_fused)",
        "set optim: adamw_torch",
        "train/trainer_utils.py",
    ),
    Rule(
        ("use_asft_loss", "finetuning_type", "ref_model"),
        lambda c: _asft(c) and c.lora and not c["ref_model"],
        "ASFT asks a reference model, which LLaMA-Factory makes for LoRA from ref_model alone: the first step fails",
        "name the model again as ref_model, or set finetuning_type: full",
        "train/trainer_utils.py create_ref_model",
    ),
    Rule(
        ("use_asft_loss", "train_eval_datasets", "val_size", "do_eval", "eval_strategy"),
        lambda c: (
            _asft(c) and (c.now.eval_datasets or c["val_size"] > 1e-6 or c["do_eval"] or c["eval_strategy"] != "no")
        ),
        "LLaMA-Factory's ASFT fails in the first evaluation, which asks for outputs beside the loss",
        remove("val_size", "do_eval", "eval_strategy", before="set train_eval_datasets: [], and "),
        "train/sft/trainer.py compute_loss",
    ),
    Rule(
        ("use_asft_loss", "enable_liger_kernel"),
        lambda c: _asft(c) and c["enable_liger_kernel"],
        "Liger's kernels leave no logits for the loss of ASFT, and LLaMA-Factory trains with the usual one",
        remove("enable_liger_kernel"),
        "train/trainer_utils.py asft_loss_func",
    ),
    Rule(
        ("lora_target",),
        lambda c: c.lora and not c.words("lora_target"),
        "lora_target names no module",
        "use all, or names of modules",
        "peft tuners_utils.py",
    ),
    Rule(
        ("lora_dropout",),
        lambda c: c.lora and not 0 <= c["lora_dropout"] <= 1,
        "lora_dropout is a part of what goes through the adapter",
        "use a number from 0 to 1",
        "peft LoraConfig",
    ),
)
