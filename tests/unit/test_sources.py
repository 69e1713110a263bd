# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Datasets as found: on the controller or the same on every node, digested, and refused when wrong."""

from __future__ import annotations

import sys
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible_collections.llmops.finetune.plugins.module_utils import (
    _dataset,
    _profile,
    _recipe,
    _sources,
    _wish,
)
from ansible_collections.llmops.finetune.plugins.module_utils._engine import files
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.module_utils._wish.imported import Imported
from ansible_collections.llmops.finetune.plugins.plugin_utils import _recipes

DEFAULTS: dict[str, t.Any] = {
    **yaml.safe_load((Path(__file__).parents[2] / "roles/train/defaults/main.yml").read_text(encoding="utf-8")),
    "train_eval_datasets": [],
    "train_name": "",
}
SCHEMAS = _sources.schemas()
RECIPES = _recipes.read()
RECORD = '{"instruction": "Why?", "output": "So."}\n'


def find(folders: t.Sequence[Path], facts: dict[str, t.Any] | None = None, **wish: t.Any) -> list[t.Any]:
    return _sources.sources(_wish.read({**DEFAULTS, **wish}, SCHEMAS, RECIPES), folders, facts or {})


def answer(digest: str = "00", **more: t.Any) -> dict[str, t.Any]:
    told = {"name": "a", "missing": False, "path": "/home/me/a.jsonl", "digest": digest}
    return {"sources": [{**told, "records": 1, "fields": ["output"], "faults": [], "more": 0, "doubts": {}, **more}]}


LATER = {"name": "a", "missing": False, "path": "/home/me/a.jsonl", "digest": "00"}


def test_a_table_is_refused_where_nothing_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(FinetuneError) as refusal:
        find([tmp_path], train_datasets=[{"file": "a.parquet"}])
    assert refusal.value.where.startswith("train_datasets, ") and "pyarrow" in refusal.value.change


def test_a_file_is_taken_from_the_first_folder_that_has_it(tmp_path: Path) -> None:
    for name, text in (("one", ""), ("two", RECORD), ("three", RECORD * 2)):
        (tmp_path / name).mkdir()
        if text:
            (tmp_path / name / "a.jsonl").write_text(text, encoding="utf-8")
    folders = [tmp_path / name for name in ("one", "two", "three")]
    (source,) = find(folders, train_datasets=[{"file": "a.jsonl"}])
    path = tmp_path / "two/a.jsonl"
    assert (source.local, source.digest, source.suffix) == (str(path), files.sha256(path), ".jsonl")
    assert (source.fields, source.evaluates) == (("instruction", "output"), False)
    (absolute,) = find([], train_datasets=[{"file": str(path)}])
    assert absolute.local == str(path)


PICTURED = '{"instruction": "<image>Why?", "output": "So.", "images": ["x/1.png"]}\n'


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data in one folder, a picture of each of three folders told by its content."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.jsonl").write_text(PICTURED, encoding="utf-8")
    for folder in ("media", "imported", "data"):
        (tmp_path / folder / "x").mkdir(parents=True)
        (tmp_path / folder / "x/1.png").write_text(folder, encoding="utf-8")
    return tmp_path


def find_media(folder: Path, imported: Imported | None = None, **wish: t.Any) -> _dataset.Source:
    variables = {**DEFAULTS, "train_datasets": [{"file": "data/a.jsonl"}], **wish}
    (source,) = _sources.sources(_wish.read(variables, SCHEMAS, RECIPES, imported), [folder], {})
    return source


def test_media_are_looked_for_in_media_dir_then_where_train_config_has_them_then_beside_the_data(
    pictures: Path,
) -> None:
    imported = Imported(arguments={"stage": "sft", "finetuning_type": "lora"}, model="org/m")
    imported.media_folders = [str(pictures / "imported")]
    for media_dir in ("media", str(pictures / "media")):
        source = find_media(pictures, imported, train_args={"media_dir": media_dir})
        assert source.media_files == {"x/1.png": files.sha256(pictures / "media/x/1.png")}
    assert (source.media, source.media_dir, source.doubts) == (True, False, ())
    source = find_media(pictures, imported)
    assert source.media_files == {"x/1.png": files.sha256(pictures / "imported/x/1.png")}
    assert source.media_folders == (str(pictures / "imported"), str(pictures / "data"))
    assert find_media(pictures).media_files == {"x/1.png": files.sha256(pictures / "data/x/1.png")}


def test_a_media_dir_that_is_no_folder_here_is_one_of_the_nodes(pictures: Path) -> None:
    source = find_media(pictures, train_args={"media_dir": "/none/pictures"})
    assert (source.media_files, source.media_dir) == ({}, True)
    assert "media on the nodes" in source.doubts[0]


def test_a_media_dir_that_is_a_file_is_refused(pictures: Path) -> None:
    with pytest.raises(FinetuneError, match=r"data/a\.jsonl is a file") as refusal:
        find_media(pictures, train_args={"media_dir": str(pictures / "data/a.jsonl")})
    assert refusal.value.where == "train_args, key media_dir"


def test_media_that_are_nowhere_are_refused_with_record_and_path(pictures: Path) -> None:
    (pictures / "data/x/1.png").unlink()
    with pytest.raises(FinetuneError) as refusal:
        find_media(pictures, train_args={"media_dir": "other"})
    assert "record 1: 'images' holds 'x/1.png', and there is no file of that path" in refusal.value.where
    assert f"put it below {pictures}/other or {pictures}/data, or correct the path or media_dir" in refusal.value.change


def test_the_demo_is_a_file_of_this_collection() -> None:
    train, held_out = find([], train_datasets=["demo"], train_eval_datasets=["demo_heldout"])
    assert train.digest == _sources.corpus_digest()
    assert Path(held_out.local).name == "demo_heldout.jsonl"
    assert (train.evaluates, held_out.evaluates) == (False, True)


def test_a_hub_knows_its_content_alone() -> None:
    (source,) = find([], train_datasets=[{"hub": "org/data"}])
    assert (source.digest, source.local) == ("", "")


def test_a_name_that_llamafactory_registers_is_its_own_entry() -> None:
    (source,) = find([], train_datasets=["agent_instruct"])
    entry = _dataset.info(source.dataset, source.file_name("/root"), source.fields)
    assert entry["hf_hub_url"] == "THUDM/AgentInstruct" and entry["formatting"] == "sharegpt"
    assert _dataset.identity(source.dataset, "")["reference"] == "agent_instruct"


def test_the_registry_is_that_of_the_pinned_version() -> None:
    lock = _profile.lock_path("main").read_text(encoding="utf-8")
    assert f"llamafactory=={_recipe.LLAMAFACTORY['main']} " in lock
    assert len(_sources.registry()) == 104


@pytest.mark.parametrize(
    ("entry", "what", "change"),
    [
        ({"file": "missing.json"}, "no file missing.json", "`path`"),
        ({"file": "pairs.json", "ranking": True}, "Stage sft learns from single answers", "recipe dpo"),
        ({"file": "chosen.jsonl"}, "would not train on", "add `ranking: true`, and take a recipe"),
        ({"file": "chosen.jsonl", "split": "train[1:]", "ranking": True}, "Stage sft", "recipe dpo"),
        (
            {"file": "two.jsonl", "split": "train[2:]"},
            "split train[2:] takes none of its 2 records",
            "correct its `split`",
        ),
        ("dpo_mix_en", "Stage sft learns from single answers", "recipe dpo"),
        ({"registered": "alpaca_en", "ranking": True}, "as LLaMA-Factory registers it", "`hub`"),
        ({"registered": "alpaca_en", "columns": {"prompt": "q"}}, "as LLaMA-Factory registers it", "leave them out"),
        ("alpaca_enn", "no dataset 'alpaca_enn'", "use alpaca_en or"),
        ("nothing-like-it", "no dataset", "demo or demo_heldout"),
        ("identity", "a file of LLaMA-Factory's repository", "`file`"),
        ({"hub": "o/d", "revision": "v1"}, "Unknown key 'revision'", "split"),
        ({"file": "broken.jsonl"}, "would not train on", "write 'output'"),
    ],
)
def test_what_is_not_there_or_broken_is_refused(tmp_path: Path, entry: t.Any, what: str, change: str) -> None:
    (tmp_path / "broken.jsonl").write_text('{"instruction": "Why?"}\n', encoding="utf-8")
    (tmp_path / "two.jsonl").write_text(RECORD * 2, encoding="utf-8")
    (tmp_path / "chosen.jsonl").write_text('{"instruction": "Why?", "chosen": "So.", "rejected": "No."}\n')
    with pytest.raises(FinetuneError) as refusal:
        find([tmp_path], train_datasets=[entry])
    assert what in refusal.value.what
    assert refusal.value.where.startswith("train_datasets")
    assert change in refusal.value.change


@pytest.mark.parametrize(
    ("recipe", "entry"), [("dpo", "demo"), ("reward", "demo"), ("kto", "demo"), ("dpo", "alpaca_en")]
)
def test_a_set_that_comes_as_it_is_is_not_to_be_changed(recipe: str, entry: str) -> None:
    with pytest.raises(FinetuneError, match=f"Stage .* '{entry}'") as refusal:
        find([], train_datasets=[entry], train_recipe=recipe)
    assert refusal.value.change.startswith("name a set in train_datasets")


def test_records_are_those_that_a_split_takes(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(RECORD * 10, encoding="utf-8")
    splits = ["", "train[:4]", "train[4:]"]
    entries = [{"file": "a.jsonl", "name": f"part{i}", "split": split} for i, split in enumerate(splits)]
    found = find([tmp_path], train_datasets=entries)
    assert [source.records for source in found] == [10, 4, 6]
    (there,) = find([], {"x": answer(records=8)}, train_datasets=[{"path": "~/a.jsonl", "split": "train[:25%]"}])
    assert there.records == 2


def test_what_the_version_of_the_stage_does_not_read_is_refused(tmp_path: Path) -> None:
    chat = '{"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}\n'
    (tmp_path / "chat.jsonl").write_text(chat, encoding="utf-8")
    openai: dict[str, t.Any] = {"file": "chat.jsonl", "formatting": "openai"}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    sharegpt = {**openai, "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    assert find([tmp_path], train_datasets=[openai])
    assert find([tmp_path], train_datasets=[sharegpt], train_recipe="ppo")
    with pytest.raises(FinetuneError, match=r"LLaMA-Factory 0\.9\.3.*does not read records of formatting openai") as no:
        find([tmp_path], train_datasets=[openai], train_recipe="ppo")
    assert "sharegpt" in no.value.change


def test_a_file_on_the_nodes_must_be_the_same_everywhere() -> None:
    entry = [{"path": "~/a.jsonl"}]
    (source,) = find([], {"x": answer(), "y": answer()}, train_datasets=entry)
    assert (source.dataset.where, source.digest, source.local) == ("/home/me/a.jsonl", "00", "")
    (source,) = find([], {"x": answer(), "y": {"sources": [{**LATER, "unread": "no pyarrow"}]}}, train_datasets=entry)
    assert (source.fields, source.unread) == (("output",), "y: no pyarrow")
    for facts, what in (
        ({"x": answer(), "y": answer("11")}, "differs between nodes"),
        ({"x": answer(), "y": {"sources": []}}, "on y"),
        ({"x": answer(), "y": {"sources": [{"name": "a", "missing": True}]}}, "on y"),
        ({"x": answer(), "y": answer(faults=[[3, "bad", "mend it"]])}, "would not train on"),
    ):
        with pytest.raises(FinetuneError, match=what):
            find([], facts, train_datasets=entry)
