# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of a LLaMA-Factory file says how ranks share the work, as train_engine."""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

from ..module_utils import _parallel
from ..module_utils._errors import FinetuneError
from . import _import_json

KEYS = ("use_kt", "deepspeed", "fsdp", "fsdp_config")
"""Keys that become train_engine."""
MEGATRON = (*_parallel.MODEL_SIZES, *_parallel.EXPERT_SIZES)
"""Keys that stay, and tell that a file is for Megatron: LLaMA-Factory is told so by a variable, USE_MCA."""
_KNOWN = re.compile(r"ds_z([023])(_offload)?_config\.json")
"""LLaMA-Factory's own files, which its package does not hold."""
_REMEDY = "remove it and set train_engine: "


def engine(values: t.Mapping[str, t.Any], folders: t.Iterable[Path]) -> str:
    """The engine; empty where the file names none. folders: where a DeepSpeed file may be, nearest first."""
    megatron = next((key for key in MEGATRON if values.get(key)), "")
    asked = [key for key in ("deepspeed", "fsdp", "use_kt", megatron) if values.get(key)]
    if len(asked) > 1 and asked != ["fsdp", "use_kt"]:
        raise _refusal(asked[0], f"{' and '.join(asked)} exclude each other", "remove all but one of them")
    if megatron:
        return "megatron"
    if values.get("use_kt"):
        return "ktransformers"
    if values.get("deepspeed"):
        return _of_deepspeed(values["deepspeed"], folders)
    if values.get("fsdp"):
        return _of_fsdp(values["fsdp"])
    return ""


def _of_deepspeed(value: t.Any, folders: t.Iterable[Path]) -> str:
    if isinstance(value, t.Mapping):
        found, told = _parallel.of_deepspeed(value), "its zero_optimization"
    else:
        name = str(value)
        path = next((path for folder in folders if (path := folder / name).is_file()), None)
        known = _KNOWN.fullmatch(name.rpartition("/")[2])
        told = name
        if path is not None:
            found = _parallel.of_deepspeed(_settings(path))
        elif known:
            found = f"zero{known[1]}{known[2] or ''}"
        else:
            raise _refusal("deepspeed", f"there is no file {name} on this controller", _REMEDY + "zero2 or zero3")
    if found not in _parallel.ENGINES:
        raise _refusal("deepspeed", f"no engine is like {told}", _REMEDY + "zero2, zero3 or one of them with _offload")
    return found


def _settings(path: Path) -> dict[str, t.Any]:
    config, fault = _import_json.read(path)
    if fault:
        change = "name a file of DeepSpeed's settings, which is JSON, or " + _REMEDY + "zero2 or zero3"
        raise _refusal("deepspeed", f"{path} cannot be read: {fault}", change)
    return config if isinstance(config, dict) else {}


def _of_fsdp(value: t.Any) -> str:
    words = str(" ".join(map(str, value)) if isinstance(value, list) else value).lower().split()
    if "offload" in words:
        raise _refusal("fsdp", "FSDP with offload is not provided", _REMEDY + "zero3_offload")
    if not {"full_shard", "true"} & set(words):
        raise _refusal("fsdp", f"{' '.join(words)} is not provided", _REMEDY + "fsdp2, or zero2 to split no weights")
    return "fsdp2"


def _refusal(key: str, what: str, change: str) -> FinetuneError:
    return FinetuneError(what, where=key, change=change)
