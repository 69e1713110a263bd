# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Models: adapters, attention, quantization."""

from __future__ import annotations

import typing as t

from .rule import Remedy, Rule, View, relative, remove

_ON_THE_FLY_BITS = {"bnb": (4, 8), "hqq": (1, 2, 3, 4, 5, 6, 8), "eetq": (8,)}
_SLOW_SPLITTERS = ("0.9.3",)
"""Versions that leave the splitting of special tokens to slow tokenizers."""
_PARSER = "hparams/parser.py"
_FINETUNING = "hparams/finetuning_args.py"


def _before(version: str, *limit: int) -> bool:
    return tuple(int(word) for word in version.split(".")[: len(limit)]) < limit


def _without_gpus(key: str) -> t.Callable[[View], t.Any]:
    return lambda c: c[key] and not c.now.gpus


def _no_adapter(c: View) -> list[str]:
    """Folders on the nodes in which no adapter is, or not on all of them."""
    asked = [] if c["adapter_folder"] else c.words("adapter_name_or_path")
    return [path for path in asked if "adapter_config.json" not in c.now.folders.get(path, ("adapter_config.json",))]


RULES: t.Tuple[Rule, ...] = (
    Rule(
        ("image_max_pixels", "image_min_pixels"),
        lambda c: (c["image_max_pixels"] or 0) < (c["image_min_pixels"] or 0),
        "image_max_pixels is smaller than image_min_pixels",
        "raise image_max_pixels",
        "hparams/model_args.py",
    ),
    Rule(
        ("video_max_pixels", "video_min_pixels"),
        lambda c: (c["video_max_pixels"] or 0) < (c["video_min_pixels"] or 0),
        "video_max_pixels is smaller than video_min_pixels",
        "raise video_max_pixels",
        "hparams/model_args.py",
    ),
    Rule(
        ("export_quantization_bit",),
        lambda c: c["export_quantization_bit"] is not None and c["export_quantization_dataset"] is None,
        "quantizing an export needs a dataset to calibrate with",
        "set export_quantization_dataset",
        "hparams/model_args.py",
    ),
    Rule(
        ("split_special_tokens", "use_fast_tokenizer"),
        lambda c: c.schema.version in _SLOW_SPLITTERS and c["split_special_tokens"] and c["use_fast_tokenizer"],
        "special tokens are split by slow tokenizers alone",
        "set use_fast_tokenizer: false",
        "hparams/model_args.py",
    ),
    Rule(
        ("new_special_tokens_config",),
        relative("new_special_tokens_config"),
        "the file of new_special_tokens_config is read on the nodes",
        "write its full path there, from /",
        "hparams/model_args.py",
    ),
    Rule(
        ("new_special_tokens_config",),
        lambda c: "." not in c.now.folders.get(str(c["new_special_tokens_config"]), "."),
        "not every node has that file",
        "copy it there, where the account may read it, or correct the path",
        "hparams/model_args.py",
    ),
    Rule(
        ("adapter_name_or_path",),
        _no_adapter,
        "not every node has an adapter in that folder",
        lambda c: (
            f"name the folder `output` of a finished run in place of {' and '.join(_no_adapter(c))}, or another with "
            "an adapter_config.json that the account may read"
        ),
        "model/adapter.py",
    ),
    Rule(
        ("adapter_name_or_path", "finetuning_type"),
        lambda c: c["adapter_name_or_path"] and not c.lora,
        "an adapter goes with finetuning_type lora alone; also an OFT adapter is loaded so",
        remove("adapter_name_or_path", before="set finetuning_type: lora, or "),
        _PARSER,
    ),
    Rule(
        ("adapter_name_or_path",),
        lambda c: (
            len(c.words("adapter_name_or_path")) > 1
            and (c.zero3 or c["use_unsloth"] or c.ktransformers or c.quantized or c.now.weights.quantized)
        ),
        "several adapters do not go with ZeRO-3, unsloth, KTransformers or a quantized model",
        "merge them first, and name one",
        "model/adapter.py",
    ),
    Rule(
        ("create_new_adapter", "train_engine", "use_unsloth"),
        lambda c: (
            c["create_new_adapter"]
            and c["adapter_name_or_path"]
            and (c.zero3 or c["use_unsloth"] or c.ktransformers or c.now.weights.quantized)
        ),
        "no adapter is merged with ZeRO-3, unsloth, KTransformers or into a quantized model: LLaMA-Factory would go on "
        "with the one that is there, and pass over create_new_adapter",
        "take another train_engine, such as zero2 or fsdp2, or set create_new_adapter: false to go on with that one",
        "model/adapter.py",
    ),
    Rule(
        ("flash_attn",),
        lambda c: c["flash_attn"] == "fa3",
        "LLaMA-Factory takes fa3 and then dies when it configures the model",
        "use auto or fa2",
        "model/model_utils/attention.py",
    ),
    Rule(
        ("flash_attn",),
        lambda c: c["flash_attn"] == "fa2" and "flash-attn" not in c.schema.packages,
        "the environment has no flash-attn: LLaMA-Factory warns, and trains with another attention",
        "use auto or sdpa",
        "model/model_utils/attention.py",
    ),
    Rule(
        ("flash_attn",),
        lambda c: c["flash_attn"] == "fa2" and c.schema.packages.get("transformers") == "5.6.0",
        "fa2 fails in the forward pass of transformers 5.6.0",
        "use auto or sdpa",
        "transformers integrations, issue 10610 of LLaMA-Factory",
    ),
    Rule(
        ("shift_attn",),
        lambda c: c["shift_attn"] and c["stage"] != "ppo" and not _before(c.schema.packages["transformers"], 4, 48),
        "shift_attn needs transformers before 4.48, which no environment has: it fails with llama, and other models "
        "are trained without it",
        remove("shift_attn"),
        "model/model_utils/longlora.py",
    ),
    Rule(
        ("mixture_of_depths",),
        lambda c: c["mixture_of_depths"] is not None and not _before(c.schema.packages["transformers"], 4, 45),
        "mixture-of-depth, of which 1.2.0 is the last, needs transformers before 4.45, which no environment has: it "
        "fails in the first step",
        remove("mixture_of_depths"),
        "MoD/MoD.py",
    ),
    Rule(
        ("use_v1_kernels",),
        lambda c: c["use_v1_kernels"],
        "the kernels of use_v1_kernels are for NPUs, which no node has: elsewhere LLaMA-Factory has none of them",
        remove("use_v1_kernels"),
        "model/loader.py",
    ),
    *(
        Rule((key,), _without_gpus(key), f"{what} on GPUs alone", remove(key), source)
        for key, what, source in (
            ("enable_liger_kernel", "liger's kernels run", "liger-kernel"),
            ("use_unsloth", "unsloth runs", "unsloth"),
            ("fp8", "torchao multiplies in 8-bit floating point", "torchao"),
        )
    ),
    Rule(
        ("infer_backend",),
        lambda c: c["infer_backend"] != "huggingface",
        "training runs on huggingface alone",
        remove("infer_backend"),
        _PARSER,
    ),
    Rule(
        ("use_unsloth",),
        lambda c: c["use_unsloth"] and c.zero3,
        "unsloth does not go with ZeRO-3",
        "choose another train_engine",
        _PARSER,
    ),
    Rule(
        ("quantization_bit", "finetuning_type"),
        lambda c: c.quantized and c["finetuning_type"] not in ("lora", "oft"),
        "a quantized model is trained with LoRA or OFT alone",
        remove("quantization_bit", before="set finetuning_type: lora, or "),
        _PARSER,
    ),
    Rule(
        ("quantization_bit", "quantization_method"),
        lambda c: c.quantized and c["quantization_method"] not in _ON_THE_FLY_BITS,
        "a model is quantized while it is loaded with bnb, hqq or eetq; another method leaves it as it is",
        "set quantization_method: bnb",
        "model/model_utils/quantization.py",
    ),
    Rule(
        ("quantization_bit", "quantization_method"),
        lambda c: (
            c.quantized
            and c["quantization_bit"] not in _ON_THE_FLY_BITS.get(c["quantization_method"], (c["quantization_bit"],))
        ),
        "this method has no such width: bnb has 4 and 8, hqq 1 to 6 and 8, eetq 8",
        "change quantization_bit",
        "model/model_utils/quantization.py",
    ),
    Rule(
        ("quantization_bit", "train_engine"),
        lambda c: (
            c.quantized
            and (c.zero3 or c.now.engine.fsdp)
            and (c["quantization_method"] != "bnb" or c["quantization_bit"] == 8)
        ),
        "under ZeRO-3 and FSDP only 4-bit bnb weights can be sharded",
        "set quantization_bit: 4 and quantization_method: bnb, or choose another train_engine",
        "model/model_utils/quantization.py",
    ),
    Rule(
        ("quantization_bit", "pissa_init"),
        lambda c: c.quantized and c["pissa_init"],
        "PiSSA cannot start from quantized weights",
        remove("pissa_init", "quantization_bit", either=True),
        _PARSER,
    ),
    Rule(
        ("quantization_bit", "resize_vocab"),
        lambda c: c.quantized and (c["resize_vocab"] or c["add_tokens"] or c["add_special_tokens"]),
        "the embeddings of a quantized model cannot be resized, and added tokens resize them",
        Remedy(
            "remove resize_vocab, add_tokens and add_special_tokens, or quantization_bit",
            ("resize_vocab", "add_tokens", "add_special_tokens", "quantization_bit"),
        ),
        "model/model_utils/embedding.py",
    ),
    Rule(
        ("quantization_bit", "create_new_adapter"),
        lambda c: c.quantized and c["adapter_name_or_path"] and c["create_new_adapter"],
        "no new adapter can be made on top of another one on a quantized model",
        remove("create_new_adapter"),
        _PARSER,
    ),
    Rule(
        ("quantization_device_map",),
        lambda c: c["do_train"] and c["quantization_device_map"] == "auto",
        "training places the model itself",
        remove("quantization_device_map"),
        _PARSER,
    ),
    Rule(
        ("quantization_bit", "use_dora"),
        lambda c: c.quantized and c["use_dora"],
        "DoRA refuses quantized weights: LLaMA-Factory means to let those of bnb pass, and compares with a wrong word",
        remove("use_dora", "quantization_bit", either=True),
        "model/adapter.py",
    ),
    Rule(
        ("fp8", "quantization_bit"),
        lambda c: c["fp8"] and c.quantized,
        "FP8 training does not go with a quantized model",
        remove("fp8", "quantization_bit", either=True),
        _PARSER,
    ),
    Rule(
        ("ref_model_quantization_bit",),
        lambda c: c["ref_model_quantization_bit"] not in (None, 4, 8),
        "the reference model is quantized to 4 or 8 bits",
        "use 4 or 8",
        _FINETUNING,
    ),
    Rule(
        ("reward_model_quantization_bit",),
        lambda c: c["reward_model_quantization_bit"] not in (None, 4, 8),
        "the reward model is quantized to 4 or 8 bits",
        "use 4 or 8",
        _FINETUNING,
    ),
)
