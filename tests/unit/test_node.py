# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts of a node: whole datasets and models, recorded runs."""

from __future__ import annotations

import json
import os
import pwd
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _dataset, _node, _sealed, _user
from ansible_collections.llmops.finetune.plugins.module_utils._engine import files, lease, state
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.module_utils._gpu import detect

from . import smi_outputs

ME = pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test can see what fsync does; it costs seconds here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


# --- stored content ---


def seal(folder: Path, **contents: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in contents.items():
        (folder / name).write_text(text, encoding="utf-8")
    _sealed.seal(folder, contents)
    return folder


def test_a_stored_dataset_is_whole_until_it_is_touched(tmp_path: Path) -> None:
    folder = seal(tmp_path / "datasets/aa", data="text", more="x")
    assert _sealed.intact(folder)
    os.utime(folder / "data", (1, 1))
    assert _sealed.intact(folder), "other times, same content"
    seal(tmp_path / "datasets/bb", data="y")
    assert _node.datasets(tmp_path) == ["aa/data", "aa/more", "bb/data"]


def test_digests_that_are_known_are_taken(tmp_path: Path) -> None:
    folder = tmp_path / "media/aa"
    (folder / "files/x").mkdir(parents=True)
    (folder / "files/x/1.png").write_text("1", encoding="utf-8")
    _sealed.seal(folder, ["files/x/1.png"], {"files/x/1.png": "0" * 64})
    assert _sealed.stored(folder)["files/x/1.png"]["sha256"] == "0" * 64
    assert _node.media_sets(tmp_path) == ["aa"]


@pytest.mark.parametrize("tamper", ["delete", "flip", "truncate", "manifest", "torn manifest", "empty manifest"])
def test_a_damaged_dataset_is_seen(tmp_path: Path, tamper: str) -> None:
    folder = seal(tmp_path / "datasets/aa", data="text", more="x")
    data, manifest = folder / "data", folder / "manifest.json"
    before = data.stat()
    if tamper == "delete":
        data.unlink()
    elif tamper == "flip":
        data.write_text("texT", encoding="utf-8")
        os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif tamper == "truncate":
        os.truncate(data, 3)
    elif tamper == "manifest":
        manifest.unlink()
    elif tamper == "torn manifest":
        os.truncate(manifest, 10)
    else:
        files.write_json(manifest, {"files": {}})
    assert not _sealed.intact(folder)
    assert _node.datasets(tmp_path) == []


def test_a_model_is_whole_by_recipe_and_content(tmp_path: Path) -> None:
    folder = tmp_path / "models/demo@id1"
    folder.mkdir(parents=True)
    weights = folder / "model.safetensors"
    weights.write_bytes(b"weights")
    files.write_json(folder / "manifest.json", {"identity": "id1", "files": {weights.name: files.sha256(weights)}})
    assert _node.models(tmp_path) == ["demo@id1"]
    assert not _sealed.model_intact(folder, "id2")
    weights.write_bytes(b"Weights")
    assert _node.models(tmp_path) == []
    weights.unlink()
    assert _node.models(tmp_path) == []
    (folder / "manifest.json").unlink()
    assert not _sealed.model_intact(folder, "id1")


@pytest.mark.parametrize("manifest", [{"identity": "id1"}, {"identity": "id1", "files": {}}])
def test_a_model_without_listed_files_is_not_whole(tmp_path: Path, manifest: dict[str, t.Any]) -> None:
    (tmp_path / "models/demo@id1").mkdir(parents=True)
    files.write_json(tmp_path / "models/demo@id1/manifest.json", manifest)
    assert _node.models(tmp_path) == []


def test_runs_of_a_name_are_read_from_their_records(tmp_path: Path) -> None:
    for run_id in ("a-00000001", "a-b-00000002", "a-00000003"):
        (tmp_path / "runs" / run_id).mkdir(parents=True)
    record = {"request": {"name": "a"}, "resolved": {"world_size": 1}, "created": 5.0}
    files.write_json(tmp_path / "runs/a-00000001/run.json", record)
    files.write_json(tmp_path / "runs/a-b-00000002/run.json", record)
    assert _node.runs(tmp_path, "a") == {"a-00000001": {"id": "a-00000001", "state": "staged", "shared": "", **record}}
    assert set(_node.runs(tmp_path, "")) == {"a-00000001", "a-b-00000002"}
    assert _node.runs(tmp_path / "nowhere", "") == {}


# --- all of it ---


MEASURED = {"predicted": {"gpu": "NVIDIA L4"}, "measured": [{"rank": 0}]}


def measured(root: Path, run_id: str, told: t.Any) -> state.Run:
    """A finished run that tells what its ranks took."""
    run = state.Run(root / "runs" / run_id)
    run.output.mkdir(parents=True)
    files.write_json(run.memory, told)
    files.write_json(run.artefacts, state.inventory(run))
    return run


def test_what_runs_of_any_name_took_is_told_where_it_is_as_they_left_it(tmp_path: Path) -> None:
    measured(tmp_path, "a-1", MEASURED)
    measured(tmp_path, "on-cpus-1", {**MEASURED, "predicted": {}})
    measured(tmp_path, "unsealed-1", MEASURED).artefacts.unlink()
    measured(tmp_path, "odd-1", {"predicted": ["x"], "measured": 7}).artefacts.write_text('{"output/memory.json": []}')
    flipped = measured(tmp_path, "flipped-1", MEASURED)
    flipped.memory.write_text(flipped.memory.read_text().replace("L4", "L5"))
    gone = measured(tmp_path, "gone-1", MEASURED)
    gone.memory.unlink()
    (tmp_path / "runs/empty-1").mkdir()
    assert _node.peaks(tmp_path) == {"a-1": MEASURED}
    assert _node.peaks(tmp_path / "nowhere") == {}


def test_earlier_runs_are_found_with_those_they_began_with(tmp_path: Path) -> None:
    begun = {"pt-1": "demo", "sft-1": "run:pt-1", "dpo-1": "run:sft-1,run:pt-1", "other-1": "demo"}
    for run_id, model in begun.items():
        folder = tmp_path / "runs" / run_id
        folder.mkdir(parents=True)
        files.write_json(folder / "run.json", {"resolved": {"model": {"name": model}}})
    assert set(_node.earlier(tmp_path, ["dpo"])) == {"dpo-1", "sft-1", "pt-1"}
    assert set(_node.earlier(tmp_path, ["sft-1"])) == {"sft-1", "pt-1"} and _node.earlier(tmp_path, []) == {}


@pytest.mark.parametrize(
    ("model", "place"),
    [
        ({"name": "owner/model", "revision": "c0ffee"}, "models/owner--model@c0ffee"),
        ({"name": "file", "revision": "ab" * 32}, f"models/file@{'ab' * 8}"),
        ({"name": "demo", "revision": "id"}, "models/demo@id"),
        ({"name": "run:pt-1", "revision": ""}, "runs/pt-1/output"),
    ],
)
def test_of_an_earlier_run_the_sizes_of_model_and_adapter_are_told(
    tmp_path: Path, model: dict[str, str], place: str
) -> None:
    results = tmp_path / "runs/sft-1/output"
    for folder in (results, tmp_path / place):
        folder.mkdir(parents=True)
    files.write_json(tmp_path / "runs/sft-1/run.json", {"resolved": {"model": model}})
    files.write_json(tmp_path / place / "config.json", {"hidden_size": 8})
    adapter = {"peft_type": "LORA", "r": 16, "target_modules": ["q_proj", "v_proj"], "lora_alpha": 32}
    files.write_json(results / "adapter_config.json", adapter)
    told = _node.earlier(tmp_path, ["sft"])["sft-1"]["left"]
    keys = {"finetuning_type": "lora", "lora_rank": 16, "lora_target": "q_proj,v_proj"}
    assert told == {"config": {"hidden_size": 8}, "adapter": keys}
    files.write_json(results / "adapter_config.json", {"peft_type": "OFT", "r": 0, "oft_block_size": 64})
    told = _node.earlier(tmp_path, ["sft"])["sft-1"]["left"]
    assert told["adapter"] == {"finetuning_type": "oft", "oft_block_size": 64}
    (results / "adapter_config.json").unlink()
    files.write_json(results / "config.json", {"hidden_size": 16})
    assert _node.earlier(tmp_path, ["sft"])["sft-1"]["left"] == {"config": {"hidden_size": 16}, "adapter": {}}


def test_facts_name_the_user_the_root_and_the_datasets_that_lie_here(tmp_path: Path) -> None:
    data = tmp_path / "a.jsonl"
    data.write_text('{"instruction": "Why?", "output": "So."}\n{"instruction": "Why?"}\n', encoding="utf-8")
    here = _dataset.parse([{"path": str(data)}, {"path": str(tmp_path / "b.json")}], "train_datasets")
    facts = _node.facts(ME, str(tmp_path / "root"), "", here)
    assert (facts["login"], facts["user"], facts["account_exists"]) == (ME, ME, True)
    assert facts["root"] == str(tmp_path / "root")
    assert facts["cpus"] == len(os.sched_getaffinity(0))
    assert facts["disk_free"] > 0
    whole, missing = facts["sources"]
    assert missing == {"name": "b", "missing": True}
    assert (whole["digest"], whole["records"], whole["fields"]) == (files.sha256(data), 2, ["instruction", "output"])
    assert [fault[0] for fault in whole["faults"]] == [2]
    assert not (tmp_path / "root").exists(), "facts write nothing"


def test_before_the_account_is_made_model_and_data_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies under its root is not there yet."""
    monkeypatch.setattr(_user, "exists", lambda name: False)
    monkeypatch.setattr(_user, "DEFAULT_ACCOUNT", "nobody-yet")
    monkeypatch.setattr(_user, "home", lambda name: "/var/lib/none")
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}', encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"stub")
    data = tmp_path / "a.jsonl"
    data.write_text('{"instruction": "Why?", "output": "So."}\n', encoding="utf-8")
    here = _dataset.parse([{"path": str(data)}], "train_datasets")
    facts = _node.facts("nobody-yet", "~/llmops", "", here, model=str(tmp_path), folders=[str(tmp_path)])
    assert (facts["account_exists"], facts["runs"], facts["model_missing"]) == (False, {}, False)
    assert (facts["model"]["type"], facts["model"]["damaged"]) == ("qwen3", ["model.safetensors"])
    assert facts["sources"][0]["records"] == 1 and facts["folders"] == {str(tmp_path): ["config.json"]}
    assert _node.facts("nobody-yet", "~/llmops", "", [], model=f"{tmp_path}/none")["model_missing"]


def test_a_model_that_the_account_may_not_look_at_is_missing(tmp_path: Path) -> None:
    """Root may look at all: there it is another account."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "config.json").write_text('{"model_type": "qwen3"}', encoding="utf-8")
    root = os.geteuid() == 0
    for folder in (tmp_path, *tmp_path.parents[:-2]) if root else ():
        folder.chmod(folder.stat().st_mode | 0o055)
    hidden.chmod(0o700 if root else 0)
    here = _dataset.parse([{"path": f"{hidden}/a.jsonl"}], "train_datasets")
    facts = _node.facts("nobody" if root else ME, str(tmp_path / "root"), "", here, model=str(hidden))
    hidden.chmod(0o700)
    assert (facts["model_missing"], facts["sources"]) == (True, [{"name": "a", "missing": True}])


def test_gpus_are_told_as_the_plan_takes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi_outputs.host(tmp_path, smi_outputs.H100, smi_outputs.SLICED)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    part = smi_outputs.slice_uuid(1, 1)
    kept = lease.acquire([part], {"run": "theirs"}, tmp_path / "leases")
    facts = _node.facts(ME, str(tmp_path / "root"), "", [], lease_dir=str(tmp_path / "leases"))
    for descriptor in kept:
        os.close(descriptor)
    assert json.loads(json.dumps(facts)) == facts
    assert [gpu["uuid"] for gpu in facts["gpus"]] == [smi_outputs.uuid(0), smi_outputs.slice_uuid(1, 0), part]
    first = {key: facts["gpus"][0][key] for key in ("index", "name", "memory", "compute_capability", "driver")}
    assert list(first.values()) == [0, "NVIDIA H100 80GB HBM3", 81559 * 2**20, 9.0, "580.105.08"]
    assert facts["gpu_links"] == [[0, 1, "SYS"]] and facts["gpu_problems"] == []
    assert facts["leases"] == {part: {"run": "theirs"}}


def test_a_broken_driver_is_a_fact_of_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi_outputs.on_bus(tmp_path / "bus", 0, "2237")
    monkeypatch.setattr(detect.look, "__defaults__", (detect.SECONDS, tmp_path / "bus", "/dev/null"))
    smi_outputs.tool(tmp_path, {"*": smi_outputs.MISMATCH}, code=18)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    facts = _node.facts(ME, str(tmp_path / "root"), "", [])
    assert facts["gpus"] == [] and "old kernel module" in facts["gpu_problems"][0]["what"]


def test_an_unknown_user_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError) as refusal:
        _node.facts("no-such-user", str(tmp_path), "", [])
    assert refusal.value.where == "train_user"


@pytest.mark.parametrize(
    ("asked", "login", "user"),
    [("", "me", "me"), ("you", "me", "you"), ("root", "root", "root"), ("", "root", "llmops")],
)
def test_ranks_run_as_the_user_asked_for_and_never_as_root_by_accident(asked: str, login: str, user: str) -> None:
    assert _user.run_user(asked, login) == user


def test_a_tilde_is_the_home_of_the_runs_user() -> None:
    home = pwd.getpwnam(ME).pw_dir
    assert [_user.expand(path, ME) for path in ("~", "~/x", "/srv/~/x")] == [home, f"{home}/x", "/srv/~/x"]
    if not _user.exists(_user.DEFAULT_ACCOUNT):
        assert _user.expand("~/x", _user.DEFAULT_ACCOUNT) == "/var/lib/llmops/x"


def test_a_root_that_may_not_be_looked_into_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def forbidden(self: Path, pattern: str) -> t.Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "glob", forbidden)
    with pytest.raises(FinetuneError, match=f"may not look into {tmp_path}/runs") as refusal:
        _user.refuse_unusable(tmp_path)
    assert refusal.value.where == "train_root"


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_root_that_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FinetuneError, match=f"{tmp_path}/file is no folder") as refusal:
        _user.refuse_unusable(tmp_path / name)
    assert refusal.value.where == "train_root"
    _user.refuse_unusable(tmp_path / "not yet/there")


def test_the_files_of_an_adapter_or_a_reward_model(tmp_path: Path) -> None:
    assert _node.trained_files(tmp_path / "nothing") == []
    for name in ("value_head.safetensors", "adapter_config.json", "README.md"):
        (tmp_path / name).touch()
    assert _node.trained_files(tmp_path) == ["value_head.safetensors", "adapter_config.json"]
    assert _node.trained_files(tmp_path / "README.md") == ["."]
