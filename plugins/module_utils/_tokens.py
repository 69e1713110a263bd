# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Data that is tokenized while a run is staged (train_tokenized): what decides the tokens, and which runs share them.

Ranks load data by one function of LLaMA-Factory (data/loader.py get_dataset), which sees the keys of data and of the
model, the stage, and of training what is named here. Of data and model all keys count but those that are known to
decide nothing: with a key that nobody here has heard of, two runs at worst make the same tokens twice. The process that
makes tokens is given these keys and no others, so that nothing outside the digest can change what is in the folder.

Tokens are no part of a run's id: they are what its ranks would make, and it comes out the same without them.
"""

from __future__ import annotations

import hashlib
import json
import typing as t

from . import _dataset, _media_set, _schema
from ._dataset import Source
from ._errors import FinetuneError
from ._ranks import Facts
from ._wish.wish import Wish

if t.TYPE_CHECKING:
    from ._plan import Plan

FOLDER = "tokenized"
_OTHERS = ("stage", "seed", "predict_with_generate")
"""Keys of other groups that the loader looks at."""
_DECIDES_NOTHING = frozenset(
    (
        "adapter_folder",
        "adapter_name_or_path",
        "data_shared_file_system",
        "disable_gradient_checkpointing",
        "double_quantization",
        "enable_liger_kernel",
        "eval_num_beams",
        "flash_attn",
        "ignore_pad_token_for_loss",
        "low_cpu_mem_usage",
        "mixture_of_depths",
        "moe_aux_loss_coef",
        "offload_folder",
        "overwrite_cache",
        "print_param_status",
        "rope_scaling",
        "shift_attn",
        "tokenized_path",
        "train_from_scratch",
        "upcast_layernorm",
        "upcast_lmhead_output",
        "use_kv_cache",
        "use_reentrant_gc",
        "use_unsloth",
        "use_unsloth_gc",
        "use_v1_kernels",
    )
)
"""Keys of data and model that are about weights, memory, speed, or where files lie."""
_NOTHING_OF = ("export_", "infer_", "kt_", "quantization_", "sglang_", "vllm_")


def decides(key: str, schema: _schema.Schema) -> bool:
    """Whether the tokens may depend on it."""
    group = schema.keys[key].group if key in schema.keys else ""
    if group not in ("data", "model"):
        return key in _OTHERS
    return key not in _DECIDES_NOTHING and not key.startswith(_NOTHING_OF)


def plan(
    wish: Wish, plan: Plan, sources: t.Sequence[Source], facts: t.Mapping[str, Facts], schema: _schema.Schema
) -> dict[str, t.Any]:
    """Digest of all that decides the tokens, the arguments among it, and whether data is on a hub; empty where ranks
    tokenize themselves."""
    if not wish.tokenized:
        return {}
    arguments = plan.resolved["arguments"]
    _refuse(arguments, plan.resolved["engine"], wish)
    kept = {key: value for key, value in arguments.items() if decides(key, schema)}
    model = next(iter(facts.values())).get("model") or {}
    content = {
        "environment": plan.environment["digest"],
        "model": [plan.resolved["model"]["name"], plan.resolved["model"]["revision"], model.get("words", "")],
        "arguments": kept,
        "data": [_content(source, wish.stage) for source in sources],
        "run": "" if all(map(_known, sources)) and not kept.get("new_special_tokens_config") else plan.id,
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    on_hub = any(source.dataset.source not in ("file", "path") for source in sources)
    return {"digest": hashlib.sha256(text.encode()).hexdigest()[:16], "arguments": kept, "on_hub": on_hub}


def on_node(tokens: t.Mapping[str, t.Any], root: str, places: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The same for one node. places: the keys that lead to model and data there."""
    if not tokens:
        return {}
    return {
        "folder": f"{root}/{FOLDER}/{tokens['digest']}",
        "arguments": {**tokens["arguments"], **places},
        "variables": {
            "CUDA_VISIBLE_DEVICES": "",
            "ACCELERATE_USE_FSDP": "false",
            "HF_HUB_OFFLINE": "0" if tokens["on_hub"] else "1",
        },
    }


def _content(source: Source, stage: str) -> t.Any:
    entry = _dataset.info(source.dataset, f"data{source.suffix}", source.fields, stage)
    return [source.dataset.name, source.evaluates, source.digest, _media_set.digest(source.media_files), entry]


def _known(source: Source) -> bool:
    """The content of the records, and of their images, videos and audios, is known: else it may be another one when
    the next run comes, and its tokens are for one run alone."""
    on_nodes = source.media and (source.media_dir or source.dataset.source == "path")
    return bool(source.digest) and not on_nodes


def _refuse(arguments: t.Mapping[str, t.Any], engine: str, wish: Wish) -> None:
    """What contradicts it."""
    if arguments.get("tokenized_path"):
        raise FinetuneError(
            "train_tokenized has a place of its own for the tokens, and tokenized_path names another.",
            where=f"train_tokenized; {wish.origins.get('tokenized_path', 'train_args')}, key tokenized_path",
            change="remove one of them",
        )
    if arguments.get("streaming"):
        raise FinetuneError(
            "A stream is tokenized while it is read, not before.",
            where=f"train_tokenized; {wish.origins.get('streaming', 'train_args')}, key streaming",
            change="remove one of them",
        )
    if engine == "megatron":
        raise FinetuneError(
            "With Megatron LLaMA-Factory cuts texts elsewhere than its loader is told.",
            where="train_tokenized, train_engine megatron",
            change="set train_tokenized: false",
        )
