# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a model that lies on a node says of itself."""

from __future__ import annotations

import json
import os
import pwd
import struct
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _model, _node
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

ME = pwd.getpwuid(os.getuid()).pw_name
LAYER = ("input_layernorm.weight", "mlp.up_proj.weight", "self_attn.q_proj.weight", "self_attn.q_proj.bias")
WEIGHTS = (
    "model.embed_tokens.weight",
    "model.norm.weight",
    *(f"model.layers.{i}.{name}" for i in (0, 1) for name in LAYER),
)


def made(folder: Path, config: t.Any, files: t.Mapping[str, bytes]) -> _model.Model:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return _model.Model(**json.loads(json.dumps(_model.facts(folder))))


def safetensors(names: t.Iterable[str]) -> bytes:
    tensors = {name: {"dtype": "U8", "shape": [7], "data_offsets": [7 * i, 7 * i + 7]} for i, name in enumerate(names)}
    header = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
    return struct.pack("<Q", len(header)) + header + b"numbers" * len(tensors)


def index(*files: str) -> bytes:
    names = {name: files[i % len(files)] for i, name in enumerate(WEIGHTS)}
    return json.dumps({"weight_map": names}).encode()


@pytest.mark.parametrize(
    ("config", "known"),
    [
        ({"model_type": "qwen3", "num_hidden_layers": 28}, {"type": "qwen3", "layers": 28}),
        ({"model_type": "gpt2", "n_layer": 12, "n_positions": 1024}, {"type": "gpt2", "layers": 12, "length": 0}),
        ({"num_hidden_layers": 3, "text_config": {"num_hidden_layers": 36}}, {"layers": 36}),
        ({"max_position_embeddings": 40960, "rope_scaling": None}, {"length": 40960, "first_length": 40960}),
        (
            {"max_position_embeddings": 131072, "rope_scaling": {"original_max_position_embeddings": 8192}},
            {"length": 131072, "first_length": 8192},
        ),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, {"quantized": "gptq"}),
        ({"quantization_config": {"bits": 4}}, {"quantized": "unnamed"}),
        ({"architectures": ["LlamaForCausalLM"]}, {"architectures": ["LlamaForCausalLM"], "quantized": ""}),
        ({"model_type": None, "architectures": "x", "num_hidden_layers": "many"}, {"type": "", "layers": 0}),
    ],
)
def test_what_config_json_says(tmp_path: Path, config: dict[str, t.Any], known: dict[str, t.Any]) -> None:
    found = made(tmp_path, config, {})._asdict()
    assert {key: found[key] for key in known} == known


@pytest.mark.parametrize(
    ("files", "absent"),
    [
        ({}, ["model.safetensors"]),
        ({"model.safetensors": b""}, ["model.safetensors"]),
        ({"model.safetensors": safetensors(WEIGHTS)}, []),
        ({"pytorch_model.bin": b"x"}, []),
        ({"model.safetensors.index.json": index("a", "b"), "a": b"x"}, ["b"]),
        ({"pytorch_model.bin.index.json": index("a", "b"), "a": b"x", "b": b"x"}, []),
        ({"model.safetensors.index.json": b"torn"}, ["model.safetensors"]),
        ({"model.safetensors.index.json": b"[" * 100_000}, ["model.safetensors"]),
    ],
)
def test_files_of_weights_that_are_not_there_are_named(
    tmp_path: Path, files: dict[str, bytes], absent: list[str]
) -> None:
    assert made(tmp_path, {"model_type": "x"}, files).absent == absent


WHOLE = safetensors(WEIGHTS)


@pytest.mark.parametrize(
    ("content", "damaged"),
    [
        (WHOLE, False),
        (safetensors([]), False),
        (WHOLE[:-1], True),
        (WHOLE + b"x", True),
        (WHOLE[:20], True),
        (b"stub", True),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", True),
        (struct.pack("<Q", 2) + b"[]", True),
        (struct.pack("<Q", 10) + b'{"a": {}}!', True),
        (struct.pack("<Q", 9) + b'{"a": {}}', True),
        (struct.pack("<Q", 2**60) + b"{}", True),
    ],
)
def test_weights_are_what_their_header_says(tmp_path: Path, content: bytes, damaged: bool) -> None:
    name = "model.safetensors"
    assert made(tmp_path, {"model_type": "x"}, {name: content}).damaged == [name] * damaged
    part = {"a.safetensors": content, "b.safetensors": WHOLE}
    (tmp_path / name).unlink()
    split = made(tmp_path, {"model_type": "x"}, {f"{name}.index.json": index(*part), **part})
    assert split.damaged == ["a.safetensors"] * damaged and split.absent == []


@pytest.mark.parametrize(
    "files",
    [{"model.safetensors": safetensors(WEIGHTS)}, {"model.safetensors.index.json": index("a", "b")}],
)
def test_modules_are_known_by_the_names_of_weights(tmp_path: Path, files: dict[str, bytes]) -> None:
    model = made(tmp_path, {"model_type": "x"}, files)
    assert model.parts == ["input_layernorm", "mlp", "self_attn"]
    assert model.others == ["embed_tokens", "norm"]
    assert model.modules == ["embed_tokens", "input_layernorm", "norm", "q_proj", "up_proj"]


@pytest.mark.parametrize("torn", [b"", b"\x01", struct.pack("<Q", 2**40) + b"{}", struct.pack("<Q", 9) + b"{"])
def test_of_a_torn_file_no_module_is_known(tmp_path: Path, torn: bytes) -> None:
    assert made(tmp_path, {"model_type": "x"}, {"model.safetensors": torn}).modules == []


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\xff"])
def test_a_config_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(FinetuneError) as refusal:
        _model.facts(tmp_path)
    assert refusal.value.where == "train_model" and str(tmp_path) in refusal.value.what


def test_a_node_tells_of_the_model_at_a_full_path_alone(tmp_path: Path) -> None:
    made(tmp_path, {"model_type": "qwen3"}, {"model.safetensors": safetensors(WEIGHTS)})
    asked = {path: _node.facts(ME, "/x", "", [], model=path) for path in (str(tmp_path), "org/x")}
    assert asked[str(tmp_path)]["model"]["type"] == "qwen3"
    assert (asked["org/x"]["model"], asked["org/x"]["model_missing"]) == ({}, False)
    missing = _node.facts(ME, "/x", "", [], model=str(tmp_path / "none"))
    assert (missing["model"], missing["model_missing"]) == ({}, True)


def test_weights_that_the_account_may_not_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}', encoding="utf-8")

    def refuse(folder: Path) -> t.Any:
        raise PermissionError(13, "Permission denied", str(folder / "model.safetensors"))

    monkeypatch.setattr(_model, "_weights", refuse)
    with pytest.raises(FinetuneError, match=r"model\.safetensors cannot be read") as refusal:
        _model.facts(tmp_path)
    assert refusal.value.where == "train_model"


def test_names_nested_too_deep_are_no_names(tmp_path: Path) -> None:
    header = b"[" * 100_000
    assert (
        made(tmp_path, {"model_type": "x"}, {"model.safetensors": struct.pack("<Q", len(header)) + header}).parts == []
    )


def test_of_its_config_the_sizes_are_kept(tmp_path: Path) -> None:
    kept = {"hidden_size": 8, "layer_types": ["full"] * 80, "text_config": {"vocab_size": 9}}
    dropped = {"id2label": {"0": "a"}, "names": ["x"] * 999, "text_config": {"vocab_size": 9, "label2id": {"a": 0}}}
    assert made(tmp_path, {**kept, **dropped}, {}).config == kept
    assert _model.config(tmp_path) == kept and _model.config(tmp_path / "none") == {}
