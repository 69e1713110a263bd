# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Models of a hub: what a node is told (by a stand-in on loopback), and one commit for all nodes."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _describe, _hub
from ansible_collections.llmops.finetune.plugins.module_utils._engine import hub_files, hub_modelscope
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

from ..hub import Hub
from .plans import COMMIT, DATA, lines, make, node, recorded

MODEL = "Qwen/Qwen3-0.6B"
OTHER = "f" * 40


@pytest.fixture
def hub() -> t.Iterator[Hub]:
    served = Hub()
    yield served
    served.close()


def told(
    hub: Hub, folder: Path, revision: str = "main", whole: t.Collection[str] = (), **more: str
) -> dict[str, t.Any]:
    return _hub.facts("org/m", revision, folder, whole, _hub.Access(hub.address))


# --- what a node is told ---


def test_a_branch_is_a_commit_and_only_what_a_run_reads_counts(hub: Hub, tmp_path: Path) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"1234", "pytorch_model.bin": b"x" * 99, "a.gguf": b"x" * 99}
    commit = hub.push("org/m", files)
    assert told(hub, tmp_path) == {"revision": commit, "bytes": 6, "begun": 0, "config": {}}
    other = hub.push("org/m", {**files, "config.json": b"{  }"}, "v2/x")
    assert told(hub, tmp_path, "v2/x")["revision"] == other
    assert told(hub, tmp_path, commit)["revision"] == commit
    begun = tmp_path / f".org--m@{commit}" / "model.safetensors"
    begun.parent.mkdir()
    begun.write_bytes(b"12")
    assert told(hub, tmp_path)["begun"] == 2


def test_a_commit_that_is_here_asks_nobody(hub: Hub, tmp_path: Path) -> None:
    stored(tmp_path, COMMIT)
    known = {"revision": COMMIT, "bytes": 0, "config": CONFIG}
    assert told(hub, tmp_path, COMMIT, [f"org--m@{COMMIT}"]) == known
    assert hub.asked == []


CONFIG = {"model_type": "llama", "hidden_size": 8, "quantization_config": {"bits": 4}}


def stored(folder: Path, commit: str) -> None:
    (folder / f"org--m@{commit}").mkdir()
    (folder / f"org--m@{commit}" / "config.json").write_text(json.dumps({**CONFIG, "id2label": {"0": "x"}}))


def test_the_sizes_of_a_model_come_from_its_config_by_one_more_request(hub: Hub, tmp_path: Path) -> None:
    commit = hub.push("org/m", {"config.json": json.dumps({**CONFIG, "id2label": {}}).encode(), "a.safetensors": b"1"})
    assert told(hub, tmp_path)["config"] == CONFIG
    assert [asked[1] for asked in hub.asked] == [
        "/api/models/org/m/revision/main",
        f"/org/m/resolve/{commit}/config.json",
    ]
    modelscope = _hub.facts("modelscope:org/m", "main", tmp_path, (), _hub.Access(hub.address))
    assert modelscope["config"] == CONFIG
    hub.asked.clear()
    stored(tmp_path, commit)
    assert told(hub, tmp_path, whole=[f"org--m@{commit}"])["config"] == CONFIG
    assert len(hub.asked) == 1, "what is here is read here"
    hub.close()
    _hub.remember(tmp_path, "org/m", "main", commit)
    without = told(hub, tmp_path, whole=[f"org--m@{commit}"])
    assert (without["kind"], without["revision"], without["config"]) == ("unreachable", commit, CONFIG)


@pytest.mark.parametrize(
    "content",
    [None, b"", b"[1]", b"{", b"[" * 100_000, b'{"a":' * 900 + b"1" + b"}" * 900, b'{"a": "' + b"x" * 2**21 + b'"}'],
)
def test_a_model_without_a_config_that_can_be_read_has_no_sizes(
    hub: Hub, tmp_path: Path, content: bytes | None
) -> None:
    hub.push("org/m", {"model.safetensors": b"1234", **({} if content is None else {"config.json": content})})
    for model in ("org/m", "modelscope:org/m"):
        found = _hub.facts(model, "main", tmp_path, (), _hub.Access(hub.address))
        assert not found["config"].get("a", {}).get("a", {}).get("a") and "kind" not in found


def test_without_the_hub_it_is_the_commit_that_the_last_run_took_if_that_is_here(hub: Hub, tmp_path: Path) -> None:
    hub.close()
    assert told(hub, tmp_path)["kind"] == "unreachable" and "revision" not in told(hub, tmp_path)
    _hub.remember(tmp_path, "org/m", "main", COMMIT)
    _hub.remember(tmp_path, "org/m", "v2", OTHER)
    assert "revision" not in told(hub, tmp_path)
    answer = told(hub, tmp_path, whole=[f"org--m@{COMMIT}"])
    assert (answer["kind"], answer["revision"]) == ("unreachable", COMMIT) and "refused" in answer["said"]


@pytest.mark.parametrize(
    ("model", "revision", "token", "kind", "what", "change"),
    [
        ("org/none", "main", "", "missing", "has no model org/none", "correct train_model"),
        ("org/m", "v9", "", "revision", "has no revision v9", "correct train_model_revision"),
        ("org/gated", "main", "", "gated", "is gated", "HF_TOKEN"),
        ("org/gated", "main", "wrong", "gated", "is gated", "accept its terms"),
        ("org/gated", "main", "right", "", "", ""),
    ],
)
def test_why_a_hub_does_not_give_it(
    hub: Hub, tmp_path: Path, model: str, revision: str, token: str, kind: str, what: str, change: str
) -> None:
    for name in ("org/m", "org/gated"):
        hub.push(name, {"config.json": b"{}"})
    hub.gated["org/gated"] = "right"
    answer = _hub.facts(model, revision, tmp_path, (), _hub.Access(hub.address, token))
    assert answer.get("kind", "") == kind
    if kind:
        refusal = _hub.refusal(answer, model, revision, "train_model")
        assert model in refusal.what and what in refusal.what and change in refusal.change


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b"<html>", b'{"siblings": [{}]}'])
def test_what_is_no_hub_has_not_answered(hub: Hub, tmp_path: Path, answer: bytes) -> None:
    hub.instead = answer
    assert told(hub, tmp_path)["kind"] == "unreachable" and told(hub, tmp_path)["said"]


@pytest.mark.parametrize("kind", _hub._WHAT)
def test_every_reason_has_words_and_a_remedy(kind: str) -> None:
    refusal = _hub.refusal({"kind": kind, "said": "so"}, "org/m", "v1", "train_model")
    assert "org/m" in refusal.what and "(so)" in refusal.what and refusal.change


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (["model.safetensors", "pytorch_model.bin", "config.json"], ["config.json", "model.safetensors"]),
        (
            ["model-1.safetensors", "model.safetensors.index.json", "consolidated.safetensors", "tokenizer.json"],
            ["model-1.safetensors", "model.safetensors.index.json", "tokenizer.json"],
        ),
        (
            ["pytorch_model-1.bin", "pytorch_model.bin.index.json"],
            ["pytorch_model-1.bin", "pytorch_model.bin.index.json"],
        ),
        (
            ["original/consolidated.00.pth", "onnx/model.onnx", ".gitattributes", "x.gguf", "a.png", "README.md"],
            ["README.md"],
        ),
        (
            ["modeling_x.py", "sub/model.safetensors", "spk_dict.pt"],
            ["modeling_x.py", "spk_dict.pt", "sub/model.safetensors"],
        ),
    ],
)
def test_of_a_repository_a_run_reads_one_form_of_the_weights(names: list[str], kept: list[str]) -> None:
    assert hub_files.wanted(names) == kept


def test_a_fetch_goes_on_for_as_long_as_more_comes() -> None:
    sizes = iter([1, 2, 2, 2, 3, 3, 3, 3, 3])
    pauses: list[float] = []

    def cut() -> None:
        raise ConnectionError("gone")

    with pytest.raises(hub_files.Failure, match="gone") as failure:
        hub_files.patiently(cut, lambda: next(sizes), pauses.append)
    assert failure.value.kind == "cut" and pauses == [0, 1, 3, 0, 1, 3, 7]


def test_a_file_counts_when_it_is_what_the_hub_says(tmp_path: Path) -> None:
    from ..hub import blob

    (tmp_path / "a").write_bytes(b"abc")
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    for size, digest, right in (
        (3, sha256, True),
        (3, blob(b"abc"), True),
        (3, blob(b"abd"), False),
        (4, sha256, False),
    ):
        assert hub_files.digests(tmp_path, {"a": (size, digest)}) == ({"a": sha256} if right else {})


def test_where_and_by_whom_a_hub_is_asked(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "HF_ENDPOINT": "http://a",
        "HF_TOKEN": "1",
        "MODELSCOPE_ENDPOINT": "http://b",
        "MODELSCOPE_API_TOKEN": "2",
    }
    assert _hub.access("org/m", secrets) == ("http://a", "1")
    assert _hub.access("modelscope:org/m", secrets) == ("http://b", "2")
    hub.push("org/gated", {"config.json": b"{}"})
    hub.gated["org/gated"] = "right"
    monkeypatch.setenv("HF_ENDPOINT", hub.address + "/")
    monkeypatch.setenv("HF_TOKEN", "right")
    assert "kind" not in _hub.facts("org/gated", "main", tmp_path, ())
    assert _hub.facts("org/gated", "main", tmp_path, (), _hub.Access("", "wrong"))["kind"] == "gated"


# --- one commit for all nodes ---


def test_the_run_is_pinned_and_its_id_is_what_was_asked_for() -> None:
    plan = make({"a": node()}, train_model=MODEL)
    assert plan.resolved["model"] == {"name": MODEL, "revision": COMMIT}
    assert plan.request["model"] == {"name": MODEL, "revision": "main"}
    model = plan.nodes["a"]["model"]
    folder = f"/home/me/llmops/models/Qwen--Qwen3-0.6B@{COMMIT}"
    assert (model["path"], model["hub"], model["asked"], model["missing"]) == (folder, MODEL, "main", True)
    assert lines(plan)["model_name_or_path"] == folder and "model_revision" not in lines(plan)
    assert f"  model   {MODEL} at {COMMIT}, 3.0 GiB to be fetched" in _describe.lines(plan, [DATA], {"a": node()})
    here = node(models=[f"Qwen--Qwen3-0.6B@{COMMIT}"])
    there = make({"a": here}, train_model=MODEL)
    assert not there.nodes["a"]["model"]["missing"] and there.id == plan.id
    assert "fetched" not in "\n".join(_describe.lines(there, [DATA], {"a": here}))


def test_a_moved_branch_is_drift_and_refresh_takes_it() -> None:
    first = make({"a": node()}, train_model=MODEL)
    facts = recorded(first, hub={"revision": OTHER, "bytes": 5})
    again = make({"a": facts}, train_model=MODEL)
    assert again.resolved["model"]["revision"] == COMMIT
    assert (
        f"Drift: the run keeps model {MODEL} {COMMIT[:12]}; train_resolve=refresh would take {MODEL} {OTHER[:12]}."
        in (again.notices)
    )
    refreshed = make({"a": facts}, train_model=MODEL, train_resolve="refresh")
    assert refreshed.id == first.id and refreshed.resolved["model"]["revision"] == OTHER


def test_a_run_that_goes_on_with_other_ranks_keeps_its_commit() -> None:
    first = make({"a": node(gpus=2)}, train_model=MODEL)
    facts = recorded(first, gpus=4, hub={"revision": OTHER, "bytes": 5})
    again = make({"a": facts}, train_model=MODEL)
    assert not again.recorded and again.resolved["model"]["revision"] == COMMIT
    refreshed = make({"a": facts}, train_model=MODEL, train_resolve="refresh")
    assert refreshed.resolved["model"]["revision"] == OTHER


GONE = {"kind": "unreachable", "said": "refused"}


def test_a_recorded_run_needs_no_hub() -> None:
    first = make({"a": node()}, train_model=MODEL)
    again = make({"a": recorded(first, hub=GONE)}, train_model=MODEL)
    assert again.recorded and again.resolved == first.resolved
    assert not any("Drift" in notice for notice in again.notices)


def test_all_nodes_have_the_commit_of_the_first_that_was_answered() -> None:
    from .plans import eth0

    facts = {
        "a": node(hub={**GONE, "revision": OTHER}),
        "b": node(interfaces=eth0("10.0.0.2")),
        "c": node(interfaces=eth0("10.0.0.3"), hub={"revision": OTHER, "bytes": 1}),
    }
    plan = make(facts, train_model=MODEL)
    assert {here["model"]["identity"] for here in plan.nodes.values()} == {COMMIT}
    plan = make({"a": facts["a"]}, train_model=MODEL)
    assert plan.resolved["model"]["revision"] == OTHER
    assert any("the one that the last run took" in notice for notice in plan.notices)


def test_without_hub_and_record_a_run_is_refused_and_may_still_be_stopped() -> None:
    with pytest.raises(FinetuneError, match="could not be asked") as refusal:
        make({"a": node(hub=GONE)}, train_model=MODEL)
    assert refusal.value.where == "train_model" and "HF_ENDPOINT" in refusal.value.change
    with pytest.raises(FinetuneError, match="could not be asked") as refusal:
        make({"a": node(hub=GONE)}, train_model=f"modelscope:{MODEL}")
    assert "MODELSCOPE_ENDPOINT" in refusal.value.change and "HF_" not in refusal.value.change
    for state in ("stopped", "absent"):
        assert make({"a": node(hub=GONE)}, train_model=MODEL, train_state=state).nodes


def test_a_record_of_a_branch_is_pinned_now() -> None:
    first = make({"a": node()}, train_model=MODEL)
    first.resolved["model"]["revision"] = "main"
    assert make({"a": recorded(first)}, train_model=MODEL).resolved["model"]["revision"] == COMMIT


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched() -> None:
    small = node(disk_free=2**30)
    with pytest.raises(FinetuneError, match=r"takes 3\.1 GiB on a, which has 1\.0 GiB free") as refusal:
        make({"a": small}, train_model=MODEL)
    assert refusal.value.where == "train_root"
    assert make({"a": {**small, "models": [f"Qwen--Qwen3-0.6B@{COMMIT}"]}}, train_model=MODEL).nodes
    assert make({"a": small}, train_model=MODEL, train_state="absent").nodes
    begun = {"revision": COMMIT, "bytes": 3 * 2**30, "begun": 2.5 * 2**30}
    assert make({"a": {**small, "hub": begun}}, train_model=MODEL).nodes, "what a cut fetch left is there already"


# --- ModelScope ---


def test_modelscope_is_pinned_by_content(hub: Hub, tmp_path: Path) -> None:
    def now(revision: str = "main") -> dict[str, t.Any]:
        return _hub.facts("modelscope:org/m", revision, tmp_path, (), _hub.Access(hub.address))

    assert now()["kind"] == "missing"
    hub.push("org/m", {"config.json": b"{}", "model.safetensors": b"1234", "a.gguf": b"12345"})
    first = now()
    assert first["bytes"] == 6 and now("master") == first
    assert _hub.COMMIT.fullmatch(first["revision"])
    hub.push("org/m", {"config.json": b"{}", "model.safetensors": b"1234", "a.gguf": b"others"})
    assert now() == first, "what no run reads does not count"
    hub.push("org/m", {"config.json": b"{}", "model.safetensors": b"1235"})
    assert now()["revision"] != first["revision"]


def test_modelscope_has_a_folder_and_a_template_of_its_own() -> None:
    plan = make({"a": node()}, train_model="modelscope:LLM-Research/Meta-Llama-3.1-8B-Instruct")
    model = plan.nodes["a"]["model"]
    assert model["path"].endswith(f"/models/modelscope--LLM-Research--Meta-Llama-3.1-8B-Instruct@{COMMIT}")
    assert model["hub"] == plan.request["model"]["name"] and lines(plan)["template"] == "llama3"
    with pytest.raises(FinetuneError, match="neither a hub id"):
        make({"a": node()}, train_model="modelscope:/srv/x")


def test_what_a_branch_of_modelscope_no_longer_has_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"config.json": (2, "a" * 64)}
    told = {
        "Data": {"Files": [{"Path": "sub", "Type": "tree"}, {"Path": "config.json", "Size": 2, "Sha256": "a" * 64}]}
    }
    assert hub_modelscope.read(told) == files and hub_modelscope.read({}) == {}
    assert hub_files.pin(files) != hub_files.pin({"config.json": (2, "b" * 64)})
