# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""LLaMA-Factory's arguments: read from variables, merged with their origins, checked, written as YAML."""

from __future__ import annotations

import json
import math
import re
import shlex
import typing as t

from ._errors import FinetuneError

Arguments = dict[str, t.Any]

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
LARGEST = 2**63
"""The first whole number that 64 bits do not hold: what counts, and sizes of tensors, are below it."""
_DIGITS = 4300
"""Of a whole number that Python reads; what is longer is infinite."""
_WORDS = re.compile(r"\[[A-Za-z_][\w./-]*(,[A-Za-z_][\w./-]*)*\]")
_KEY = re.compile(r"[a-z][a-z0-9_]*")

OWNED = {
    "model_name_or_path": "train_model",
    "model_revision": "train_model_revision",
    "dataset": "train_datasets",
    "dataset_dir": "train_datasets",
    "eval_dataset": "train_eval_datasets",
    "deepspeed": "train_engine",
    "fsdp": "train_engine",
    "fsdp_config": "train_engine",
    "use_kt": "train_engine",
}
"""Keys that a variable of ours decides."""

RESERVED = {
    "output_dir": "the run's folder under train_root holds the output",
    "overwrite_output_dir": "it would start the run again from step 0",
    "resume_from_checkpoint": "the supervisor resumes from the newest whole checkpoint",
    "ddp_timeout": "the supervisor watches for ranks that hang",
    "save_on_each_node": "the engine decides what each node saves",
}
"""Keys that a managed run owns, and why."""

_VARIABLES = {
    "hf_hub_token": "HF_TOKEN",
    "hub_token": "HF_TOKEN",
    "push_to_hub_token": "HF_TOKEN",
    "ms_hub_token": "MODELSCOPE_API_TOKEN",
    "swanlab_api_key": "SWANLAB_API_KEY",
}
"""Keys that are secrets, and the environment variable that stands in for each."""


def scalar(value: t.Any) -> t.Any:
    """A value as its author meant it: `1e-5` is text to YAML 1.1 and to the command line, yet means a number."""
    if isinstance(value, str):
        text = value.strip()
        if _NUMBER.fullmatch(text):
            whole = re.fullmatch(r"[+-]?\d+", text) and len(text) <= _DIGITS
            return int(text) if whole else float(text)
        return {"true": True, "false": False, "null": None}.get(text.lower(), value)
    if isinstance(value, t.Mapping):
        return {str(key): scalar(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [scalar(item) for item in value]
    return value


def parse_set(text: str) -> Arguments:
    """`learning_rate=1e-5 lora_rank=16` as a dict of texts. Quotes keep blanks; lists and dicts are written as JSON. As
    shells and Ansible take quotes away, words of a list need none: [wandb,tensorboard]."""
    try:
        words = shlex.split(text, posix=True)
    except ValueError as error:
        raise FinetuneError(
            f"train_set cannot be read: {error}.", where=f"train_set={text!r}", change="close the quote"
        ) from None
    arguments: Arguments = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not _KEY.fullmatch(key):
            raise FinetuneError(
                f"{word!r} is not key=value.",
                where="train_set",
                change='write it as train_set="learning_rate=1e-5 lora_rank=16"',
            )
        if key in arguments:
            raise FinetuneError(f"{key} is there twice.", where=f"train_set, key {key}", change="keep one of them")
        arguments[key] = _nested(key, value) if value[:1] in ("[", "{") else value
    return arguments


def _nested(key: str, value: str) -> t.Any:
    if _WORDS.fullmatch(value):
        return value[1:-1].split(",")
    try:
        return json.loads(value)
    except ValueError:
        raise FinetuneError(
            f"{value!r} is not JSON.",
            where=f"train_set, key {key}",
            change="correct the brackets and quotes; a list of words is written without blanks, [wandb,tensorboard]",
        ) from None


def parse_args(value: t.Any) -> Arguments:
    """train_args as a dict; the values are as they were written."""
    if value in (None, ""):
        return {}
    if not isinstance(value, t.Mapping):
        kind = "text" if isinstance(value, str) else "a list" if isinstance(value, (list, tuple)) else repr(value)
        raise FinetuneError(
            f"train_args is {kind}, not a dict of LLaMA-Factory keys.",
            where="train_args",
            change='write `train_args: {learning_rate: 1.0e-4}`; for one key: train_set="learning_rate=1e-4"',
        )
    for key in value:
        if not _KEY.fullmatch(str(key)):
            raise FinetuneError(
                f"{key!r} is no LLaMA-Factory key.", where="train_args", change="keys are lower case words with _"
            )
    return dict(value)


def check(arguments: Arguments, where: str) -> None:
    """Refuse what a managed run owns, and secrets outside train_secrets."""
    for key in arguments:
        if key in OWNED:
            raise FinetuneError(
                f"{key} is not set in {where}: {OWNED[key]} decides it.",
                where=where,
                change=f"set {OWNED[key]}, remove {key}",
            )
        if key in RESERVED:
            raise FinetuneError(
                f"{key} belongs to the managed run: {RESERVED[key]}.", where=where, change=f"remove {key}"
            )
        if is_secret(key):
            raise FinetuneError(f"{key} is a secret.", where=where, change=f"remove {key}; {handed_over(key)}")


def is_secret(key: str) -> bool:
    """A key of an account somewhere; special_token and the like are words of a vocabulary."""
    if key.endswith(("special_token", "new_token", "add_token")):
        return False
    return key.endswith(("_token", "_api_key", "_lark_secret"))


def handed_over(key: str) -> str:
    """How a secret gets to the ranks instead."""
    if key.endswith("_lark_secret"):
        return "LLaMA-Factory takes it from its arguments alone, which others may read"
    return "hand it over in train_secrets" + (f", as {_VARIABLES[key]}" if key in _VARIABLES else "")


def batch(arguments: Arguments, user: t.Mapping[str, str], world_size: int, wanted: int | None) -> tuple[int, int]:
    """Micro-batch per rank and gradient accumulation: samples per optimizer step = micro × accumulation × world size.

    user: the keys its author wrote, and where; they are kept. wanted: train_global_batch_size, None leaves the recipe's
    values.
    """
    micro = _positive(arguments, "per_device_train_batch_size", user)
    accumulation = _positive(arguments, "gradient_accumulation_steps", user)
    if wanted is None:
        return micro, accumulation
    _refuse_other_batches(arguments, user)
    keep_micro, keep_accumulation = "per_device_train_batch_size" in user, "gradient_accumulation_steps" in user
    step = world_size * (micro if keep_micro else 1) * (accumulation if keep_accumulation else 1)
    if keep_micro and keep_accumulation:
        if wanted != step:
            raise FinetuneError(
                f"train_global_batch_size is {wanted}, but {micro} × {accumulation} × {world_size} ranks = {step}.",
                where="train_global_batch_size, per_device_train_batch_size, gradient_accumulation_steps",
                change=f"use {step}, or leave one of the three out",
            )
        return micro, accumulation
    factor, rest = divmod(wanted, step)
    if rest:
        nearest = " or ".join(str(value) for value in (factor * step, (factor + 1) * step) if value)
        raise FinetuneError(
            f"A global batch of {wanted} on {world_size} rank{'s' * (world_size > 1)} goes in steps of {step}.",
            where="train_global_batch_size",
            change=f"use {nearest}, or other per_device_train_batch_size and gradient_accumulation_steps",
        )
    if keep_accumulation:
        return factor, accumulation
    if not keep_micro:  # what the recipe has fits into memory, and so does less
        micro = next(size for size in range(micro, 0, -1) if factor % size == 0)
    return micro, wanted // (world_size * micro)


def _refuse_other_batches(arguments: Arguments, user: t.Mapping[str, str]) -> None:
    """What makes ranks take other batches than they are told."""
    config = arguments.get("accelerator_config")
    takes_others = {
        "auto_find_batch_size": (arguments.get("auto_find_batch_size"), "halves batches that memory does not hold"),
        "accelerator_config": (isinstance(config, dict) and config.get("split_batches"), "splits batches over ranks"),
    }
    for key, (does, what) in takes_others.items():
        if does:
            raise FinetuneError(
                f"{key} {what}: no step would have the train_global_batch_size.",
                where=f"{user.get(key, 'train_args')}, key {key}",
                change=f"remove {'split_batches from ' * (key == 'accelerator_config')}{key}, or leave "
                "train_global_batch_size at auto",
            )


def _positive(arguments: Arguments, key: str, user: t.Mapping[str, str]) -> int:
    value = arguments[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise FinetuneError(
            f"{key} is {value!r}.",
            where=f"{user.get(key, 'train_args')}, key {key}",
            change="use a whole number from 1",
        )
    return value


def to_yaml(value: t.Any) -> str:
    """One value on one line that YAML 1.1 and 1.2 loaders and OmegaConf read as the same type.

    JSON is YAML, except that YAML 1.1 takes `1e-05` for text: floats get a point.
    """
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
        text = repr(value)
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    if isinstance(value, t.Mapping):
        return "{" + ", ".join(f"{json.dumps(str(key))}: {to_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(to_yaml(item) for item in value) + "]"
    if (
        isinstance(value, str)
        and re.fullmatch(r"[A-Za-z_/][\w/.@-]*", value)
        and scalar(value) == value
        and value.lower() not in _YAML_WORDS
    ):
        return value
    text = json.dumps(value, ensure_ascii=False)
    return re.sub(r"[\x7f-\x9f\u2028\u2029\ufeff]", lambda found: f"\\u{ord(found.group()):04x}", text)


_YAML_WORDS = frozenset(("yes", "no", "on", "off", "y", "n"))
