# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model that lies on a node: what a plan looks at, of its config.json and of the names of its weights."""

from __future__ import annotations

import hashlib
import json
import struct
import typing as t
from pathlib import Path
from types import MappingProxyType

from ._engine.files import sha256
from ._errors import FinetuneError

_LIMIT = 32 * 2**20
"""Bytes of JSON that are read at most: an index of many thousand weights is a few MB."""
_WEIGHTS = ("model", "pytorch_model")
_TENSORS = ".safetensors"
_WORDS = (".json", ".jinja", ".model", ".py", ".tiktoken", ".txt")


class Model(t.NamedTuple):
    """Empty where nothing is known, as of a model that is still on a hub."""

    name: str = ""
    """The hub id, or the folder, that it was loaded from before it was saved, where it says so."""
    type: str = ""
    """Its `model_type`: llama, qwen3 …"""
    architectures: t.Sequence[str] = ()
    layers: int = 0
    length: int = 0
    """The longest input it was made for, in tokens."""
    first_length: int = 0
    """That length before its rotary embeddings were stretched."""
    quantized: str = ""
    """The method that its weights were quantized with; `unnamed` where the file does not say."""
    absent: t.Sequence[str] = ()
    """Files of weights that should be there."""
    damaged: t.Sequence[str] = ()
    """Those that are there and are not what their headers say."""
    parts: t.Sequence[str] = ()
    """Names of the modules in a layer."""
    others: t.Sequence[str] = ()
    """Names of the modules beside the layers."""
    modules: t.Sequence[str] = ()
    """Last names of all modules that have weights."""
    words: str = ""
    """Digest of the files that texts, images and sounds become tokens by."""
    config: t.Mapping[str, t.Any] = MappingProxyType({})
    """What its config.json says of its sizes."""


def merged(adapters: t.Sequence[str], new: t.Any) -> list[str]:
    """Adapters that become part of the model before training, below the one that is trained: all of them where a new
    one is made (create_new_adapter), else all but the last, which goes on being trained."""
    return list(adapters if new else adapters[:-1])


def facts(folder: Path) -> dict[str, t.Any]:
    """The fields of a Model, for a folder with a config.json."""
    config = _json(folder / "config.json")
    if not config:
        raise FinetuneError(
            f"{folder}/config.json is no JSON object.", where="train_model", change="copy the model there again"
        )
    try:
        files, names = _weights(folder)
        there = [name for name in files if (folder / name).is_file() and (folder / name).stat().st_size]
        damaged = [name for name in there if name.endswith(_TENSORS) and _header(folder / name) is None]
        words = _words(folder)
    except OSError as error:
        raise FinetuneError(
            f"{error.filename or folder} cannot be read: {error.strerror}.",
            where="train_model",
            change="let the account that runs belong to read the folder and its files",
        ) from None
    found = Model(
        **_described(config),
        absent=[name for name in files if name not in there],
        damaged=damaged,
        **_named(names),
        words=words,
        config=sizes(config),
    )
    return found._asdict()


_LABELS = ("id2label", "label2id", "task_specific_params")
_LONG = 512
"""Entries of a list or dict that is no size of anything: as many as the layers of a model are some."""
_DEEP = 3
"""Dicts in dicts, at most."""


def sizes(config: t.Any, deep: int = _DEEP) -> dict[str, t.Any]:
    """A config.json without names of labels and long lists, as it goes to the controller; empty for what is none."""
    if not isinstance(config, dict) or not deep:
        return {}
    return {
        key: sizes(value, deep - 1) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in _LABELS and not (isinstance(value, (dict, list)) and len(value) > _LONG)
    }


def config(folder: Path) -> dict[str, t.Any]:
    """Of a model that lies in a folder; empty where it has none that can be read."""
    return sizes(_json(folder / "config.json"))


def adapter(folder: Path) -> dict[str, t.Any]:
    """Of an adapter that lies in a folder; empty where there is none."""
    return adapted(_json(folder / "adapter_config.json"))


def adapted(found: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Of an adapter_config.json what decides the adapter's size, in LLaMA-Factory's keys."""
    keys = _OF_OFT if found.get("peft_type") == "OFT" else _OF_LORA
    told = {own: found[key] for own, key in keys.items() if key in found}
    targets = found.get("target_modules")
    if isinstance(targets, list):  # else a pattern, of all modules that have the names in it
        told["lora_target"] = ",".join(map(str, targets))
    return {**told, "finetuning_type": "oft" if keys is _OF_OFT else "lora"} if found else {}


_OF_LORA = {"lora_rank": "r", "lora_dropout": "lora_dropout", "use_dora": "use_dora"}
_OF_OFT = {"oft_block_size": "oft_block_size"}


def _described(config: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """What config.json says. Models that see keep what is about their text in `text_config`."""
    text = config.get("text_config")
    text = text if isinstance(text, dict) else config
    length = _number(config, "max_position_embeddings")
    rope = config.get("rope_scaling")
    method = config.get("quantization_config")
    architectures = config.get("architectures")
    return {
        "name": str(config.get("_name_or_path") or ""),
        "type": str(config.get("model_type") or ""),
        "architectures": [str(name) for name in architectures] if isinstance(architectures, list) else [],
        "layers": _number(text, "num_hidden_layers", "num_layers", "n_layer"),
        "length": length,
        "first_length": (_number(rope, "original_max_position_embeddings") if isinstance(rope, dict) else 0) or length,
        "quantized": str(method.get("quant_method") or "unnamed") if isinstance(method, dict) and method else "",
    }


def _number(values: t.Mapping[str, t.Any], *keys: str) -> int:
    return next((values[key] for key in keys if isinstance(values.get(key), int)), 0)


def _weights(folder: Path) -> tuple[list[str], list[str]]:
    """Files of weights, in the order that transformers looks for them, and names of the weights in them."""
    for stem in _WEIGHTS:
        suffix = _TENSORS if stem == "model" else ".bin"
        whole, index = folder / f"{stem}{suffix}", folder / f"{stem}{suffix}.index.json"
        if whole.is_file():
            header = _header(whole) if stem == "model" else None
            return [whole.name], [name for name in header or () if name != "__metadata__"]
        if index.is_file():
            entries = _json(index).get("weight_map")
            entries = entries if isinstance(entries, dict) else {}
            return sorted(set(map(str, entries.values()))) or [whole.name], list(entries)
    return ["model.safetensors"], []


def _words(folder: Path) -> str:
    """Of all that is no weight, as tokenizers have many names for their files, and code is one of them."""
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in _WORDS and not path.name.endswith(".index.json") and path.is_file():
            found.update(f"{path.name} {sha256(path)}\n".encode())
    return found.hexdigest()


def _header(path: Path) -> dict[str, t.Any] | None:
    """What a file of safetensors has by name: it begins with the length of a JSON object and that object, which says
    where each tensor begins and ends behind it. None where it does not, or the file has another length."""
    with open(path, "rb") as file:
        first = file.read(8)
        size = struct.unpack("<Q", first)[0] if len(first) == 8 else _LIMIT
        try:
            header = json.loads(file.read(size) if size < _LIMIT else "{}")
            ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
            return None
    return header if path.stat().st_size == 8 + size + max(ends, default=0) else None


def _named(weights: t.Iterable[str]) -> dict[str, t.Any]:
    """Modules by the names of their weights: model.layers.0.mlp.up_proj.weight is of `mlp`, last name `up_proj`."""
    parts, others, modules = set(), set(), set()
    for weight in weights:
        words = weight.split(".")
        if len(words) > 1:
            modules.add(words[-2])
        for number in ("0", "1"):  # a model that leaves layers out begins with 1
            if number in words[1:-1]:
                parts.add(words[len(words) - words[::-1].index(number)])
                break
        if len(words) > 1 and not any(word.isdigit() for word in words):
            others.add(words[-2])
    return {"parts": sorted(parts), "others": sorted(others), "modules": sorted(modules)}


def _json(path: Path) -> dict[str, t.Any]:
    """An object in a file; empty when there is none, or when the file is larger than one could be."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size < _LIMIT else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
