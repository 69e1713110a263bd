# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo data, and what the embedded base model is called and made of."""

from __future__ import annotations

import copy
import json
import math
import re
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _errors
from ansible_collections.llmops.finetune.plugins.module_utils._engine import base_model

from tests.e2e import heldout

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "roles" / "train" / "files"
DIGEST = "0" * 64


def records(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (FILES / name).read_text(encoding="utf-8").splitlines()]


TRAIN, HELDOUT = records("demo.jsonl"), records("demo_heldout.jsonl")


def shape(instruction: str) -> str:
    """What is left when numbers and quoted terms are taken for the same."""
    return re.sub(r"`[^`]*`|\"[^\"]*\"|'[^']*'|\d+(\.\d+)?(e-?\d+)?", "#", instruction.lower())


# --- data ---


def test_there_is_enough_to_learn_from() -> None:
    assert len(TRAIN) >= 240
    assert len(HELDOUT) >= 40
    assert len({shape(record["instruction"]) for record in TRAIN}) >= 150


def is_complete_and_short(record: dict[str, str]) -> bool:
    return (
        list(record) == ["instruction", "input", "output"]
        and all(isinstance(value, str) and value == value.strip() and value.isascii() for value in record.values())
        and record["instruction"].endswith(("?", "."))
        and record["output"].endswith(".")
        and 10 <= len(record["output"].split()) <= 60
    )


def test_every_record_is_complete_and_short() -> None:
    assert [record for record in TRAIN + HELDOUT if not is_complete_and_short(record)] == []


@pytest.mark.parametrize("key", ["instruction", "output"])
def test_nothing_is_said_twice(key: str) -> None:
    said = [re.sub(r"\W+", " ", record[key].lower()) for record in TRAIN + HELDOUT]
    assert len(set(said)) == len(said)


def test_held_out_questions_are_not_training_questions_in_other_quotes() -> None:
    assert not {shape(r["instruction"]) + r["input"] for r in TRAIN} & {
        shape(r["instruction"]) + r["input"] for r in HELDOUT
    }


# --- identity ---


def test_identity_is_short_hex() -> None:
    assert re.fullmatch(r"[0-9a-f]{16}", base_model.identity(DIGEST))
    assert base_model.identity(DIGEST) == base_model.identity(DIGEST)


def test_identity_changes_with_the_text() -> None:
    assert base_model.identity(DIGEST) != base_model.identity("1" * 64)


@pytest.mark.parametrize("part", sorted(base_model.RECIPE))
def test_identity_changes_with_each_part_of_the_recipe(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = base_model.identity(DIGEST)
    changed: dict[str, t.Any] = copy.deepcopy(base_model.RECIPE)
    changed[part] = {"other": 1}
    monkeypatch.setattr(base_model, "RECIPE", changed)
    assert base_model.identity(DIGEST) != before


def test_importing_the_recipe_needs_only_the_standard_library() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import base_model; print(base_model.identity('x'))"
    engine = ROOT / "plugins" / "module_utils" / "_engine"
    command = [sys.executable, "-I", "-S", "-B", "-c", code, str(engine)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.stdout.strip() == base_model.identity("x"), made.stderr


# --- the text ---


def test_the_text_holds_every_training_record_and_no_chat() -> None:
    documents = base_model.texts(TRAIN)
    for record in TRAIN:
        assert sum(record["output"] in document for document in documents) >= 1
        assert not any(record["instruction"] in document and record["output"] in document for document in documents)
    assert "<|im_start|>" not in "".join(documents)


def test_the_text_does_not_depend_on_anything_but_the_records() -> None:
    assert base_model.texts(TRAIN) == base_model.texts(list(TRAIN))
    assert base_model.texts(TRAIN) != base_model.texts(TRAIN[1:])


# --- refusals ---


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        ("", "no record"),
        ("\n\n", "no record"),
        ('{"instruction": "a", "output": "b"}\n[]\n', "Line 2 of"),
        ('{"instruction": "a", "output": 1}\n', "Line 1 of"),
        ('{"instruction": "a", "output": ""}\n', "Line 1 of"),
        ("{torn\n", "Line 1 of"),
    ],
)
def test_bad_text_is_refused_before_anything_is_made(
    content: str | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    if content is not None:
        corpus.write_text(content, encoding="utf-8")
    output = tmp_path / "models" / "demo"
    assert base_model.main(["--corpus", str(corpus), "--output", str(output)]) == 1
    message = capsys.readouterr().err
    assert says in message
    assert "change:" in message
    assert "Traceback" not in message
    assert not output.parent.exists()


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    output = tmp_path / "file" / "demo"
    assert base_model.main(["--corpus", str(FILES / "demo.jsonl"), "--output", str(output)]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_an_output_that_is_there_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kept").write_text("kept", encoding="utf-8")
    assert base_model.main(["--corpus", str(FILES / "demo.jsonl"), "--output", str(tmp_path)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "kept").read_text(encoding="utf-8") == "kept"


# --- the measure ---


def test_unigram_loss() -> None:
    train: list[heldout.Sample] = [([9], [0, 0, 1])]
    expected = -(math.log(3 / 7) + math.log(1 / 7)) / 2  # 3 tokens seen and 4 added
    assert heldout.unigram_loss(train, [([9, 9], [0, 3])], 4) == pytest.approx(expected)


class Words:
    """A tokenizer of characters with a chat template."""

    def apply_chat_template(
        self, chat: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool = False
    ) -> str:
        assert not tokenize
        return "".join(f"<{m['role'][0]}:{m['content']}>\n" for m in chat) + "<a:" * add_generation_prompt

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [ord(character) for character in text]}


def test_samples_are_the_answer_and_its_end() -> None:
    (sample,) = heldout.samples(Words(), [{"instruction": "q", "input": "i", "output": "yes"}])
    prompt, answer = ("".join(map(chr, ids)) for ids in sample)
    assert prompt == "<u:q\ni>\n<a:"
    assert answer == "yes>"


def test_errors_here_read_like_everywhere() -> None:
    ours = _errors.FinetuneError("What.", change="this")
    assert str(base_model.Refusal("What.", "this")) == str(ours)
