# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Datasets: entries that are refused, what dataset_info.json says, and what of a dataset is identity."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _dataset
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

# --- entries ---


@pytest.mark.parametrize(
    ("entry", "name", "source", "where"),
    [
        ("demo", "demo", "registered", "demo"),
        ({"file": "data/my set.jsonl"}, "my_set", "file", "data/my set.jsonl"),
        ({"file": "a.json", "name": "b"}, "b", "file", "a.json"),
        ({"path": "/srv/x.parquet"}, "x", "path", "/srv/x.parquet"),
        ({"path": "~/x.csv"}, "x", "path", "~/x.csv"),
        ({"hub": "org/data"}, "data", "hub", "org/data"),
        ({"registered": "demo"}, "demo", "registered", "demo"),
    ],
)
def test_an_entry_says_where_its_records_are(entry: t.Any, name: str, source: str, where: str) -> None:
    (dataset,) = _dataset.parse([entry], "train_datasets")
    assert (dataset.name, dataset.source, dataset.where) == (name, source, where)
    assert _dataset.parse(entry, "train_datasets") == [dataset], "a single entry needs no list"


def test_nodes_are_asked_for_theirs_alone_and_for_each_once() -> None:
    entry = {
        "path": "/srv/a b.json",
        "name": "x",
        "formatting": "sharegpt",
        "columns": {"messages": "m"},
        "tags": {"role_tag": "role"},
        "ranking": True,
        "num_samples": 5,
    }
    there = _dataset.parse([entry, "demo", {"file": "a.json"}, {"hub": "o/d"}], "train_datasets")
    asked = _dataset.on_nodes([*there, *_dataset.parse([entry], "train_eval_datasets")])
    assert _dataset.parse(asked, "train_datasets") == there[:1]


def test_further_keys_are_kept() -> None:
    (dataset,) = _dataset.parse(
        {"hub": "o/d", "formatting": "sharegpt", "tags": {"role_tag": "role"}, "split": "test", "num_samples": "50"},
        "train_datasets",
    )
    assert dataset.formatting == "sharegpt"
    assert dataset.tags == {"role_tag": "role"}
    assert dataset.options == {"split": "test", "num_samples": 50}


@pytest.mark.parametrize(
    ("entries", "where", "change"),
    [
        (3, "train_datasets", "- name: mydata"),
        ([3], "train_datasets[0]", "`file`"),
        (["demo", None], "train_datasets[1]", "`file`"),
        ([{"name": "a"}], "train_datasets[0]", "add one of them"),
        ([{"file": "a.json", "hub": "o/a"}], "train_datasets[0]", "keep one of file, hub"),
        ([{"file": "a.json", "colour": 1}], "train_datasets[0]", "columns"),
        ([{"file": "a.json", 1: 1, "colour": 1}], "train_datasets[0]", "columns"),
        ([{"file": "a.json", "name": "a b"}], "train_datasets[0].name", "letters"),
        ([{"file": "a.json", "name": "a,b"}], "train_datasets[0].name", "letters"),
        (["a,b"], "train_datasets[0].name", "letters"),
        ([{"file": "a.json", "formatting": "chatml"}], "train_datasets[0].formatting", "alpaca, sharegpt, openai"),
        ([{"file": "a.json", "columns": {"question": "q"}}], "train_datasets[0].columns", "prompt"),
        ([{"file": "a.json", "columns": ["prompt"]}], "train_datasets[0].columns", "prompt"),
        ([{"file": "a.json", "columns": {"prompt": 3}}], "train_datasets[0].columns.prompt", "text"),
        ([{"file": "a.json", "tags": {"role": "r"}}], "train_datasets[0].tags", "role_tag"),
        ([{"file": "a.json", "tags": "role"}], "train_datasets[0].tags", "role_tag"),
        (
            [{"file": "a.json", "formatting": "sharegpt", "columns": {"system": "s"}}],
            "train_datasets[0].columns",
            "add `messages",
        ),
        ([{"path": "/a.json", "subset": "en"}], "train_datasets[0].subset", "remove it"),
        ([{"file": "a.xlsx"}], "train_datasets[0].file", ".jsonl"),
        ([{"file": "a"}], "train_datasets[0].file", "no folder"),
        (["my/a.json"], "train_datasets[0]", "write {file: my/a.json}"),
        ("a.jsonl", "train_datasets[0]", "write {file: a.jsonl}"),
        (["org/set"], "train_datasets[0]", "write {hub: org/set}"),
        ([{"path": "a.json"}], "train_datasets[0].path", "full path"),
        ([{"hub": "a/b/c"}], "train_datasets[0].hub", "owner/name"),
        ([{"hub": "o/my data", "name": "d"}], "train_datasets[0].hub", "owner/name"),
        ([{"hub": "./d"}], "train_datasets[0].hub", "owner/name"),
        ([{"hub": ["o/d"]}], "train_datasets[0].hub", "one name"),
        ([{"file": "a.json", "split": "test"}], "train_datasets[0].split", "remove it"),
        ([{"path": "/a.json", "split": "validation"}], "train_datasets[0].split", "remove it"),
        ([{"file": "a.json", "split": "train[x:]"}], "train_datasets[0].split", "train[10%:20%]"),
        ([{"file": "a.json", "split": "train[:5]+test"}], "train_datasets[0].split", "remove it"),
        ([{"hub": "o/d", "split": "test[:200%]"}], "train_datasets[0].split", "train[:100]"),
        ([{"hub": "o/d", "split": 5}], "train_datasets[0].split", "as text"),
        ([{"hub": "o/d", "subset": ["en"]}], "train_datasets[0].subset", "as text"),
        ([{"s3": "s3://bucket/"}], "train_datasets[0].s3", "all of the key"),
        ([{"s3": "s3://bucket/a.json/", "name": "a"}], "train_datasets[0].s3", "no folder"),
        ([{"s3": "s3://my_bucket/a.json"}], "train_datasets[0].s3", "small letters"),
        ([{"s3": "s3://Bucket/a.json"}], "train_datasets[0].s3", "small letters"),
        ([{"s3": "s3://b/a.json"}], "train_datasets[0].s3", "3 to 63"),
        ([{"file": "s3://bucket/a.json"}], "train_datasets[0].file", "write {s3: s3://bucket/a.json}"),
        ([{"path": "s3://bucket/a.json"}], "train_datasets[0].path", "write {s3: s3://bucket/a.json}"),
        ([{"file": "https://host/a.json"}], "train_datasets[0].file", "fetch it"),
        ([{"hub": "o/d", "num_samples": "ten"}], "train_datasets[0].num_samples", "whole number"),
        ([{"hub": "o/d", "num_samples": 0}], "train_datasets[0].num_samples", "whole number"),
        ([{"file": "x/a.json"}, {"file": "y/a.json"}], "train_datasets", "its own `name`"),
    ],
)
def test_a_wrong_entry_is_refused_with_its_place_and_the_remedy(entries: t.Any, where: str, change: str) -> None:
    with pytest.raises(FinetuneError) as refusal:
        _dataset.parse(entries, "train_datasets")
    assert refusal.value.where == where
    assert change in refusal.value.change


# --- dataset_info.json and identity ---


@pytest.mark.parametrize(
    ("entry", "present", "expected"),
    [
        (
            {"file": "a.json"},
            ("output", "instruction", "other"),
            {
                "formatting": "alpaca",
                "file_name": "/d/a",
                "columns": {"prompt": "instruction", "response": "output"},
            },
        ),
        ({"file": "a.csv"}, (), {"formatting": "alpaca", "file_name": "/d/a"}),
        (
            {"file": "a.json", "columns": {"prompt": "q", "response": "a"}},
            ("q", "a", "instruction"),
            {"formatting": "alpaca", "file_name": "/d/a", "columns": {"prompt": "q", "response": "a"}},
        ),
        (
            {"file": "a.json", "formatting": "sharegpt", "tags": {"role_tag": "role"}},
            ("conversations",),
            {
                "formatting": "sharegpt",
                "file_name": "/d/a",
                "columns": {"messages": "conversations"},
                "tags": {**_dataset.TAGS, "role_tag": "role"},
            },
        ),
        (
            {"hub": "o/d", "split": "test", "subset": "en", "num_samples": 5},
            (),
            {"formatting": "alpaca", "hf_hub_url": "o/d", "split": "test", "subset": "en", "num_samples": 5},
        ),
    ],
)
def test_dataset_info_writes_everything_out(entry: t.Any, present: tuple[str, ...], expected: t.Any) -> None:
    assert _dataset.info(_dataset.parse(entry, "v")[0], "/d/a", present) == expected


def test_identity_is_content_where_there_is_a_file() -> None:
    here, moved = (_dataset.parse({"file": f"{folder}/a.json"}, "v")[0] for folder in ("x", "y"))
    assert _dataset.identity(here, "00") == _dataset.identity(moved, "00") != _dataset.identity(here, "11")
    assert _dataset.identity(here, "00") == {"name": "a", "formatting": "alpaca", "digest": "00"}


def test_identity_is_the_reference_where_only_the_hub_knows() -> None:
    dataset = _dataset.parse({"hub": "o/d", "split": "test", "columns": {"prompt": "q"}}, "v")[0]
    assert _dataset.identity(dataset, "") == {
        "name": "d",
        "formatting": "alpaca",
        "reference": "o/d",
        "columns": {"prompt": "q"},
        "options": {"split": "test"},
    }


@pytest.mark.parametrize("split", ["train", "train[:10%]"])
def test_a_file_has_the_split_train(split: str) -> None:
    assert _dataset.parse({"file": "a.json", "split": split}, "v")[0].options == {"split": split}


def test_a_file_whose_name_names_no_dataset_is_to_be_given_one() -> None:
    with pytest.raises(FinetuneError) as refusal:
        _dataset.parse([{"file": "\u4e2d.jsonl"}], "train_datasets")
    assert refusal.value.where == "train_datasets[0].file" and "give it a `name`" in refusal.value.change
