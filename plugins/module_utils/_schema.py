# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""LLaMA-Factory's keys: is there such a key, and is the value one that it takes?

The keys of a version are data, extracted from its own classes by scripts/schema.py.
"""

from __future__ import annotations

import difflib
import math
import typing as t
from itertools import takewhile

from . import _config
from ._errors import FinetuneError, together

_WRITE = {
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "text": "text",
    "list": "a list",
    "dict": "a dict",
    "null": "null",
}
_SPLIT = ("adapter_name_or_path", "add_special_tokens", "add_tokens", "reward_model_adapters", "ref_model_adapters")
"""Keys of text that LLaMA-Factory splits at commas; it dies on a list."""
_NOT = object()
_BEGINNING = 3
"""Letters in common that tell what is meant."""


class Key(t.NamedTuple):
    """One key of LLaMA-Factory."""

    group: str
    types: t.Tuple[str, ...]
    """boolean, integer, number, text, list, dict, null."""
    default: t.Any
    choices: t.Tuple[t.Any, ...]
    """The only values there are; empty where any of the type will do."""
    help: str


class Schema(t.NamedTuple):
    """What an environment takes."""

    version: str
    """Of LLaMA-Factory."""
    keys: t.Mapping[str, Key]
    templates: t.Mapping[str, t.Mapping[str, t.Any]]
    """Chat templates by name: whether one is for reasoning, for media, or ends texts in its own way, and the format in
    which it writes tools."""
    models: t.Mapping[str, str]
    """Template by hub id."""
    others: t.Mapping[str, str]
    """By hub id, of models that are listed without a template: that of their group, or empty."""
    packages: t.Mapping[str, str]
    """Version by name of what the lock installs."""


class Problem(t.NamedTuple):
    key: str
    what: str
    change: str
    removes: t.Tuple[str, ...] = ()
    """Keys that the change takes out."""


def as_words(value: t.Any) -> list[str]:
    """A list, or text with commas, as a list of words."""
    if isinstance(value, str):
        return [word.strip() for word in value.split(",") if word.strip()]
    return [str(item) for item in value or ()]


def load(keys: t.Any, templates: t.Any, packages: t.Mapping[str, str]) -> Schema:
    """From keys.json and templates.json as scripts/schema.py wrote them."""
    known = {
        name: Key(key["group"], tuple(key["types"]), key["default"], tuple(key["choices"]), key["help"])
        for name, key in keys["keys"].items()
    }
    return Schema(keys["versions"]["llamafactory"], known, **templates, packages=packages)


def typed(arguments: t.Mapping[str, t.Any], schema: Schema, where: str) -> dict[str, t.Any]:
    """Arguments as their keys have them; all that is wrong is refused at once. where: the variable they are in."""
    found, problems = {}, []
    for key, given in arguments.items():
        found[key], problem = read(key, given, schema)
        problems += [problem] if problem else []
    refuse(problems, dict.fromkeys(arguments, where))
    return found


def refuse(problems: t.Sequence[Problem], origins: t.Mapping[str, str]) -> None:
    """Raise when there are problems. origins: the variable that each key came from."""
    if problems:
        raise together(
            [
                FinetuneError(f"{_sentence(problem)}.", where=_place(problem.key, origins), change=problem.change)
                for problem in problems
            ],
            " with the arguments",
        )


def _sentence(problem: Problem) -> str:
    """What is wrong, with a capital letter unless it begins with a key."""
    first = problem.what.partition(" ")[0]
    return problem.what if first == problem.key or "_" in first else problem.what[:1].upper() + problem.what[1:]


def _place(key: str, origins: t.Mapping[str, str]) -> str:
    if key in origins:
        return f"{origins[key]}, key {key}"
    return key if key.startswith("train_") else f"train_args, key {key} (not set)"


RENAMED: dict[str, str] = {
    "evaluation_strategy": "eval_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "no_cuda": "use_cpu",
    "max_length": "cutoff_len",
    "max_seq_length": "cutoff_len",
    "max_len": "cutoff_len",
    "compute_dtype": "bf16 or fp16",
    "dpo_beta": "pref_beta",
    "dpo_loss": "pref_loss",
    "dpo_ftx": "pref_ftx",
    "orpo_beta": "pref_beta",
    "kto_beta": "pref_beta",
    "kto_ftx": "pref_ftx",
    "reserved_label_len": "cutoff_len",
    "name_module_trainable": "freeze_trainable_modules",
    "num_layer_trainable": "freeze_trainable_layers",
    "lora_modules": "lora_target",
    "use_flash_attn": "flash_attn",
    "visual_inputs": "freeze_vision_tower",
    "image_resolution": "image_max_pixels",
    "video_resolution": "video_max_pixels",
    "vllm_gpu_utilization": "vllm_gpu_util",
    "batch_size": "per_device_train_batch_size",
    "epochs": "num_train_epochs",
    "lr": "learning_rate",
}
"""Words of earlier versions and of other trainers, and the key that means it now."""


ENGINES: dict[str, str] = {
    "tensor_model_parallel_size": "megatron",
    "pipeline_model_parallel_size": "megatron",
    "context_parallel_size": "megatron",
    "expert_model_parallel_size": "megatron",
    "use_distributed_optimizer": "megatron",
    "kt_config": "ktransformers",
}
"""Keys that one engine alone takes."""


def read(key: str, value: t.Any, schema: Schema) -> tuple[t.Any, Problem | None]:
    """The value as the key's type has it (`1e-5` is text to YAML 1.1), or what is wrong with it."""
    known = schema.keys.get(key)
    if known is None:
        return value, Problem(key, f"LLaMA-Factory {schema.version} has no key {key}", _nearest_key(key, schema))
    if value is None or (isinstance(value, str) and value.strip() == "null"):
        if "null" in known.types or known.default is None:
            return None, None
        return None, Problem(key, f"{key} is null", f"write {_kinds(known)}, or leave {key} out")
    for kind in ("boolean", "integer", "number", "list", "dict", "text"):
        if kind in known.types:
            found = _as(kind, value, known)
            if found is not _NOT:
                return found, _among(key, found, known)
    change = f"write {_kinds(known)}" + " of at most 18 digits" * _too_long(value)
    if key in _SPLIT and isinstance(value, (list, tuple)):
        change = "write them as one text with commas"
    return value, Problem(key, f"{key} is {value!r}", change)


def _too_long(value: t.Any) -> bool:
    number = _config.scalar(value)
    return isinstance(number, (int, float)) and abs(number) >= _config.LARGEST


def _as(kind: str, value: t.Any, known: Key) -> t.Any:
    """The value as one of a kind, or _NOT."""
    text = value.strip() if isinstance(value, str) else None
    if kind == "boolean":
        words = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}
        if isinstance(value, bool) or (isinstance(value, str) and value == known.default):  # `no`, where it is text
            return value
        return words.get((text or "").lower(), _NOT)
    if isinstance(value, bool):
        return (
            "no" if kind == "text" and value is False and "no" in known.choices else _NOT
        )  # YAML 1.1 reads no as false
    if kind in ("integer", "number"):
        number = _config.scalar(value)  # `1e-5` is text to YAML 1.1
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            return _NOT
        if abs(number) >= _config.LARGEST if isinstance(number, int) else not math.isfinite(number):
            return _NOT
        if kind == "integer" and isinstance(number, float):
            return int(number) if number.is_integer() and abs(number) < _config.LARGEST else _NOT
        return number
    if kind == "list":
        return _config.scalar(value) if isinstance(value, (list, tuple)) else _NOT
    if kind == "dict":
        return _config.scalar(value) if isinstance(value, t.Mapping) else _NOT
    return str(value) if isinstance(value, (str, int, float)) else _NOT


def _among(key: str, value: t.Any, known: Key) -> Problem | None:
    if not known.choices or value in known.choices:
        return None
    words = [str(choice) for choice in known.choices]
    near = _nearest(str(value), words) if len(words) > 12 else words
    return Problem(key, f"{key} is {value!r}", "use " + " or ".join(near or words))


def _nearest(value: str, words: t.Sequence[str]) -> list[str]:
    """Words that begin like the value for longest, in the order of the version, which has the usual ones first; else
    those that are spelt like it."""
    shared = {
        word: sum(1 for _pair in takewhile(lambda pair: pair[0] == pair[1], zip(word, value, strict=False)))
        for word in words
    }
    longest = max(shared.values())
    if longest >= _BEGINNING:
        return [word for word in words if shared[word] == longest][:3]
    return difflib.get_close_matches(value, words, n=3)


def _kinds(known: Key) -> str:
    return " or ".join(_WRITE[kind] for kind in known.types if kind != "null") or "null"


def _nearest_key(key: str, schema: Schema) -> str:
    if key in ENGINES:
        return f"set train_engine: {ENGINES[key]}"
    renamed = RENAMED.get(key, "").split(" or ")
    near = renamed if schema.keys.keys() >= {*renamed} else difflib.get_close_matches(key, schema.keys, n=2)
    return f"use {' or '.join(near)}" if near else f"remove {key}"
