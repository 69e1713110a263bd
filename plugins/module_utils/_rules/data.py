# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Data: what is mixed, streamed, packed, held out; templates."""

from __future__ import annotations

import difflib
import math
import typing as t

from .._tools import USES, Use
from .rule import Remedy, Rule, View, relative, remove

_DATA = "hparams/data_args.py"
_PARSER = "hparams/parser.py"
_SPLIT = "data/data_utils.py split_dataset"


def _packs(c: View) -> bool:
    """Every text is filled up to cutoff_len."""
    chosen = c["packing"]
    return bool(c["neat_packing"] or (c["stage"] == "pt" if chosen is None else chosen))


def _fetches_alone(c: View) -> bool:
    config = c["accelerator_config"]
    if isinstance(config, t.Mapping):
        return config.get("dispatch_batches") is False
    return config is not None  # a file


def _no_parts(words: t.Sequence[str]) -> bool:
    """These are no parts of 1, to the precision that numpy asks for."""
    try:
        parts = [float(word) for word in words]
    except ValueError:
        return True
    return not (all(part >= 0 for part in parts) and math.isclose(sum(parts), 1, abs_tol=1e-8))


def _near_templates(c: View) -> t.Union[str, Remedy]:
    near = difflib.get_close_matches(str(c["template"]), c.schema.templates, 3, 0.5)
    if near:
        return f"use {' or '.join(near)}"
    return remove("template", after=" to have that of the model, or use one that LLaMA-Factory has, such as empty")


def _never_ends(c: View) -> bool:
    """Drawing goes on until each dataset came to its end, and one is never drawn from."""
    words = c.words("interleave_probs") if c["interleave_probs"] is not None else []
    endless = c["mix_strategy"] == "interleave_over" and not c["streaming"]
    return endless and not _no_parts(words) and any(float(word) == 0 for word in words)


def _as_many(c: View) -> str:
    if len(c.words("interleave_probs")) != c.now.datasets:
        return "give a number for each of train_datasets"
    return "name as many train_eval_datasets as train_datasets, or set train_eval_datasets: []"


def _left(c: View) -> int | None:
    """Records to train on after max_samples and val_size; None where that is not known."""
    records, held = c.now.records, c["val_size"]
    if records is None:
        return None
    if c["max_samples"] is not None:
        records = min(records, c["max_samples"] * c.now.datasets)
    if held <= 1e-6:
        return records
    return records - (math.ceil(held * records) if held < 1 else int(held))


def _leaves_none(c: View) -> bool:
    """Of as many records as are known."""
    held, left = c["val_size"], _left(c)
    whole = isinstance(held, float) and held == 1  # a part, to datasets
    return held > 1e-6 and (whole or (left is not None and left <= 0))


def _drops_all(c: View) -> bool:
    """Ranks take a batch each, or none does; PPO has a row of its own."""
    left, due = _left(c), c["per_device_train_batch_size"] * c.now.world_size
    alone = c["stage"] == "ppo" or c["streaming"] or _packs(c)
    return bool(c["dataloader_drop_last"] and not alone and left is not None and 0 < left < due)


def _dies(use: Use) -> Rule:
    return Rule(
        ("template", "train_datasets"),
        lambda c: use in c.now.tools and c.tools in use.deadly,
        f"the datasets hold {use.what}, and this template dies of it",
        lambda c: f"{use.change}, or take another template; {c.now.tools[use]}",
        "data/tool_utils.py",
    )


RULES: t.Tuple[Rule, ...] = (
    Rule(
        ("cutoff_len", "packing"),
        lambda c: c["cutoff_len"] < (2 if c["packing"] or c["neat_packing"] else 1),
        "cutoff_len leaves nothing of a text",
        "use the number of tokens that a text may have, such as 2048",
        "data/processor/processor_utils.py infer_seqlen",
    ),
    Rule(
        ("val_size",),
        lambda c: c["val_size"] < 0,
        "val_size is below 0",
        "use a part of the records below 1, or a number of records",
        _SPLIT,
    ),
    Rule(
        ("val_size", "train_datasets"),
        _leaves_none,
        "val_size leaves no record to train on",
        lambda c: (
            remove("val_size", after=", or give more records than one")
            if c.now.records == 1
            else "use a part of the records such as 0.1, or a smaller number of them"
        ),
        _SPLIT,
    ),
    Rule(
        ("dataloader_drop_last", "per_device_train_batch_size"),
        _drops_all,
        "dataloader_drop_last leaves out what fills no batch of all ranks, and there are fewer records than one",
        remove("dataloader_drop_last", after=", or lower per_device_train_batch_size"),
        "transformers trainer.py",
    ),
    Rule(
        ("max_samples",),
        lambda c: c["max_samples"] is not None and c["max_samples"] < 1,
        "max_samples leaves no record of a dataset",
        remove("max_samples", before="use a whole number from 1, or "),
        "data/loader.py",
    ),
    Rule(
        ("preprocessing_num_workers",),
        lambda c: c["preprocessing_num_workers"] is not None and c["preprocessing_num_workers"] < 1,
        "preprocessing_num_workers is a number of processes",
        remove("preprocessing_num_workers", before="use a whole number from 1, or "),
        "data/loader.py",
    ),
    Rule(
        ("val_size", "train_eval_datasets"),
        lambda c: c["val_size"] > 1e-6 and c.now.eval_datasets,
        "held-out data is either split off or given",
        remove("val_size", after=", or set train_eval_datasets: []"),
        _DATA,
    ),
    Rule(
        ("interleave_probs", "mix_strategy"),
        lambda c: c["interleave_probs"] is not None and c["mix_strategy"] == "concat",
        "interleave_probs means nothing to mix_strategy concat",
        remove("interleave_probs", before="set mix_strategy: interleave_under, or "),
        _DATA,
    ),
    Rule(
        ("interleave_probs", "train_datasets"),
        lambda c: (
            c["interleave_probs"] is not None
            and any(
                count and len(c.words("interleave_probs")) != count for count in (c.now.datasets, c.now.eval_datasets)
            )
        ),
        "interleave_probs needs one number per dataset, and as many held-out datasets or none",
        _as_many,
        _DATA,
    ),
    Rule(
        ("interleave_probs",),
        lambda c: c["interleave_probs"] is not None and _no_parts(c.words("interleave_probs")),
        "interleave_probs are parts of 1",
        "use numbers that add up to 1, such as 0.7,0.3",
        "datasets combine.py interleave_datasets",
    ),
    Rule(
        ("interleave_probs", "mix_strategy"),
        _never_ends,
        "interleave_over draws until each dataset has come to its end, which one with the part 0 never does",
        "remove that dataset, give it a part above 0, or set mix_strategy: interleave_under",
        "datasets arrow_dataset.py _interleave_map_style_datasets",
    ),
    Rule(
        ("mix_strategy", "train_datasets"),
        lambda c: c["mix_strategy"] == "interleave_once" and max(c.now.datasets, c.now.eval_datasets) > 1,
        "the datasets package that LLaMA-Factory takes has no interleave_once",
        "use interleave_over or interleave_under",
        "datasets combine.py interleave_datasets",
    ),
    Rule(
        ("streaming", "val_size"),
        lambda c: c["streaming"] and 1e-6 < c["val_size"] < 1,
        "a stream has no known length to take a fraction of",
        "give val_size as a number of records",
        _DATA,
    ),
    Rule(
        ("streaming", "max_samples"),
        lambda c: c["streaming"] and c["max_samples"] is not None,
        "max_samples does not go with streaming",
        remove("max_samples", after=", set max_steps"),
        _DATA,
    ),
    Rule(
        ("streaming", "max_steps"),
        lambda c: c["streaming"] and c["max_steps"] == -1,
        "a stream has no known end",
        "set max_steps",
        _PARSER,
    ),
    Rule(
        ("streaming", "train_datasets"),
        lambda c: c["streaming"] and c.now.sliced,
        "a stream of a hub has whole splits alone, and the `split` of a dataset asks for a part",
        remove("streaming", after=", or name the split as it is"),
        "datasets builder.py as_streaming_dataset",
    ),
    Rule(
        ("tokenized_path",),
        relative("tokenized_path"),
        "a relative tokenized_path begins in the folder of the run",
        "write a full path on the node, from /",
        "data/loader.py",
    ),
    Rule(
        ("streaming", "tokenized_path"),
        lambda c: c["streaming"] and c["tokenized_path"],
        "a stream cannot be stored in tokenized_path",
        remove("streaming", "tokenized_path", either=True),
        "data/loader.py",
    ),
    Rule(
        ("streaming", "dataloader_num_workers"),
        lambda c: c["streaming"] and c["dataloader_num_workers"] == 0,
        "a stream that no worker reads ends before its first record",
        "set dataloader_num_workers: 1",
        "data/loader.py, issues 8560 and 8870 of LLaMA-Factory",
    ),
    Rule(
        ("mask_history", "train_on_prompt"),
        lambda c: c["mask_history"] and c["train_on_prompt"],
        "one masks what the other trains on",
        remove("mask_history", "train_on_prompt", either=True),
        _DATA,
    ),
    Rule(
        ("template",),
        lambda c: c["template"] is not None and c.schema.templates and c["template"] not in c.schema.templates,
        "LLaMA-Factory has no such template",
        _near_templates,
        "data/template.py",
    ),
    Rule(
        ("train_on_prompt", "template"),
        lambda c: c["train_on_prompt"] and c.template.get("efficient_eos"),
        "this template puts the end of text elsewhere than train_on_prompt needs it",
        remove("train_on_prompt"),
        "data/processor/supervised.py",
    ),
    Rule(
        ("template", "train_model"),
        lambda c: c.template and c.right_template,
        "LLaMA-Factory has another template for this very model",
        lambda c: f"use {c.right_template}, or leave it out, or set train_insist: [template] where you mean it",
        "extras/constants.py",
    ),
    Rule(
        ("template", "train_model"),
        lambda c: (
            c.template.get("reasoning")
            and "instruct" in c.now.model.lower()
            and c["enable_thinking"] is not None
            and not c.right_template
        ),
        "a reasoning template puts empty thoughts into the answers of a model that does not think",
        "use the template's _nothink twin, or set enable_thinking: null",
        "data/template.py ReasoningTemplate",
    ),
    Rule(
        ("train_model", "template", "train_datasets"),
        lambda c: c.now.media and not c.template.get("media") and (c.template or not c["template"]),
        "the datasets hold images, videos or audios, and the template is for text",
        "name a model that sees or hears, with its own template, or other data",
        "data/mm_plugin.py",
    ),
    Rule(
        ("train_model", "train_datasets"),
        lambda c: c.now.media and c.now.model == "demo",
        "the datasets hold images, videos or audios, and the demo's model takes texts alone",
        "name a model that sees or hears, or other data",
        "data/mm_plugin.py",
    ),
    *map(_dies, USES),
    Rule(
        ("streaming", "accelerator_config"),
        lambda c: c["streaming"] and c.now.world_size > 1 and not _packs(c) and not _fetches_alone(c),
        "the first of several ranks would hand on the batches of a stream, and cannot where their lengths differ",
        "set accelerator_config: {dispatch_batches: false}",
        "accelerate data_loader.py",
    ),
    Rule(
        ("neat_packing", "per_device_train_batch_size"),
        lambda c: c["neat_packing"] and c["flash_attn"] == "fa2" and c["per_device_train_batch_size"] > 1,
        "neat_packing with fa2 takes one packed sequence at a time",
        "set per_device_train_batch_size: 1",
        "data/collator.py",
    ),
)
