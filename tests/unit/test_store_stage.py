# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The store of a run in the plan, and in staging on a node, against a stand-in of S3 (moto)."""

from __future__ import annotations

import json
import sys
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.action import train_run
from ansible_collections.llmops.finetune.plugins.module_utils import _changes, _describe, _remove, _store, _wish
from ansible_collections.llmops.finetune.plugins.module_utils._engine import files, upload
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.plugin_utils import _s3

from . import stored
from .plans import DATA, DEFAULTS, RECIPES, SCHEMAS, eth0, make, node
from .stored import RUN, S3, URL, Node

TEAM = "s3://runs/team"


# Decided


def two(**each: t.Any) -> dict[str, dict[str, t.Any]]:
    return {host: node(interfaces=eth0(f"10.0.0.{i}"), **each) for i, host in enumerate("ab", 1)}


def test_the_store_is_not_part_of_who_the_run_is() -> None:
    without, plan = make({"a": node()}), make({"a": node()}, train_store=f"{TEAM}/", train_set="save_total_limit=3")
    assert make({"a": node()}, train_store=TEAM).id == without.id and without.store == {}
    launch = plan.nodes["a"]["launch"]
    assert launch["store"] == {"url": f"{TEAM}/{plan.id}", "python": "/home/me/llmops/envs//bin/python", "keep": 3}
    assert "store" not in without.nodes["a"]["launch"]
    assert plan.nodes["a"]["stop_seconds"] == without.nodes["a"]["stop_seconds"] + 600
    assert f"  store   {TEAM}/{plan.id}" in _describe.lines(plan, (DATA,), {"a": node()})


@pytest.mark.parametrize("wrong", ["runs", "s3://", "s3://a", "s3://runs/a b", "gs://runs/x", "s3://Runs/x", "/runs"])
def test_what_is_no_place_is_refused(wrong: str) -> None:
    with pytest.raises(FinetuneError, match="train_store"):
        _wish.read({**DEFAULTS, "train_store": wrong}, SCHEMAS, RECIPES)


def test_a_notice_that_there_is_none_of_is_refused() -> None:
    with pytest.raises(FinetuneError, match="train_spot_notices has 'reboot'"):
        _wish.read({**DEFAULTS, "train_spot_notices": ["reboot"]}, SCHEMAS, RECIPES)
    assert make({"a": node()}, train_spot_notices="rebalance").nodes["a"]["launch"]["notices"] == ["rebalance"]


def as_stored(plan: t.Any) -> t.Any:
    return json.loads(json.dumps({"request": plan.request, "resolved": plan.resolved, "created": 1.0}, sort_keys=True))


def test_a_fresh_fleet_goes_on_with_what_the_run_was_resolved_to() -> None:
    wanted: dict[str, t.Any] = {"train_model": "org/model", "train_store": TEAM}
    plan = make(two(), **wanted)
    moved = two(hub={"revision": "f" * 40, "bytes": 1})
    assert _store.unrecorded(plan.id, moved)
    facts = _store.with_record(plan.id, as_stored(plan), moved, "")
    again = make(dict(facts), **wanted)
    assert again.id == plan.id and again.recorded and again.resolved == plan.resolved
    assert [each["state"] for each in again.nodes.values()] == ["interrupted"] * 2
    assert any("Drift: the run keeps model" in notice for notice in again.notices)
    assert make(moved, **wanted).resolved["model"] != plan.resolved["model"], "without the record"
    assert _store.with_record(plan.id, {}, moved, "") == moved


def test_hosts_that_know_the_run_are_believed() -> None:
    plan = make(two(), train_store=TEAM)
    facts = two()
    facts["b"]["runs"] = {plan.id: {"id": plan.id, "state": "stopped", **as_stored(plan)}}
    assert _store.unrecorded(plan.id, facts), "the first one has been replaced"
    known = dict(_store.with_record(plan.id, as_stored(plan), facts, ""))
    assert {host: each["state"] for host, each in make(known, train_store=TEAM).nodes.items()} == {
        "a": "interrupted",
        "b": "stopped",
    }
    facts = {"b": facts["b"], "a": facts["a"]}
    assert not _store.unrecorded(plan.id, facts)


@pytest.mark.parametrize(
    ("fresh", "hosts", "lacking"), [("", "ab", False), ("a", "ab", True), ("b", "ab", True), ("a", "a", False)]
)
def test_where_a_host_has_nothing_the_others_fetch_as_well(fresh: str, hosts: str, lacking: bool) -> None:
    facts = {host: two()[host] for host in hosts}
    plan = make(facts, train_store=TEAM)
    run = {"id": plan.id, "state": "interrupted", **as_stored(plan)}
    for host in hosts:
        facts[host]["runs"] = {} if host == fresh else {plan.id: run}
    again = make(dict(_store.with_record(plan.id, as_stored(plan), facts, "")), train_store=TEAM)
    assert {each["lacking"] for each in again.nodes.values()} == {lacking}


def test_what_others_need_stays_and_the_plan_says_so() -> None:
    plan = make(two(), train_store=TEAM)
    run = {"id": plan.id, "state": "stopped", **as_stored(plan)}
    removed: dict[str, t.Any] = {"train_store": TEAM, "train_state": "absent"}
    in_part = make({"a": node(runs={plan.id: run})}, **removed)
    assert not in_part.whole and any(f"{TEAM}/{plan.id} stays" in notice for notice in in_part.notices)
    whole = make(two(runs={plan.id: run}), **removed)
    assert whole.whole and not any("stays" in notice for notice in whole.notices)


def test_shards_in_other_parts_are_refused_on_a_fresh_fleet_too() -> None:
    wanted: dict[str, t.Any] = {"train_engine": "zero3", "train_store": TEAM}
    plan = make(two(), **wanted)
    facts = dict(_store.with_record(plan.id, as_stored(plan), {"a": node()}, ""))
    with pytest.raises(FinetuneError, match="in 2 parts, now there are 1"):
        make(facts, **wanted)


def test_what_was_shared_is_shared_again() -> None:
    wanted: dict[str, t.Any] = {"train_output_root": "/mnt/team", "train_store": TEAM}
    plan = make(two(), **wanted)
    facts = dict(_store.with_record(plan.id, as_stored(plan), two(), "/mnt/team"))
    assert make(facts, **wanted).shared == f"/mnt/team/{plan.id}"


# On a node


server = stored.server  # a fixture


@pytest.fixture
def s3(server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name in server.names():
        server.client.delete_object(Bucket="runs", Key=f"team/{RUN}/{name}")
    return server


def spec(one: Node, *, lacking: bool = False) -> dict[str, t.Any]:
    one.launch["store"]["python"] = sys.executable
    one.launch["environment"] = {}
    files.write_json(one.run.launch, one.launch)
    record = files.read_json(one.run.record)
    told = {key: record[key] for key in ("request", "resolved")}
    return {"launch": one.launch, "lacking": lacking, "engine": train_run.engine(), **told}


def stage(one: Node, s3: S3, now: str = "", **how: bool) -> list[tuple[str, str]]:
    """In check mode, then for real; both tell the same."""
    dry, made = _changes.Changes(dry=True), _changes.Changes(dry=False)
    for changes in (dry, made):
        wanted = spec(one, **how)
        before = s3.names(), sorted(one.run.path.rglob("*"))
        _store.stage(one.run, wanted, changes, s3.variables, now=now)
        assert not changes.dry or before == (s3.names(), sorted(one.run.path.rglob("*")))
    assert dry.made == made.made
    return [(change["action"], change["path"].removeprefix(str(one.run.path))) for change in made.made]


def send(one: Node, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        for name, value in s3.variables.items():
            patch.setenv(name, value)
        assert upload.work(one.run, 0) == 0


def test_staging_fetches_once_and_tells_what_it_changes(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = Node(tmp_path / "old"), Node(tmp_path / "new")
    wanted = spec(new)
    assert stage(old, s3) == [("update", f"{URL}/run.json")]
    assert stage(old, s3) == []
    old.save(8)
    send(old, s3, monkeypatch)
    folder = new.run.path.rename(tmp_path / "aside")
    dry = _changes.Changes(dry=True)
    _store.stage(new.run, wanted, dry, s3.variables, now="")
    assert [change["action"] for change in dry.made] == ["fetch"], "also where nothing is staged yet"
    assert list(new.run.path.parents[1].rglob("*")) == [new.run.path.parent]
    folder.rename(new.run.path)
    assert stage(new, s3) == [("fetch", "/output/checkpoint-8")]
    assert new.content(8) == old.content(8) and stage(new, s3) == []


def test_a_newer_one_here_counts_unless_another_host_has_nothing(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, here = Node(tmp_path / "old"), Node(tmp_path / "here")
    old.save(8)
    send(old, s3, monkeypatch)
    stage(old, s3)
    here.save(16)
    assert stage(here, s3) == []
    assert stage(here, s3, lacking=True) == [("fetch", "/output/checkpoint-8")]
    assert here.steps() == [8, 16]


def test_results_that_did_not_get_there_are_sent_by_the_next_apply(s3: S3, tmp_path: Path) -> None:
    one = Node(tmp_path)
    one.save(8)
    one.finish()
    assert stage(one, s3, "finished") == [("create", URL)]
    assert "results.json" in s3.names() and stage(one, s3, "finished") == []
    one.finish()
    assert stage(one, s3, "finished") == [("create", URL)]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}, r"127\.0\.0\.1:9"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "Unable to locate credentials"),
    ],
)
def test_a_store_that_cannot_be_used_refuses_the_start(
    s3: S3, tmp_path: Path, wrong: dict[str, str], said: str
) -> None:
    one = Node(tmp_path)
    with pytest.raises(FinetuneError, match=said) as refusal:
        _store.stage(one.run, spec(one), _changes.Changes(dry=False), {**s3.variables, **wrong}, now="")
    assert URL in refusal.value.where and "train_secrets" in refusal.value.change
    one.finish()
    with pytest.raises(FinetuneError, match=said):
        _store.stage(one.run, spec(one), _changes.Changes(dry=False), {**s3.variables, **wrong}, now="finished")


def test_a_damaged_checkpoint_is_named_and_nothing_is_started(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = Node(tmp_path / "old"), Node(tmp_path / "new")
    old.save(8)
    send(old, s3, monkeypatch)
    (name,) = (name for name in s3.names() if name.endswith("model.safetensors"))
    s3.put(name, b"x" * 2000)
    with pytest.raises(FinetuneError, match=r"model\.safetensors of checkpoint 8 in the store is not what") as refusal:
        _store.stage(new.run, spec(new), _changes.Changes(dry=False), s3.variables, now="")
    assert "manifests/" in refusal.value.change and new.steps() == []


def test_a_run_that_is_removed_is_removed_from_the_store(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Node(tmp_path)
    one.save(8)
    send(one, s3, monkeypatch)

    def remove(*, dry: bool, whole: bool = True) -> list[tuple[str, str]]:
        changes = _changes.Changes(dry=dry)
        _remove.remove(one.run, changes, patience=1, spec={**spec_now, "whole": whole}, secrets=s3.variables)
        return [(change["action"], change["path"]) for change in changes.made]

    spec_now = spec(one)
    expected = [("remove", URL), ("remove", str(one.run.path))]
    assert remove(dry=True) == expected and s3.names() and one.run.path.exists()
    assert remove(dry=False) == expected and not s3.names() and not one.run.path.exists()
    assert remove(dry=False) == []
    assert list(one.run.path.parent.iterdir()) == [] and list(one.run.path.parents[1].iterdir()) == [
        one.run.path.parent
    ]
    s3.put("run.json", b"{}")
    assert remove(dry=False, whole=False) == [], "hosts of the run are left out"
    assert remove(dry=False) == [("remove", URL)], "also where a host has nothing of it"


def test_the_controller_reads_the_record(s3: S3) -> None:
    assert _s3.record(URL, s3.variables) == {}
    s3.put("run.json", b'{"created": 1.0}')
    assert _s3.record(URL, s3.variables) == {"created": 1.0}
    with pytest.raises(FinetuneError, match="there is no such bucket") as refusal:
        _s3.record("s3://elsewhere/x-1", s3.variables)
    assert refusal.value.where == "train_store"
    with pytest.raises(FinetuneError, match=r"127\.0\.0\.1:9"):
        _s3.record(URL, {**s3.variables, "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"})
