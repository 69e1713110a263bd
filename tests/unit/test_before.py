# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs that a run begins with, from the store, where hosts have nothing of them; against a stand-in of S3 (moto)."""

from __future__ import annotations

import sys
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.action import train_run
from ansible_collections.llmops.finetune.plugins.module_utils import _before, _changes, _identity, _plan, _wish
from ansible_collections.llmops.finetune.plugins.module_utils._engine import files, state, upload
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.plugin_utils import _s3

from . import stored
from .plans import CORPUS, DATA, DEFAULTS, LOCK, RECIPES, SCHEMAS, eth0, node
from .stored import NAME, RUN, S3, URL, Node
from .test_origin import run

TEAM = "s3://runs/team"
SFT, OTHER = "sft-00000001", "sft-00000002"


class Store:
    """Finished runs below train_store, and what was asked for."""

    def __init__(self, *runs: dict[str, t.Any]) -> None:
        self.runs, self.asked = runs, list[str]()

    def __call__(self, wanted: str) -> list[dict[str, t.Any]]:
        self.asked.append(wanted)
        return [one for one in self.runs if wanted in (one["id"], one["id"].rpartition("-")[0])]


def hosts(*before: list[dict[str, t.Any]]) -> dict[str, dict[str, t.Any]]:
    """One for each list of runs that are on it."""
    return {
        "abc"[i]: node(interfaces=eth0(f"10.0.0.{i + 1}"), before={one["id"]: one for one in runs})
        for i, runs in enumerate(before)
    }


def plan(
    facts: dict[str, dict[str, t.Any]], store: Store, made: dict[str, t.Any] | None = None, **wish: t.Any
) -> _plan.Plan:
    given = {"train_datasets": [{"file": "a.json"}], "train_store": TEAM, "train_from": "sft", "train_name": "more"}
    read = _wish.read({**DEFAULTS, **given, **wish}, SCHEMAS, RECIPES)
    known = _before.with_stored(read.fetched, facts, made or {}, store)
    who = _identity.find(read, (DATA,), known, corpus_digest=CORPUS, made=made)
    return _plan.make(who, (DATA,), known, environment=LOCK, schema=SCHEMAS[read.environment])


def fetched(found: _plan.Plan) -> dict[str, list[str]]:
    return {host: list(here["fetched"]) for host, here in found.nodes.items()}


def test_a_fresh_fleet_begins_with_what_the_store_has() -> None:
    store = Store({**run(SFT), "left": {"config": {}, "adapter": {"lora_rank": 8}}})
    found = plan(hosts([], []), store)
    assert fetched(found) == {"a": [SFT], "b": [SFT]} and found.held == "" and store.asked == ["sft"]
    assert found.nodes["a"]["fetched"] == {SFT: f"{TEAM}/{SFT}"}
    assert f"The run begins with {TEAM}/{SFT}, which a, b will fetch." in found.notices
    there = plan(hosts([run(SFT)], [run(SFT)]), Store())
    assert there.id == found.id and fetched(there) == {"a": [], "b": []}


def test_a_host_that_was_added_fetches_the_run_that_the_others_have() -> None:
    store = Store(run(SFT), run(OTHER, created=9.0))
    found = plan(hosts([run(SFT)], []), store)
    assert fetched(found) == {"a": [], "b": [SFT]} and store.asked == [SFT], "not a newer one of that name"
    lost = plan(hosts([], [run(SFT)]), store)
    assert fetched(lost) == {"a": [OTHER], "b": [OTHER]}, "the first host decides, and has none"


def test_what_an_earlier_run_began_with_comes_too() -> None:
    whole = run("pt-00000009", finetuning_type="full")
    adapter = run(SFT, model={"name": "run:pt-00000009", "revision": "", "family": "demo"})
    assert fetched(plan(hosts([]), Store(whole, adapter))) == {"a": ["pt-00000009", SFT]}
    assert fetched(plan(hosts([adapter]), Store(whole, adapter))) == {"a": ["pt-00000009"]}


def test_nobody_is_asked_for_nothing() -> None:
    store = Store(run(OTHER))
    for facts, wish, made in (
        (hosts([run(SFT)]), {}, {}),
        (hosts([]), {}, {"sft": run(SFT)}),
        (hosts([run(SFT)]), {"train_store": ""}, {}),
        (hosts([run(SFT)], []), {"train_state": "absent"}, {}),
    ):
        assert not any(fetched(plan(facts, store, made, **wish)).values())
    assert store.asked == []


def test_one_that_is_not_finished_here_is_not_replaced() -> None:
    found = plan(hosts([run(SFT, "stopped")]), Store(run(SFT)), train_from=SFT)
    assert fetched(found) == {"a": []} and "a: stopped" in found.held
    with pytest.raises(FinetuneError, match="There is no finished run 'sft'"):
        plan(hosts([]), Store())


# --- what the controller is told ---


server, s3 = stored.server, stored.s3  # fixtures


def finished(folder: Path, s3: S3) -> Node:
    """A run that a host has finished, and sent."""
    one = Node(folder)
    (one.run.output / "sub").mkdir()
    for name, content in (("config.json", b'{"hidden_size": 8}'), ("sub/words", b""), ("weights", b"w" * 999)):
        (one.run.output / name).write_bytes(content)
    one.finish()
    s3.put("run.json", one.run.record.read_bytes())
    assert upload.work(one.run, 0) == 0
    return one


def test_the_store_is_asked_by_name_or_id_for_what_is_finished_there(s3: S3, tmp_path: Path) -> None:
    finished(tmp_path, s3)
    for name in ("x-11111111/run.json", "x-y-00000000/run.json", "x-y-00000000/results.json", "xx-00000000/run.json"):
        s3.client.put_object(Bucket=NAME, Key=f"team/{name}", Body=b'{"resolved": {"a": 1}, "files": {"b": 2}}')
    told = {"request": {"name": "x"}, "resolved": {"world_size": 1}, "created": 1.0}
    left = {"config": {"hidden_size": 8}, "adapter": {}}
    for wanted in ("x", RUN):
        assert _s3.earlier(TEAM, wanted, s3.variables) == [{"id": RUN, "state": "finished", **told, "left": left}]
    assert _s3.earlier(TEAM, "x-11111111", s3.variables) == [], "it has no results"
    assert [one["id"] for one in _s3.earlier(TEAM, "x-y", s3.variables)] == ["x-y-00000000"]
    with pytest.raises(FinetuneError, match=r"Whether s3://none has a run x cannot be seen: there is no such bucket"):
        _s3.earlier("s3://none", "x", s3.variables)


# --- on a node ---


def stage(root: Path, s3: S3, *, dry: bool = False) -> list[tuple[str, str]]:
    changes = _changes.Changes(dry=dry)
    launch = {"store": {"url": f"{TEAM}/more-00000000", "python": sys.executable}, "environment": {}}
    spec = {"root": str(root), "fetched": {RUN: URL}, "launch": launch, "engine": train_run.engine()}
    _before.stage(spec, changes, s3.variables)
    return [(change["action"], change["path"]) for change in changes.made]


def test_results_come_whole_and_once(s3: S3, tmp_path: Path) -> None:
    was = finished(tmp_path / "old", s3).run
    root = tmp_path / "new"
    here = state.Run(root / "runs" / RUN)
    assert stage(root, s3, dry=True) == [("fetch", str(here.path))] and not root.exists()
    here.output.mkdir(parents=True)
    (here.output / "weights").write_bytes(b"w" * 500)  # a fetch that was cut
    (here.output / "weights.1A2b").write_bytes(b"w")
    assert state.observe(here) == "absent"
    assert stage(root, s3) == [("fetch", str(here.path))]
    assert state.observe(here) == "finished" and state.damaged(here, full=True) == []
    names = [str(path.relative_to(was.output)) for path in state.results(was)]
    assert [str(path.relative_to(here.output)) for path in state.results(here)] == names and "sub/words" in names
    assert all((here.output / name).read_bytes() == (was.output / name).read_bytes() for name in names)
    assert files.read_json(here.record)["resolved"] == files.read_json(was.record)["resolved"]
    assert stage(root, s3) == [] and [path.name for path in root.iterdir()] == ["runs"]


def test_results_that_are_not_what_was_sent_are_not_begun_with(s3: S3, tmp_path: Path) -> None:
    finished(tmp_path / "old", s3)
    s3.put("results/weights", b"v" * 999)
    with pytest.raises(FinetuneError, match=r"weights of the results .* is not what") as refusal:
        stage(tmp_path / "new", s3)
    assert refusal.value.where == URL and "sent again" in refusal.value.change
    assert state.observe(state.Run(tmp_path / "new" / "runs" / RUN)) == "absent"
    s3.client.delete_object(Bucket=NAME, Key=f"team/{RUN}/results.json")
    with pytest.raises(FinetuneError, match="has no results"):
        stage(tmp_path / "new", s3)
