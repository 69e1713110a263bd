# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tokens that are made when a run is staged: which runs share them, and how they take their place on a node."""

from __future__ import annotations

import typing as t
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import (
    _changes,
    _describe,
    _model,
    _plan,
    _sealed,
    _tokenized,
    _tokens,
)
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

from .plans import DATA, HELD_OUT, HUB, LOCK, SCHEMAS, Variables, lines, make, node, origins, recorded


def tokens(plan: _plan.Plan) -> dict[str, t.Any]:
    return t.cast("dict[str, t.Any]", plan.nodes["a"]["tokens"])


def planned(*sources: t.Any, facts: Variables | None = None, lock: t.Any = None, **wish: t.Any) -> _plan.Plan:
    asked = {"train_tokenized": True, "train_model": "org/m", **wish}
    return make({"a": facts or node()}, sources or (DATA, HELD_OUT), lock, **asked)


def test_ranks_read_what_one_process_makes_of_the_same_inputs() -> None:
    plan = planned(train_set="cutoff_len=128 val_size=0 learning_rate=1e-5 preprocessing_num_workers=4 flash_attn=sdpa")
    made = tokens(plan)
    assert lines(plan)["tokenized_path"] == made["folder"] == f"/home/me/llmops/tokenized/{plan.tokens['digest']}"
    assert origins(plan)["tokenized_path"] == "train_tokenized"
    given = made["arguments"]
    assert {key: lines(plan)[key] for key in given} == given
    assert {"model_name_or_path", "dataset", "eval_dataset", "stage", "cutoff_len", "preprocessing_num_workers"} <= set(
        given
    )
    assert not {"learning_rate", "flash_attn", "finetuning_type", "deepspeed", "output_dir", "bf16"} & set(given)
    assert made["variables"]["CUDA_VISIBLE_DEVICES"] == "" and made["variables"]["HF_HUB_OFFLINE"] == "1"
    assert any("tokenized/" in line for line in _describe.lines(plan, (DATA,), {"a": node()}))


def test_it_is_the_same_run_without() -> None:
    plan, without = planned(), planned(train_tokenized=False)
    assert plan.id == without.id and plan.resolved == without.resolved
    assert tokens(without) == {} and "tokenized_path" not in lines(without)


SAME: dict[str, Variables] = {
    "learning rate": {"train_set": "learning_rate=3e-5"},
    "rank of the adapter": {"train_set": "lora_rank=64"},
    "epochs": {"train_set": "num_train_epochs=7"},
    "attention": {"train_set": "flash_attn=sdpa"},
    "quantization": {"train_set": "quantization_bit=4"},
    "all weights": {"train_recipe": "full_sft"},
    "batch": {"train_global_batch_size": 64},
    "name": {"train_name": "another"},
}
OTHERS: dict[str, Variables] = {
    "cutoff_len": {"train_set": "cutoff_len=77"},
    "template": {"train_set": "template=chatml"},
    "packing": {"train_set": "packing=true"},
    "processes, where batches are packed": {"train_set": "preprocessing_num_workers=2"},
    "seed": {"train_set": "seed=1"},
    "max_samples": {"train_set": "max_samples=3"},
    "tokens of its own": {"train_set": "add_tokens=<a>"},
    "size of pictures": {"train_set": "image_max_pixels=10000"},
    "masked prompts": {"train_set": "train_on_prompt=true"},
    "stage": {"train_recipe": "pretrain"},
    "model": {"train_model": "org/other"},
    "commit": {"facts": node(hub={"revision": "f" * 40, "bytes": 1})},
    "environment": {"lock": {**LOCK, "digest": "f" * 16}},
}


@pytest.mark.parametrize("asked", SAME.values(), ids=SAME)
def test_runs_share_tokens(asked: Variables) -> None:
    assert tokens(planned(**asked))["folder"] == tokens(planned())["folder"]


@pytest.mark.parametrize("asked", OTHERS.values(), ids=OTHERS)
def test_other_tokens_have_a_folder_of_their_own(asked: Variables) -> None:
    assert tokens(planned(**asked))["folder"] != tokens(planned())["folder"]


def test_so_have_those_of_other_data() -> None:
    sources = [
        (DATA,),
        (DATA, HELD_OUT),
        (replace(DATA, digest="0" * 64), HELD_OUT),
        (replace(DATA, suffix=".csv"), HELD_OUT),
        (replace(DATA, fields=("instruction", "output", "system")), HELD_OUT),
        (replace(DATA, dataset=replace(DATA.dataset, options={"num_samples": 3})), HELD_OUT),
        (replace(DATA, media_files={"x.png": "1" * 64}), HELD_OUT),
        (HELD_OUT, DATA),
    ]
    seeing: Variables = {"train_set": "template=qwen2_vl"}
    assert len({tokens(planned(*some, **seeing))["folder"] for some in sources}) == len(sources)


@pytest.mark.parametrize(
    "source",
    [HUB, replace(DATA, media=True, media_dir=True)],
    ids=["a hub's", "pictures of the nodes"],
)
def test_what_may_change_unseen_is_tokenized_for_one_run_alone(source: t.Any) -> None:
    seeing = "template=qwen2_vl "
    one, other = (planned(source, train_set=seeing + more) for more in ("", "learning_rate=3e-5"))
    assert tokens(one)["folder"] != tokens(other)["folder"]
    assert tokens(one)["variables"]["HF_HUB_OFFLINE"] == ("0" if source is HUB else "1")
    assert one.nodes["a"]["launch"]["environment"]["HF_HUB_OFFLINE"] == "1"


def test_a_model_that_was_changed_in_place_has_other_tokens(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    before = _model.facts(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((3).to_bytes(8, "little") + b"{ }")
    assert _model.facts(tmp_path)["words"] == before["words"]
    (tmp_path / "tokenizer.json").write_text('{"a": 1}')
    after = _model.facts(tmp_path)
    one, other = (planned(facts=node(model=model), train_model="/srv/m") for model in (before, after))
    assert one.id == other.id and tokens(one)["folder"] != tokens(other)["folder"]


def test_every_key_that_nobody_named_counts_where_the_loader_sees_its_group() -> None:
    for schema in SCHEMAS.values():
        for key, known in schema.keys.items():
            if known.group in ("training", "finetuning", "generating"):
                assert _tokens.decides(key, schema) == (key in ("stage", "seed", "predict_with_generate")), key
    main = SCHEMAS["main"]
    assert all(key in main.keys and not _tokens.decides(key, main) for key in _tokens._DECIDES_NOTHING)
    assert {key for key, known in main.keys.items() if known.group == "data" and not _tokens.decides(key, main)} == {
        "data_shared_file_system",
        "eval_num_beams",
        "ignore_pad_token_for_loss",
        "overwrite_cache",
        "tokenized_path",
    }


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"train_set": "tokenized_path=/t"}, "names another"),
        ({"train_set": "streaming=true max_steps=3 dataloader_num_workers=1"}, "A stream is tokenized while"),
        ({"train_recipe": "megatron", "facts": node(2)}, "With Megatron"),
        ({"train_tokenized": "perhaps"}, "train_tokenized is 'perhaps'"),
    ],
)
def test_what_contradicts_it_is_refused(asked: Variables, said: str) -> None:
    with pytest.raises(FinetuneError, match=said):
        planned(**asked)


def test_a_recorded_run_keeps_the_environment_that_its_tokens_are_made_with() -> None:
    plan = planned()
    again = planned(facts=recorded(plan), lock={**LOCK, "digest": "f" * 16})
    assert tokens(again)["folder"] == tokens(plan)["folder"]


# --- on a node ---

LOADER = """#!/bin/sh
# What stands here for the Python of an environment: `-m engine.tokens arguments.json`.
test "$2 $3" = "engine.tokens arguments.json" && test -f engine/tokens.py && test -f dataset_info.json || exit 9
echo made >> {count}
place=$(sed -n 's/.*"tokenized_path": "\\(.*\\)".*/\\1/p' arguments.json)
mkdir -p "$place/train"
echo "$CUDA_VISIBLE_DEVICES$HF_TOKEN" > "$place/train/data.arrow"
{end}
"""


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, t.Any]:
    return {
        "tokens": {
            "folder": str(tmp_path / "tokenized/abc"),
            "arguments": {"cutoff_len": 3},
            "variables": {"CUDA_VISIBLE_DEVICES": ""},
        },
        "files": {"dataset_info.json": "{}"},
        "engine": {"tokens.py": ""},
        "launch": {"python": loader(tmp_path), "environment": {"CUDA_VISIBLE_DEVICES": "7"}},
    }


def loader(folder: Path, end: str = "") -> str:
    path = folder / "python"
    path.write_text(LOADER.format(count=folder / "count", end=end))
    path.chmod(0o755)
    return str(path)


def staged(spec: dict[str, t.Any], *, dry: bool = False) -> list[str]:
    changes = _changes.Changes(dry=dry)
    _tokenized.stage(spec, changes, {"HF_TOKEN": "t"})
    return [change["action"] for change in changes.made]


def count(folder: Path) -> int:
    return (folder / "count").read_text().count("made")


def test_they_are_made_once_and_again_where_they_are_damaged(tmp_path: Path, spec: dict[str, t.Any]) -> None:
    assert staged(spec, dry=True) == ["build"] and not (tmp_path / "tokenized").exists()
    assert staged(spec) == ["build"] and staged(spec) == [] and count(tmp_path) == 1
    folder = tmp_path / "tokenized/abc"
    assert [path.name for path in (tmp_path / "tokenized").iterdir()] == ["abc"] and _sealed.intact(folder)
    assert (folder / "train/data.arrow").read_text() == "t\n"
    (folder / "train/data.arrow").write_text("x\n")
    assert staged(spec, dry=True) == ["update"] and staged(spec) == ["update"] and count(tmp_path) == 2
    assert (folder / "train/data.arrow").read_text() == "t\n"
    (folder / "manifest.json").unlink()
    assert staged(spec) == ["update"] and _sealed.intact(folder)


def test_half_made_ones_are_nothing(tmp_path: Path, spec: dict[str, t.Any]) -> None:
    left = tmp_path / "tokenized/.abc/train/other.arrow"
    left.parent.mkdir(parents=True)
    left.write_text("of an apply that was killed")
    loader(tmp_path, "echo 'RuntimeError: Cannot find valid samples, check' >&2; exit 1")
    with pytest.raises(FinetuneError, match="could not be tokenized") as refused:
        staged(spec)
    assert "Cannot find valid samples" in str(refused.value)
    assert list((tmp_path / "tokenized").iterdir()) == []
    loader(tmp_path)
    assert staged(spec) == ["build"]
    assert sorted(_sealed.stored(tmp_path / "tokenized/abc")) == ["train/data.arrow"]
