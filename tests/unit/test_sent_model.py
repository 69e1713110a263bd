# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model in a folder of the controller: what of it is sent, who it makes the run, and how it is stored."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import (
    _changes,
    _describe,
    _identity,
    _media_send,
    _models,
    _node,
    _plan,
    _sealed,
    _sent_model,
    _sources,
    _wish,
)
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

from .plans import CORPUS, DATA, DEFAULTS, LOCK, RECIPES, SCHEMAS, lines, node

CONFIG = {"model_type": "qwen3", "_name_or_path": "Qwen/Qwen3-4B-Instruct-2507", "max_position_embeddings": 4096}


def made(folder: Path, **more: bytes) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    for name in ("checkpoint-3/model.safetensors", "training_args.bin", "trainer_state.json", ".git/x", "plot.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not for ranks")
    for name, content in more.items():
        (folder / name).write_bytes(content)
    return folder


def plan(folder: Path, **asked: t.Any) -> _plan.Plan:
    name = f"file:{folder.name}"
    wish = _wish.read(
        {**DEFAULTS, "train_datasets": [{"file": "a.json"}], "train_model": name, **asked}, SCHEMAS, RECIPES
    )
    facts = {"a": node(hub={})}
    sent = _sources.model(wish, [folder.parent])
    who = _identity.find(wish, (DATA,), facts, corpus_digest=CORPUS, model=sent)
    return _plan.make(who, (DATA,), facts, environment=LOCK, schema=SCHEMAS["main"])


@pytest.fixture(autouse=True)
def _memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_it_is_named_by_its_content_and_known_as_what_it_was(tmp_path: Path) -> None:
    first = plan(made(tmp_path / "x/one"))
    model = first.nodes["a"]["model"]
    assert sorted(model["files"]) == ["config.json", "model.safetensors"]
    assert (model["path"], model["missing"]) == (f"/home/me/llmops/models/file@{model['identity'][:16]}", True)
    assert lines(first)["model_name_or_path"] == model["path"] and lines(first)["template"] == "qwen3_nothink"
    assert first.nodes["a"]["launch"]["environment"]["HF_HUB_OFFLINE"] == "1"
    told = "\n".join(_describe.lines(first, [DATA], {"a": node(hub={})}))
    assert f"model   file {tmp_path}/x/one of this controller" in told
    assert plan(made(tmp_path / "y/two")).id == first.id, "where it lies does not count"
    assert plan(made(tmp_path / "z/one", vocab=b"more")).id != first.id


def test_rules_know_it(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match="was not made for texts of cutoff_len"):
        plan(made(tmp_path / "one"), train_set="cutoff_len=8192")


def test_a_folder_without_a_model_is_refused_with_where_it_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FinetuneError, match="no model in empty on this controller") as refusal:
        plan(tmp_path / "empty")
    assert refusal.value.where == f"train_model, looked in {tmp_path}/empty"
    for wrong in ("file:", "file: x", "models/a/b"):
        with pytest.raises(FinetuneError, match="neither a hub id"):
            _wish.read({**DEFAULTS, "train_model": wrong}, SCHEMAS, RECIPES)


def test_what_was_sent_is_stored_once_and_again_when_it_was_damaged(tmp_path: Path) -> None:
    sent = _sent_model.find("file:one", [tmp_path], "train_model") if made(tmp_path / "one") else None
    assert sent
    archive = tmp_path / "one.tar"
    _media_send.write(((name, f"{sent.local}/{name}") for name in sent.files), archive, "The model")
    folder = tmp_path / "root/models" / _sent_model.folder_name(sent.digest)
    model = {"build": False, "hub": "", "local": sent.local, "path": str(folder), "identity": sent.digest}

    def stored(*, dry: bool = False, starting: bool = True) -> list[dict[str, str]]:
        changes = _changes.Changes(dry=dry)
        with archive.open("rb") as stream:
            _models.stage({"model": {**model, "stream": stream}}, changes, {}, starting=starting)
        return changes.made

    create = [{"action": "create", "path": str(folder)}]
    assert stored(starting=False) == [] and stored(dry=True) == create and not folder.exists()
    assert stored() == create and stored() == []
    assert _node.models(tmp_path / "root") == [folder.name]
    (folder / "config.json").write_text("{}")
    assert _node.models(tmp_path / "root") == []
    assert stored() == [{"action": "update", "path": str(folder)}] and _sealed.intact(folder)
    model["identity"] = "0" * 64
    (folder / "config.json").unlink()
    with pytest.raises(FinetuneError, match="files of the model are not those that were planned with"):
        stored()
