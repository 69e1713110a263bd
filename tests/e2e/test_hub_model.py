# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model of a hub: pinned, fetched before ranks start, whole whatever cuts it, and trained from without the hub.

The hub is a stand-in on loopback that speaks its protocol (tests/hub.py); the client is the real one.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
import typing as t
from pathlib import Path

import pytest
import yaml

from ..hub import Hub
from .conftest import BASE, REPOSITORY, Demo, Outcome, World, tree

MODEL = "someone/tiny"
CUTS = 20


@pytest.fixture(scope="module")
def hub() -> t.Iterator[Hub]:
    served = Hub()
    yield served
    served.close()


@pytest.fixture(scope="module")
def first(world: World, demo: Demo, hub: Hub) -> str:
    """The demo's base model as somebody would push it."""
    folder = Path(demo.applied.plan["nodes"]["localhost"]["model"]["path"])
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
    assert len(files["model.safetensors"]) > 1_000_000
    shutil.rmtree(world.root / "models" / ".refs.json", ignore_errors=True)
    for left in (world.root / "models").glob("*someone--*"):
        shutil.rmtree(left)
    return hub.push(MODEL, {**files, "README.md": b"tiny\n", "pytorch_model.bin": b"old" * 5000})


def play(world: World, hub: Hub, *arguments: str, model: str = MODEL, token: str = "", **asked: t.Any) -> Outcome:
    secrets = {"HF_ENDPOINT": hub.address, "MODELSCOPE_ENDPOINT": hub.address, **({"HF_TOKEN": token} if token else {})}
    short: dict[str, t.Any] = {
        "template": "qwen3_nothink",
        "gradient_accumulation_steps": 1,
        "max_steps": 2,
        "save_steps": 2,
        "cutoff_len": 128,
    }
    variables = {"train_name": "far", "train_model": model, "train_secrets": secrets, "train_eval_datasets": []}
    return world.play(*(arguments or ("train.yml",)), variables={**variables, **asked}, **short)


def stored(world: World, commit: str) -> Path:
    return world.root / "models" / f"someone--tiny@{commit}"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_fetch_that_is_cut_twenty_times_ends_whole(demo: Demo, tmp_path: Path) -> None:
    """The line is dropped within files now and then, and the fetch itself is killed at random."""
    numbers = random.Random(5)
    files = {f"model-{i}.safetensors": numbers.randbytes(4_000_000 + i) for i in range(3)}
    files |= {"config.json": b"{}", "tokenizer.json": numbers.randbytes(600_000), "empty.txt": b""}
    (tmp_path / "engine").symlink_to(REPOSITORY / "plugins/module_utils/_engine")
    hub = Hub()
    commit = hub.push("org/large", files)
    python = json.loads((demo.folder / "launch.json").read_text())["python"]
    command = [python, "-m", "engine.hub_model", "--model", "org/large", "--asked", "main", "--revision", commit]
    command += ["--folder", str(tmp_path / "model")]
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "cache")}
    hub.randomly(5, 300_000, 900_000)
    hub.pause = 0.01
    for _cut in range(CUTS):
        until = hub.sent + numbers.randint(100_000, 700_000)
        fetch = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
        while hub.sent < until and fetch.poll() is None:
            time.sleep(0.01)
        assert fetch.poll() is None, "it was ready before it was cut often enough"
        fetch.kill()
        fetch.wait()
    kept = sum(path.stat().st_size for path in (tmp_path / "model").rglob("*") if path.is_file())
    assert kept > hub.sent / 3, "what came before a cut is kept"
    hub.pause = 0
    hub.asked.clear()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    hub.close()
    assert done.returncode == 0, done.stdout + done.stderr
    assert contents(tmp_path / "model") == files
    assert any(came for _method, _path, came in hub.asked), "it went on where it was"


def test_check_mode_tells_the_fetch_and_touches_nothing(world: World, hub: Hub, first: str) -> None:
    before = tree(world.root / "models", world.root / "runs")
    checked = play(world, hub, "train.yml", "--check")
    assert checked.rc == 0, checked.text
    assert ("fetch", str(stored(world, first))) in checked.changes
    assert f"{MODEL} at {first}" in checked.text and "MiB to be fetched" in checked.text
    assert tree(world.root / "models", world.root / "runs") == before
    assert {path.rpartition("/")[2] for _method, path, _range in hub.asked if "/resolve/" in path} <= {"config.json"}


def test_it_is_fetched_when_a_run_is_staged(world: World, hub: Hub, first: str) -> None:
    done = play(world, hub, train_state="staged")
    assert done.rc == 0 and done.run["state"] == "staged", done.text
    assert ("fetch", str(stored(world, first))) in done.changes
    assert contents(stored(world, first)).keys() == {
        "manifest.json",
        *(name for name in hub.commits[MODEL][first] if name != "pytorch_model.bin"),
    }
    launch = json.loads((world.folder(done) / "launch.json").read_text())
    assert launch["environment"]["HF_HUB_OFFLINE"] == "1"
    written = yaml.safe_load((world.folder(done) / "train.yaml").read_text())
    assert written["model_name_or_path"] == str(stored(world, first)) and "model_revision" not in written


def test_without_the_hub_a_run_trains_and_a_new_one_can_begin(world: World, hub: Hub, first: str) -> None:
    hub.close()
    try:
        done = play(world, hub)
        assert done.rc == 0 and done.run["state"] == "finished", done.text
        new = play(world, hub, train_set="learning_rate=1e-4", train_state="staged")
        assert new.rc == 0 and new.run["state"] == "staged" and new.plan["id"] != done.plan["id"], new.text
        assert new.plan["resolved"]["model"]["revision"] == first
        assert any("the one that the last run took" in notice for notice in new.plan["notices"])
        unknown = play(world, hub, model="someone/other")
        assert unknown.rc != 0 and "could not be asked" in unknown.message and "HF_ENDPOINT" in unknown.message
    finally:
        hub.reopen()


def test_a_moved_branch_is_told_and_the_run_keeps_its_commit(world: World, hub: Hub, first: str) -> None:
    moved = hub.push(MODEL, {**hub.commits[MODEL][first], "README.md": b"tiny, again\n"})
    again = play(world, hub)
    assert again.rc == 0 and again.changes == [] and again.changed == [], again.text
    drift = [notice for notice in again.plan["notices"] if notice.startswith("Drift")]
    assert len(drift) == 1 and f"{MODEL} {first[:12]}" in drift[0] and moved[:12] in drift[0]
    hub.branches[MODEL]["main"] = first


def test_a_stored_model_that_was_damaged_is_fetched_again_where_it_is(world: World, hub: Hub, first: str) -> None:
    weights = stored(world, first) / "model.safetensors"
    right = weights.read_bytes()
    with open(weights, "r+b") as file:
        file.seek(len(right) // 2)
        file.write(bytes([right[len(right) // 2] ^ 1]))
    hub.asked.clear()
    new = play(world, hub, train_set="learning_rate=2e-4", train_state="staged")
    assert new.rc == 0 and ("update", str(weights.parent)) in new.changes, new.text
    assert weights.read_bytes() == right
    fetched = {path.rpartition("/")[2] for method, path, _range in hub.asked if "/resolve/" in path}
    assert fetched == {"model.safetensors", "config.json"}, "the plan reads the second"


def test_modelscope_gives_it_too(world: World, hub: Hub, first: str) -> None:
    done = play(world, hub, model=f"modelscope:{MODEL}", train_state="staged")
    assert done.rc == 0, done.text
    (folder,) = (world.root / "models").glob("modelscope--someone--tiny@*")
    assert ("fetch", str(folder)) in done.changes
    came = {name: content for name, content in contents(folder).items() if name != "manifest.json"}
    assert came == {name: hub.commits[MODEL][first][name] for name in came} and "model.safetensors" in came
    assert play(world, hub, model=f"modelscope:{MODEL}", train_state="staged").changes == []


def test_a_model_of_this_controller_is_sent(world: World, hub: Hub, first: str) -> None:
    mine = BASE / "mine"
    shutil.rmtree(mine, ignore_errors=True)
    mine.mkdir()
    for name, content in hub.commits[MODEL][first].items():
        (mine / name).write_bytes(content)
    for left in (world.root / "models").glob("file@*"):
        shutil.rmtree(left)
    done = play(world, hub, model=f"file:{mine}", train_state="staged")
    assert done.rc == 0, done.text
    folder = Path(done.plan["nodes"]["localhost"]["model"]["path"])
    assert ("create", str(folder)) in done.changes
    came = {name: content for name, content in contents(folder).items() if name != "manifest.json"}
    assert came == {name: hub.commits[MODEL][first][name] for name in came} and "model.safetensors" in came
    moved = mine.rename(BASE / "mine.moved")
    assert play(world, hub, model=f"file:{moved}", train_state="staged").changes == []
    shutil.rmtree(moved)


def test_what_a_hub_does_not_give_is_refused_before_anything_is_touched(world: World, hub: Hub, first: str) -> None:
    hub.push("someone/gated", hub.commits[MODEL][first])
    hub.gated["someone/gated"] = "hf_right"
    before = tree(world.root / "models", world.root / "runs")
    for model, token, revision, what, change in (
        (MODEL, "", "v9", "has no revision v9", "correct train_model_revision"),
        ("someone/gated", "hf_wrong", "main", "is gated", "accept its terms"),
    ):
        refused = play(world, hub, model=model, token=token, train_model_revision=revision)
        assert refused.rc != 0 and what in refused.message and change in refused.message, refused.text
        assert "hf_wrong" not in refused.text
    assert tree(world.root / "models", world.root / "runs") == before
    planned = play(world, hub, "llmops.finetune.plan", model="someone/gated", token="hf_right")
    assert planned.rc == 0, planned.text
