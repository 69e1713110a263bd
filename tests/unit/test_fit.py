# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether nodes fit together, and what is said of those that do not."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _digests, _fit, _proof, _sealed
from ansible_collections.llmops.finetune.plugins.module_utils._engine import files

Found = dict[str, list[dict[str, t.Any]]]
LIKE: dict[str, t.Any] = {"environment": "e" * 16, "python": "3.11", "dataset a": "d" * 64, "model": "m" * 64}


def proofs(**other: dict[str, t.Any]) -> dict[str, dict[str, t.Any]]:
    room = {"disk_free": 9_000_000_000, "disk_needed": 1_000_000_000}
    return {host: {**LIKE, **room, **other.get(host, {})} for host in ("a", "b", "c")}


def findings(clocks: dict[str, float] | None = None, **why: str) -> Found:
    """Everybody reaches everybody. clocks: by host, seconds ahead; why: `a_b` names what a finds of b."""
    ahead = {"a": 0.0, "b": 0.0, "c": 0.0, **(clocks or {})}
    return {
        one: [
            {"host": two, "why": why.get(f"{one}_{two}", ""), "clock": ahead[two] - ahead[one]}
            for two in ahead
            if two != one
        ]
        for one in ahead
    }


CASES: list[tuple[str, dict[str, t.Any], Found, list[tuple[str, str]]]] = [
    ("all alike", proofs(), findings(), []),
    ("another lock", proofs(b={"environment": "f" * 16}), findings(), [("b", "environment")]),
    ("another byte of data", proofs(c={"dataset a": "0" * 64}), findings(), [("c", "dataset a")]),
    ("rank 0 is the odd one", proofs(a={"model": "0" * 64}), findings(), [("a", "model")]),
    ("nothing staged", proofs(b={"model": ""}), findings(), [("b", "model")]),
    ("a full disk", proofs(c={"disk_free": 5}), findings(), [("c", "disk")]),
    ("one way is closed", proofs(), findings(a_b="10.0.0.2:29500 does not answer within 3 s"), [("a", "reach")]),
    ("a clock", proofs(), findings({"b": 5.0}), [("b", "clock")]),
    ("the clock of rank 0", proofs(), findings({"a": -7.0}), [("a", "clock")]),
    ("clocks that differ a little", proofs(), findings({"b": 1.9}), []),
]


@pytest.mark.parametrize(("staged", "found", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_rows(staged: dict[str, t.Any], found: Found, expected: list[tuple[str, str]]) -> None:
    assert [(row.host, row.field) for row in _fit.rows(staged, found)] == expected


def test_of_two_hosts_whose_clocks_differ_one_is_named() -> None:
    found: Found = {
        "a": [{"host": "b", "why": "", "clock": 9.0}],
        "b": [{"host": "a", "why": "", "clock": -9.0}],
    }
    (row,) = _fit.rows({"a": LIKE, "b": LIKE}, found)
    assert row == _fit.Row("b", "clock", "9.0 s ahead")


def test_the_refusal_is_a_table_with_each_remedy_once() -> None:
    staged = proofs(b={"environment": "f" * 16, "disk_free": 5})
    text = str(_fit.refusal(_fit.rows(staged, findings(a_b="no", b_a="no"))))
    assert "b  environment  ffffffffffffffff, the others eeeeeeeeeeeeeeee" in text
    assert "b  disk         0.0 GB free, checkpoints need 1.0 GB" in text
    assert "a  reach        → b: no" in text and text.count("train_address") == 1


APART: list[tuple[str, dict[str, list[str]], list[str]]] = [
    ("all see all", {"a": [], "b": [], "c": []}, []),
    ("the last one", {"a": ["c"], "b": ["c"], "c": ["a", "b"]}, ["c"]),
    ("the first one", {"a": ["b", "c"], "b": ["a"], "c": ["a"]}, ["a"]),
    ("nobody shares", {"a": ["b", "c"], "b": ["a", "c"], "c": ["a", "b"]}, ["b", "c"]),
    ("only the one that joins looks", {"b": ["a", "c"]}, ["b"]),
]


@pytest.mark.parametrize(("unseen", "expected"), [case[1:] for case in APART], ids=[case[0] for case in APART])
def test_a_folder_that_is_not_the_same_is_told_with_its_host(unseen: dict[str, list[str]], expected: list[str]) -> None:
    found = _fit.rows(proofs(), findings(), unseen)
    assert [row.host for row in found] == expected and {row.field for row in found} <= {"output"}
    if found:
        assert "train_output_root" in str(_fit.refusal(found))
    registered = {host: {"proof": proofs()[host], "findings": {}, "unseen": unseen.get(host, [])} for host in "abc"}
    registered["a"]["findings"] = findings()
    assert _fit.between(registered) == found


def test_shared_storage_is_full_once_and_knows_accounts_by_number() -> None:
    staged = {host: {**LIKE, "account": "997" if host == "b" else "998"} for host in "abc"}
    staged["a"] |= {"disk_free": 5, "disk_needed": 1_000_000_000}
    found = _fit.rows(staged, findings())
    assert [(row.host, row.field) for row in found] == [("b", "account"), ("a", "disk")]
    assert "uid" not in found[0].what and "same number" in str(_fit.refusal(found))


def test_a_fetched_model_is_the_same_on_all_nodes_whenever_it_came(tmp_path: Path) -> None:
    for host in "abc":
        folder = tmp_path / host
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights" if host != "c" else b"Weights")
        _sealed.seal(folder, ["model.safetensors"])
    assert (tmp_path / "a" / "manifest.json").read_bytes() != (tmp_path / "b" / "manifest.json").read_bytes()
    first, second, third = (_proof.fingerprint(tmp_path / host, tmp_path / "seen", full=False) for host in "abc")
    assert first == second != third


def test_a_model_is_read_whole_once(tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The last byte of a large file counts; a file that nobody touched is not read again, unless every byte is asked
    for."""
    monkeypatch.setattr(_digests, "FRESH_SECONDS", -1.0)
    model, memory = tmp_path / "model", tmp_path / "seen"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(bytes(3 << 20))
    first = _proof.fingerprint(model, memory, full=False)
    read.clear()
    assert _proof.fingerprint(model, memory, full=False) == first and read == []
    assert _proof.fingerprint(model, memory, full=True) == first and read == ["config.json", "model.safetensors"]
    read.clear()
    with open(model / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    assert _proof.fingerprint(model, memory, full=False) != first and read == ["model.safetensors"]


def test_what_was_sealed_here_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    _sealed.seal(tmp_path, ["model.safetensors"])
    whole = _proof.fingerprint(tmp_path, tmp_path / ".seen", full=False)
    monkeypatch.setattr(files, "sha256", lambda path: pytest.fail(f"{path} is read"))
    assert _proof.fingerprint(tmp_path, tmp_path / ".other", full=False) == whole
