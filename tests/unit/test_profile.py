# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock of a run's environment: the collection's, or one of the author's own that is held against the profile."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _parallel, _profile, _recipe, _wish
from ansible_collections.llmops.finetune.plugins.module_utils._env import environment_digest
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.module_utils._wish.wish import Wish

from .plans import DEFAULTS, RECIPES, SCHEMAS

MEGATRON = ("llamafactory==0.9.5", "mcore-adapter==0.9.0", "megatron-core==0.13.1")


def lock(*pins: str) -> str:
    return "".join(f"{pin} --hash=sha256:{'0' * 64}\n" for pin in pins)


def wish(**asked: t.Any) -> Wish:
    return _wish.read({**DEFAULTS, **asked}, SCHEMAS, RECIPES)


@pytest.mark.parametrize("environment", sorted(_recipe.LLAMAFACTORY.keys() - _recipe.UNLOCKED.keys()))
def test_the_collection_has_a_lock_for_a_profile(environment: str) -> None:
    found = _profile.find(environment, "", [])
    text = _profile.lock_path(environment).read_text(encoding="utf-8")
    assert found.identity == {"lock": f"node-{environment}", "digest": environment_digest(text)}
    assert found.packages["llamafactory"] == _recipe.LLAMAFACTORY[environment]
    assert {"transformers", "peft", "trl", "accelerate", "torch"} <= found.packages.keys()


def test_the_lock_of_ktransformers_never_has_what_its_builds_stand_for() -> None:
    """They install into the same folders, and KTransformers refuses to run beside them."""
    text = _profile.lock_path("ktransformers").read_text(encoding="utf-8")
    names = {line.partition("==")[0] for line in text.splitlines()}
    replaced = {"llamafactory", "transformers", "accelerate", "peft", "trl"}
    assert not replaced & names and {f"{name}-kt" for name in replaced} <= names


def test_every_engine_with_an_environment_of_its_own_has_a_profile() -> None:
    own = {engine.environment for engine in _parallel.ENGINES.values()} - {""}
    assert own == {"megatron", "ktransformers"} and own <= _recipe.LLAMAFACTORY.keys()


def test_a_profile_without_a_lock_says_what_one_must_have() -> None:
    assert _profile.find("megatron", "", []) == _profile.Profile("", {}, {"lock": "node-megatron", "digest": ""})
    with pytest.raises(FinetuneError) as refusal:
        _profile.refuse_missing(wish(train_recipe="megatron"))
    for word in ("llamafactory 0.9.5", "mcore-adapter", "megatron-core", "uv_env_find_links", "train_engine"):
        assert word in refusal.value.change
    assert refusal.value.where == "train_lock"


@pytest.mark.parametrize(
    ("asked", "refused"),
    [
        ({"train_recipe": "full_sft", "train_engine": "megatron"}, True),
        ({"train_recipe": "megatron", "train_state": "staged"}, True),
        ({"train_recipe": "megatron", "train_state": "stopped"}, False),
        ({"train_recipe": "megatron", "train_state": "absent"}, False),
        ({"train_recipe": "megatron", "train_lock": "mine.txt"}, False),
        ({"train_recipe": "megatron", "train_assume_gpus": "8xH100"}, False),
        ({"train_recipe": "ktransformers", "train_model": "org/moe"}, False),
        ({}, False),
    ],
)
def test_a_run_is_refused_whose_environment_has_no_lock(asked: dict[str, t.Any], refused: bool) -> None:
    try:
        _profile.refuse_missing(wish(**asked))
    except FinetuneError:
        assert refused
    else:
        assert not refused


def test_a_lock_of_ones_own_is_looked_for_in_order(tmp_path: Path) -> None:
    (tmp_path / "near").mkdir()
    for folder, pins in (("near", MEGATRON), (".", MEGATRON[:1])):
        (tmp_path / folder / "mine.txt").write_text(lock(*pins), encoding="utf-8")
    found = _profile.find("megatron", "mine.txt", [tmp_path / "near", tmp_path])
    assert (found.path, found.identity["lock"]) == (str(tmp_path / "near/mine.txt"), "mine")
    assert found.identity["digest"] == environment_digest(lock(*MEGATRON))
    assert _profile.find("main", str(tmp_path / "mine.txt"), [Path("/")]).packages == {"llamafactory": "0.9.5"}


@pytest.mark.parametrize(
    ("environment", "pins", "told"),
    [
        ("megatron", MEGATRON[:1], "no mcore-adapter and no megatron-core, which"),
        ("megatron", (*MEGATRON[::2], "mcore-adapter==0.0.1"), "0.0.1 is empty"),
        ("megatron", ("llamafactory==0.9.4", *MEGATRON[1:]), "no llamafactory 0.9.5, which"),
        ("main", ("torch==2.8.0",), "no llamafactory 0.9.5"),
        ("ktransformers", ("llamafactory==0.9.5",), "no llamafactory 0.9.6.dev0"),
    ],
)
def test_a_lock_that_is_not_for_the_run_is_refused(
    tmp_path: Path, environment: str, pins: t.Sequence[str], told: str
) -> None:
    (tmp_path / "mine.txt").write_text(lock(*pins), encoding="utf-8")
    with pytest.raises(FinetuneError) as refusal:
        _profile.find(environment, "mine.txt", [tmp_path])
    assert told in str(refusal.value) and refusal.value.where == f"train_lock, {tmp_path}/mine.txt"


def test_a_lock_that_is_not_there_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match=f"train_lock, looked in {tmp_path}"):
        _profile.find("main", "mine.txt", [tmp_path])
    (tmp_path / "mine.txt").write_text("torch\n", encoding="utf-8")
    with pytest.raises(FinetuneError, match="hashes"):
        _profile.find("main", "mine.txt", [tmp_path])
    (tmp_path / "mine.txt").write_bytes(b"\xff")
    with pytest.raises(FinetuneError, match="cannot be read"):
        _profile.find("main", "mine.txt", [tmp_path])


@pytest.mark.parametrize(
    ("python", "verify", "looked_for"),
    [
        (None, None, "d1"),
        ("", "quick", "d1"),
        ("/usr/bin/python3.12", None, ""),
        (None, "full", ""),
        ("", "full", ""),
    ],
)
def test_nodes_look_for_an_environment_unless_uv_env_looks_deeper(
    python: str | None, verify: str | None, looked_for: str
) -> None:
    profile = _profile.Profile("/lock", {}, {"lock": "node-main", "digest": "d1"})
    assert _profile.looked_for(profile, {"uv_env_python": python, "uv_env_verify": verify}) == looked_for
