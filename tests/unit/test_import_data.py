# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The datasets that a LLaMA-Factory file names: entries of its dataset_info.json, or refused with that place."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible_collections.llmops.finetune.plugins.module_utils import _sources, _wish
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.module_utils._wish.wish import Wish
from ansible_collections.llmops.finetune.plugins.plugin_utils import _import, _recipes

SCHEMAS = _sources.schemas()
RECIPES = _recipes.read()
DEFAULTS: dict[str, t.Any] = {
    **yaml.safe_load((Path(__file__).parents[2] / "roles/train/defaults/main.yml").read_text(encoding="utf-8")),
    "train_eval_datasets": ["demo_heldout"],
    "train_name": "",
}


def test_datasets_are_those_of_the_dataset_info_above_the_file(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "examples" / "lora").mkdir(parents=True)
    entry = {"file_name": "mine.json", "formatting": "sharegpt", "columns": {"messages": "chat"}, "ranking": False}
    info = {"mine": entry, "far": {"hf_hub_url": "org/far", "split": "test"}, "script": {"script_url": "x"}}
    (tmp_path / "data/dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    (tmp_path / "examples/lora/my.yaml").write_text(
        "stage: sft\ndo_train: true\ndataset: mine,far,alpaca_en\n", encoding="utf-8"
    )
    found = _import.find("lora/my.yaml", [tmp_path, tmp_path / "examples"], SCHEMAS)
    assert found.media_folders == [f"{tmp_path}/data"]
    assert found.datasets == [
        {
            "name": "mine",
            "file": f"{tmp_path}/data/mine.json",
            "formatting": "sharegpt",
            "columns": {"messages": "chat"},
        },
        {"name": "far", "hub": "org/far", "split": "test"},
        "alpaca_en",
    ]
    with (tmp_path / "examples/lora/my.yaml").open("a", encoding="utf-8") as file:
        file.write("media_dir: data/pictures\n")
    for folder in ("data/pictures", "examples/data/pictures"):
        (tmp_path / folder).mkdir(parents=True)
        found = _import.find("lora/my.yaml", [tmp_path / "examples"], SCHEMAS)
        assert found.media_folders == [f"{tmp_path}/{folder}", f"{tmp_path}/data"]
        assert found.arguments["media_dir"] == "data/pictures"
    with pytest.raises(FinetuneError, match=r"no file other\.yaml"):
        _import.find("other.yaml", [tmp_path], SCHEMAS)


@pytest.mark.parametrize(
    ("info", "what", "change"),
    [
        (["mine"], "dataset_info.json is no dict", "file_name"),
        ({"mine": 5}, "mine is no dict", "file_name"),
        ({"mine": {"script_url": "x"}}, "neither file_name nor hf_hub_url", "write one of them"),
        ({"mine": {"file_name": 5}}, "file_name is 5", "as text"),
        ({"mine": {"file_name": "a.json", "columns": [1]}}, "is no dict", "write `key: name`"),
        ({"mime": {"file_name": "a.json"}, "far": {}}, "no dataset 'mine' in /", "such as mime"),
        ({"far": {}, "near": {}}, "no dataset 'mine' in /", "such as far, near"),
        (None, "no data/dataset_info.json beside my.yaml or above it", "correct dataset_dir"),
        ("{\n'", "dataset_info.json cannot be read: line 2 is no JSON", "correct that file"),
        ("", "dataset_info.json cannot be read: it is empty", "correct that file"),
    ],
)
def test_a_dataset_that_dataset_info_does_not_describe_is_refused_with_that_file(
    tmp_path: Path, info: t.Any, what: str, change: str
) -> None:
    (tmp_path / "my.yaml").write_text(
        "model_name_or_path: org/m\nstage: sft\ndo_train: true\ndataset: mine\n", encoding="utf-8"
    )
    if info is not None:
        (tmp_path / "data").mkdir()
        text = info if isinstance(info, str) else json.dumps(info)
        (tmp_path / "data/dataset_info.json").write_text(text, encoding="utf-8")
    with pytest.raises(FinetuneError) as refusal:
        _wish.read(DEFAULTS, SCHEMAS, RECIPES, _import.find("my.yaml", [tmp_path], SCHEMAS))
    assert what in refusal.value.what and change in refusal.value.change
    assert "dataset_info.json" in refusal.value.what + refusal.value.where
    if not isinstance(info, (list, str)):
        own = {**DEFAULTS, "train_datasets": [{"file": "a.json"}]}
        wish = _wish.read(own, SCHEMAS, RECIPES, _import.find("my.yaml", [tmp_path], SCHEMAS))
        assert [dataset.name for dataset in wish.datasets] == ["a"], "as the remedy says"


def wish(folder: Path, text: str, info: t.Any = None) -> Wish:
    """The wish of a file with these lines, and with this data/dataset_info.json beside it."""
    text = f"model_name_or_path: org/m\nstage: sft\ndo_train: true\n{text}"
    (folder / "my.yaml").write_text(text, encoding="utf-8")
    if info is not None:
        (folder / "data").mkdir()
        (folder / "data/dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return _wish.read(DEFAULTS, SCHEMAS, RECIPES, _import.find(str(folder / "my.yaml"), [], SCHEMAS))


def test_a_file_name_may_be_a_full_path(tmp_path: Path) -> None:
    full = str(tmp_path / "elsewhere/tickets.json")
    assert [data.where for data in wish(tmp_path, "dataset: abs\n", {"abs": {"file_name": full}}).datasets] == [full]


def test_a_dataset_dir_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (found,) = wish(tmp_path, "dataset: a\ndataset_dir: ~/data\n", {"a": {"file_name": "a.json"}}).datasets
    assert found.where == str(tmp_path / "data/a.json")


def test_names_of_a_hub_are_taken_as_such(tmp_path: Path) -> None:
    (found,) = wish(tmp_path, "dataset: org/set\ndataset_dir: ONLINE\n").datasets
    assert (found.source, found.where, found.name) == ("hub", "org/set", "org_set")


@pytest.mark.parametrize(
    ("text", "key", "what"),
    [
        ("dataset: identity\ndataset_dir: nodata\n", "dataset_dir", "no nodata/dataset_info.json beside my.yaml"),
        ("dataset: a\ndataset_dir: /none\n", "dataset_dir", "no /none/dataset_info.json, and 'a' is"),
        ("dataset: identity\n", "dataset", "no dataset 'identity' in"),
        ("dataset: mine\neval_dataset: nope\n", "eval_dataset", "no dataset 'nope' in"),
        ("dataset: a\ndataset_dir: REMOTE:org/x\n", "dataset_dir", "dataset_dir REMOTE:org/x is on a hub"),
        ("dataset: a:b\ndataset_dir: ONLINE\n", "dataset", "'a:b' is no hub id"),
    ],
)
def test_a_dataset_that_is_nowhere_is_refused_with_its_key(tmp_path: Path, text: str, key: str, what: str) -> None:
    with pytest.raises(FinetuneError) as refusal:
        wish(tmp_path, text, {"mine": {"file_name": "a.json"}})
    assert what in refusal.value.what
    assert refusal.value.where == f"train_config, my.yaml, key {key}"


def test_a_hub_goes_before_a_file_as_in_llamafactory(tmp_path: Path) -> None:
    found = wish(tmp_path, "dataset: a\n", {"a": {"file_name": "a.json", "hf_hub_url": "org/a", "ms_hub_url": "ms/a"}})
    assert [(one.source, one.where) for one in found.datasets] == [("hub", "org/a")]
    assert not [notice for notice in found.notices if "entry a" in notice]


def test_what_dataset_info_has_besides_is_told(tmp_path: Path) -> None:
    entry = {"file_name": "a.json", "ms_hub_url": "org/a", "colums": {}, "folder": "x", "subset": "en"}
    place = tmp_path / "data/dataset_info.json"
    assert wish(tmp_path, "dataset: a\n", {"a": entry}).notices == [
        f"{place}, entry a: file_name is taken, where LLaMA-Factory takes ms_hub_url.",
        *(f"{place}, entry a: {key} is not taken over." for key in ("colums", "folder", "subset")),
    ]


def test_data_that_a_file_describes_is_refused_with_its_entry(tmp_path: Path) -> None:
    described = wish(tmp_path, "dataset: a\neval_dataset: demo\n", {"a": {"file_name": "a.json"}})
    with pytest.raises(FinetuneError, match=r"no file .*/data/a\.json on this controller") as refusal:
        _sources.sources(described, [], {})
    assert refusal.value.where == f"train_config, {tmp_path}/data/dataset_info.json, entry a"
    assert "correct file_name" in refusal.value.change
    (tmp_path / "data/a.json").write_text('[{"instruction": "Why?"}]', encoding="utf-8")
    with pytest.raises(FinetuneError, match="would not train on") as refusal:
        _sources.sources(described, [], {})
    assert refusal.value.where.startswith(f"train_config, {tmp_path}/data/dataset_info.json, entry a, {tmp_path}")
    assert described.eval_datasets[0].described == "train_config, my.yaml, key eval_dataset"
