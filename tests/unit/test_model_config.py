# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model's config.json: given, in a file or folder, or had from a hub by the model's id."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _model_config
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

from ..hub import Hub

CONFIG = {"model_type": "llama", "hidden_size": 64}
FILES = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": b"weights"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> t.Iterator[Hub]:
    made = Hub()
    monkeypatch.setenv("HF_ENDPOINT", made.address)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", made.address)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield made
    made.close()


def test_it_is_a_dict_a_file_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_bytes(FILES["config.json"])
    known = {"inventory_dir": str(tmp_path)}
    for given in (CONFIG, "model/config.json", "model", str(tmp_path / "model")):
        assert _model_config.find(given, known) == CONFIG


def test_what_is_no_file_and_looks_like_an_id_is_asked_of_the_hub(hub: Hub) -> None:
    hub.push("owner/model-1.5", FILES)
    hub.push("owner/model-1.5", {**FILES, "config.json": b'{"model_type": "new"}'}, branch="next")
    assert _model_config.find("owner/model-1.5", {}) == CONFIG
    assert _model_config.find("owner/model-1.5", {}, "next") == {"model_type": "new"}
    assert _model_config.find("modelscope:owner/model-1.5", {}) == CONFIG
    assert not [path for _method, path, _range in hub.asked if "safetensors" in path], "weights are not had"


def test_a_file_comes_before_a_hub(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "model").write_text('{"model_type": "here"}', encoding="utf-8")
    assert _model_config.find("owner/model", {"inventory_dir": str(tmp_path)}) == {"model_type": "here"}
    assert not hub.asked


@pytest.mark.parametrize(
    ("given", "revision", "word", "change"),
    [
        ("owner/none", "main", "no file owner/none on this controller. The hub has no model", "HF_TOKEN where Ansible"),
        ("owner/model", "gone", "has no revision gone", "correct revision"),
        ("owner/closed", "main", "is gated", "accept its terms"),
        ("owner/bare", "main", "has no config.json that can be read", "adapters and GGUF"),
        ("owner/list", "main", "has no config.json that can be read", "adapters and GGUF"),
        ("", "main", "No model is named", "the model's id on a hub"),
        ("/models/none", "main", "There is no file /models/none", "the model's id on a hub"),
        ("a/b/c", "main", "There is no file a/b/c", "the model's id on a hub"),
        (5, "main", "There is no file 5", "the model's id on a hub"),
    ],
)
def test_what_cannot_be_had_is_told(hub: Hub, given: t.Any, revision: str, word: str, change: str) -> None:
    hub.push("owner/model", FILES)
    hub.push("owner/closed", FILES)
    hub.gated["owner/closed"] = "a token"
    hub.push("owner/bare", {"README.md": b"nothing"})
    hub.push("owner/list", {**FILES, "config.json": b"[1]"})
    with pytest.raises(FinetuneError) as told:
        _model_config.find(given, {}, revision)
    assert word in told.value.what and change in told.value.change and told.value.where.startswith("config")


def test_a_token_of_the_environment_opens_what_is_gated(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.push("owner/closed", FILES)
    hub.gated["owner/closed"] = "a token"
    monkeypatch.setenv("HF_TOKEN", "a token")
    assert _model_config.find("owner/closed", {}) == CONFIG


def test_a_hub_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FinetuneError, match="could not be asked") as told:
        _model_config.find("owner/model", {})
    assert "HF_ENDPOINT" in told.value.change


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_a_file_that_is_none_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(FinetuneError, match=r"cannot be read|is no JSON object"):
        _model_config.find(str(tmp_path), {})
