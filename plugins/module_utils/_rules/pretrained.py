# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model that lies on the node: how it is quantized, how many layers it has, how long a text it takes, its kind.

Nothing is known of a model that is still on a hub; these rows then say nothing.
"""

from __future__ import annotations

import re
import typing as t

from .rule import Rule, View, remove

_UNPACKED = ("mxfp4", "fp8")
"""Quantized checkpoints that LLaMA-Factory unpacks while it loads them: to it they are like any other."""
_READERS = (("gptq", "gptqmodel"), ("awq", "autoawq"), ("aqlm", "aqlm"))
"""Methods, and the package that reads such weights."""
_DEPTHS = ("bloom", "falcon", "gemma", "llama", "mistral", "mixtral", "phi", "starcoder2")
_LIGER = (
    *("gemma", "gemma2", "gemma3", "gemma3_text", "glm", "glm4", "glm4v", "gpt_oss", "granite", "llama", "llava"),
    *("mistral", "mixtral", "mllama", "olmo2", "paligemma", "phi3", "qwen2", "qwen2_vl", "qwen2_5_vl", "qwen3"),
    *("qwen3_moe", "qwen3_next", "qwen3_5"),
)
_CONV3D = (
    *("emu3", "glm4v", "glm4v_moe", "qwen2_vl", "qwen2_5_vl", "qwen2_5_omni", "qwen3_vl", "qwen3_vl_moe"),
    "qwen3_omni_moe",
)
"""Kinds whose vision is a Conv3d in transformers."""
_OTHER_FORMS = ("InternVLChatModel", "LlavaLlamaForCausalLM")
_QUANTIZATION = "model/model_utils/quantization.py"
_ADAPTER = "model/adapter.py"


def _sharded(c: View) -> bool:
    return c.zero3 or c.now.engine.fsdp


def _stays_quantized(c: View) -> bool:
    return bool(c.now.weights.quantized) and c.now.weights.quantized not in _UNPACKED


def _kind_not_in(*kinds: str) -> t.Callable[[View], bool]:
    return lambda c: bool(c.now.weights.type) and c.now.weights.type not in kinds


def _unread(method: str, package: str) -> t.Callable[[View], bool]:
    return lambda c: _method(c) == method and package not in c.schema.packages


def _method(c: View) -> str:
    """How the checkpoint is quantized; of one on a hub, by the custom to say so in its name."""
    words = [] if c.now.weights.type else re.split(r"\W|_", c.now.model.lower())
    return c.now.weights.quantized or next((method for method, _package in _READERS if method in words), "")


def _no_modules(key: str, words: t.Sequence[str]) -> t.Callable[[View], t.Any]:
    """Words of `key` whose last name no module of the model has, as far as those are known. words: others it takes."""
    return lambda c: (
        c.lora
        and c.now.weights.modules
        and {word.rpartition(".")[2] for word in c.words(key)} - {*words, *c.now.weights.modules}
    )


def _modules(words: t.Sequence[str]) -> t.Callable[[View], str]:
    return lambda c: "use " + ", ".join([*words, *(name for name in c.now.weights.modules if "norm" not in name)])


def _strangers(key: str, known: t.Callable[[View], t.Sequence[str]]) -> t.Callable[[View], bool]:
    """Words of `key` that are no modules of the model, where its modules are known."""
    return lambda c: bool(known(c)) and any(word not in ("all", *known(c)) for word in c.words(key))


def _among(known: t.Callable[[View], t.Sequence[str]]) -> t.Callable[[View], str]:
    return lambda c: "use " + ", ".join(known(c))


RULES: t.Tuple[Rule, ...] = (
    Rule(
        ("train_model", "train_from_scratch"),
        lambda c: c.now.weights.absent and not c["train_from_scratch"],
        "weights of the model are not in its folder",
        lambda c: "copy " + ", ".join(c.now.weights.absent[:3]) + " to it as well",
        "transformers modeling_utils.py",
    ),
    Rule(
        ("train_model", "train_from_scratch"),
        lambda c: c.now.weights.damaged and not c["train_from_scratch"],
        "a file of weights is not what its header says: it was cut, or never fetched",
        lambda c: (
            f"copy {', '.join(c.now.weights.damaged[:3])} to its folder again; a file of some bytes is what git leaves "
            "without git-lfs"
        ),
        "transformers modeling_utils.py",
    ),
    Rule(
        ("train_model", "train_engine"),
        lambda c: _stays_quantized(c) and _sharded(c),
        "the weights of a quantized checkpoint cannot be sharded by ZeRO-3 or FSDP",
        "choose another train_engine, or a model that is not quantized",
        _QUANTIZATION,
    ),
    Rule(
        ("finetuning_type", "train_model"),
        lambda c: _stays_quantized(c) and c["finetuning_type"] not in ("lora", "oft"),
        "the checkpoint is quantized, and quantized weights are trained with LoRA or OFT alone",
        "set finetuning_type: lora, or take a model that is not quantized",
        _ADAPTER,
    ),
    Rule(
        ("pissa_init", "train_model"),
        lambda c: _stays_quantized(c) and c["pissa_init"],
        "the checkpoint is quantized, and PiSSA cannot start from quantized weights",
        remove("pissa_init", after=", or take a model that is not quantized"),
        _ADAPTER,
    ),
    Rule(
        ("use_dora", "train_model"),
        lambda c: _stays_quantized(c) and c["use_dora"],
        "the checkpoint is quantized, and DoRA refuses quantized weights",
        remove("use_dora", after=", or take a model that is not quantized"),
        _ADAPTER,
    ),
    Rule(
        ("quantization_bit", "train_model"),
        lambda c: c.quantized and c.now.weights.quantized,
        "the checkpoint is quantized already: LLaMA-Factory passes over quantization_bit",
        remove("quantization_bit", after=", or take a model that is not quantized"),
        _QUANTIZATION,
    ),
    *(
        Rule(
            ("train_model",),
            _unread(method, package),
            f"the checkpoint is quantized with {method}: it needs the package {package}, "
            "which the environment does not have",
            "take a model that is not quantized, with quantization_bit: 4",
            _QUANTIZATION,
        )
        for method, package in _READERS
    ),
    Rule(
        ("freeze_trainable_layers", "use_llama_pro"),
        lambda c: (
            c["use_llama_pro"]
            and c.now.weights.layers
            and (not c["freeze_trainable_layers"] or c.now.weights.layers % c["freeze_trainable_layers"])
        ),
        "LLaMA-Pro trains every so many layers, and freeze_trainable_layers does not divide the layers of this model",
        lambda c: f"use a divisor of {c.now.weights.layers}",
        _ADAPTER,
    ),
    Rule(
        ("freeze_trainable_layers", "finetuning_type"),
        lambda c: (
            c["finetuning_type"] == "freeze"
            and not c["use_llama_pro"]
            and 0 < c.now.weights.layers < abs(c["freeze_trainable_layers"])
        ),
        "the model has fewer layers: LLaMA-Factory would train them all",
        lambda c: f"use a number up to {c.now.weights.layers}, or finetuning_type: full",
        _ADAPTER,
    ),
    Rule(
        ("freeze_trainable_modules", "finetuning_type"),
        lambda c: (
            c["finetuning_type"] == "freeze"
            and _strangers("freeze_trainable_modules", lambda v: v.now.weights.parts)(c)
        ),
        "no layer of the model has such a module",
        _among(lambda c: ["all", *c.now.weights.parts]),
        _ADAPTER,
    ),
    Rule(
        ("freeze_extra_modules", "finetuning_type"),
        lambda c: (
            c["finetuning_type"] == "freeze" and _strangers("freeze_extra_modules", lambda v: v.now.weights.others)(c)
        ),
        "the model has no such module beside its layers",
        _among(lambda c: c.now.weights.others),
        _ADAPTER,
    ),
    *(
        Rule(
            (key, "finetuning_type"),
            _no_modules(key, words),
            f"the model has no such module: peft fails, or passes over it in {key}",
            _modules(words),
            "peft LoraModel",
        )
        for key, words in (("lora_target", ("all",)), ("additional_target", ()))
    ),
    Rule(
        ("rope_scaling", "cutoff_len"),
        lambda c: c["rope_scaling"] and c["cutoff_len"] <= c.now.weights.first_length,
        "the model takes texts of cutoff_len as it is: LLaMA-Factory passes over rope_scaling",
        lambda c: remove("rope_scaling", after=f", or set cutoff_len above {c.now.weights.first_length}"),
        "model/model_utils/rope.py",
    ),
    Rule(
        ("cutoff_len", "rope_scaling"),
        lambda c: not c["rope_scaling"] and 0 < c.now.weights.length < c["cutoff_len"],
        "the model was not made for texts of cutoff_len, and LLaMA-Factory does not look",
        lambda c: f"set cutoff_len: {c.now.weights.length}, or rope_scaling: yarn",
        "model/model_utils/rope.py",
    ),
    Rule(
        ("enable_liger_kernel", "train_model"),
        lambda c: c["enable_liger_kernel"] and _kind_not_in(*_LIGER)(c),
        "liger has no kernels for this kind of model: LLaMA-Factory warns, and trains without",
        remove("enable_liger_kernel"),
        "model/model_utils/liger_kernel.py",
    ),
    Rule(
        ("mixture_of_depths", "train_model"),
        lambda c: c["mixture_of_depths"] == "convert" and _kind_not_in(*_DEPTHS)(c),
        "mixture-of-depths does not know this kind of model",
        remove("mixture_of_depths", after=f", or take a model of {', '.join(_DEPTHS)}"),
        "model/model_utils/mod.py",
    ),
    Rule(
        ("neat_packing", "flash_attn", "train_model"),
        lambda c: c["neat_packing"] and c["flash_attn"] == "fa2" and c.now.weights.type in ("gemma4", "gpt_oss"),
        "neat_packing with fa2 is not for this kind of model",
        remove("neat_packing"),
        "data/collator.py",
    ),
    Rule(
        ("neat_packing", "train_model"),
        lambda c: c["neat_packing"] and c.now.weights.type in ("qwen2_5_omni", "qwen3_omni_moe"),
        "texts of a model that hears and sees cannot be packed yet",
        remove("neat_packing"),
        "data/collator.py",
    ),
    Rule(
        ("train_model",),
        lambda c: (
            not c.ktransformers
            and c.now.weights.type in _CONV3D
            and c.schema.packages.get("torch", "").startswith("2.9.")
        ),
        "a model with a 3-D convolution does not go with torch 2.9, which makes it slow",
        "take another model, or an environment with another torch",
        "model/loader.py",
    ),
    Rule(
        ("train_model",),
        lambda c: set(c.now.weights.architectures) & set(_OTHER_FORMS),
        "the model is in a form of its own, which LLaMA-Factory refuses",
        "take the model of the same name that ends in -hf",
        "model/patcher.py",
    ),
    Rule(
        ("train_model",),
        lambda c: c.now.weights.type == "gpt_oss" and "kernels" not in c.schema.packages,
        "this kind of model needs the package kernels, which the environment does not have",
        "take another model",
        "model/model_utils/attention.py",
    ),
)
