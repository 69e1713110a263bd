# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where results go: what the plan decides of it, and the folder that several nodes have in common."""

from __future__ import annotations

import os
import shutil
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _changes, _describe, _output, _remove, _run, _wish
from ansible_collections.llmops.finetune.plugins.module_utils._engine import files, state
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

from .plans import DATA, DEFAULTS, RECIPES, SCHEMAS, eth0, lines, make, node

TEAM = "/mnt/team/runs"


def three(**each: t.Any) -> dict[str, dict[str, t.Any]]:
    return {host: node(interfaces=eth0(f"10.0.0.{i}"), **each) for i, host in enumerate("abc", 1)}


def begun(now: str, shared: str, world_size: int = 3) -> dict[str, t.Any]:
    """What a host records of the run that `make` plans."""
    plan = make(three())
    resolved = {**plan.resolved, "world_size": world_size}
    return {plan.id: {"id": plan.id, "state": now, "request": plan.request, "resolved": resolved, "shared": shared}}


# Decided


def test_results_are_once_for_all_and_not_part_of_who_the_run_is() -> None:
    own, shared = make(three()), make(three(), train_output_root=f"{TEAM}/")
    assert (own.id, own.shared, shared.shared) == (shared.id, "", f"{TEAM}/{own.id}")
    assert lines(own)["save_on_each_node"] is True and "save_on_each_node" not in lines(shared)
    for host in "abc":
        assert "shared" not in own.nodes[host]["launch"]
        assert shared.nodes[host]["launch"]["shared"] == f"{TEAM}/{own.id}"
        assert shared.nodes[host]["mounts"] == ["/home/me/llmops", f"{TEAM}/{own.id}"]
        assert lines(shared, host)["output_dir"] == f"/home/me/llmops/runs/{own.id}/output"
    told = _describe.lines(shared, (DATA,), three())
    assert f"  results {TEAM}/{own.id}" in told


@pytest.mark.parametrize("wrong", ["runs", "~/runs", "/", "//", "./runs"])
def test_the_folder_is_a_full_path(wrong: str) -> None:
    with pytest.raises(FinetuneError, match="train_output_root"):
        _wish.read({**DEFAULTS, "train_output_root": wrong}, SCHEMAS, RECIPES)


def test_a_folder_that_a_host_cannot_use_is_refused_with_the_host() -> None:
    facts = three()
    facts["b"]["output_root"] = {"why": "there is no such folder", "runs": []}
    with pytest.raises(FinetuneError, match="b: there is no such folder") as caught:
        make(facts, train_output_root=TEAM)
    assert "train_output_root" in str(caught.value) and "a: " not in str(caught.value)
    assert make(facts).shared == ""
    assert make(facts, train_output_root=TEAM, train_state="absent").shared, "it is not needed for that"


@pytest.mark.parametrize("inside", ["/home/me/llmops/runs", "/home/me/llmops/runs/x"])
def test_the_folder_of_runs_is_no_folder_for_results(inside: str) -> None:
    with pytest.raises(FinetuneError, match="a: it is where train_root has its runs"):
        make(three(), train_output_root=inside)
    assert make(three(), train_output_root="/home/me/llmops/results").shared


PLACES = [
    # what the hosts have of the run, train_output_root, where its results are, what the plan says
    (("", ""), TEAM, f"{TEAM}/", ""),
    (("finished", f"{TEAM}/"), TEAM, f"{TEAM}/", ""),
    (("finished", f"{TEAM}/"), "", f"{TEAM}/", "that train_output_root is empty is for runs that begin"),
    (("interrupted", "/old/"), TEAM, "/old/", f"train_output_root {TEAM} is for runs that begin from now on"),
    (("finished", ""), TEAM, "", "The results stay with each node, where the run began"),
    (("staged", "/old/"), TEAM, f"{TEAM}/", ""),
    (("staged", "/old/"), "", "", ""),
]


@pytest.mark.parametrize(("was", "root", "place", "told"), PLACES)
@pytest.mark.parametrize("fresh", ["a", "c", ""], ids=["first host fresh", "last host fresh", "none fresh"])
def test_a_run_keeps_the_place_where_it_began(
    was: tuple[str, str], root: str, place: str, told: str, fresh: str
) -> None:
    run_id = make(three()).id
    facts = three()
    for host in "abc":
        if was[0] and host != fresh:
            facts[host]["runs"] = begun(was[0], was[1] and was[1] + run_id)
    plan = make(facts, train_output_root=root)
    assert plan.shared == (place and place + run_id)
    notices = [notice for notice in plan.notices if "train_output_root" in notice]
    assert len(notices) == bool(told) and all(told in notice for notice in notices)


@pytest.mark.parametrize("now", ["", "staged", "interrupted"])
def test_results_of_other_hosts_are_not_gone_on_with_unasked(now: str) -> None:
    """The same request has the same id, whoever writes it."""
    run_id = make(three()).id
    facts = three(output_root={"why": "", "runs": [run_id]})
    if now:
        facts["c"]["runs"] = begun(now, f"{TEAM}/{run_id}")
    if now == "interrupted":
        assert make(facts, train_output_root=TEAM).shared, "two fresh hosts, and one that began it"
        return
    with pytest.raises(FinetuneError, match="of hosts that are not in this play"):
        make(facts, train_output_root=TEAM)
    assert make(facts, train_output_root=TEAM, train_retry=True).shared
    assert make(facts, train_output_root="/mnt/other", train_set="seed=7").shared
    assert not make(facts).shared


def test_what_is_shared_stays_where_hosts_of_the_run_are_left_out() -> None:
    run_id = make(three()).id
    facts = {"c": node(runs=begun("stopped", f"{TEAM}/{run_id}"))}
    plan = make(facts, train_output_root=TEAM, train_state="absent")
    assert (
        not plan.whole
        and f"{TEAM}/{run_id} stays: hosts of the run are left out, and it is theirs too." in plan.notices
    )
    everyone = three(runs=begun("stopped", f"{TEAM}/{run_id}"))
    assert make(everyone, train_output_root=TEAM, train_state="absent").whole
    everyone["a"]["runs"] = {}
    assert make(everyone, train_output_root=TEAM, train_state="absent").whole, "also when the first one is fresh"


def test_shards_in_other_parts_are_refused_by_what_any_host_knows() -> None:
    wanted: dict[str, t.Any] = {"train_engine": "zero3", "train_output_root": TEAM}
    plan = make(three(), **wanted)
    facts = three()
    del facts["c"]
    record = {"id": plan.id, "state": "interrupted", "request": plan.request, "resolved": plan.resolved}
    facts["b"]["runs"] = {plan.id: {**record, "shared": plan.shared}}
    with pytest.raises(FinetuneError, match="in 3 parts, now there are 2"):
        make(facts, **wanted)


# On a node


@pytest.fixture
def nodes(tmp_path: Path) -> list[state.Run]:
    (tmp_path / "team").mkdir()
    return [state.Run(tmp_path / host / "runs" / "x-00000000") for host in "ab"]


def shared(run: state.Run) -> Path:
    return run.path.parents[2] / "team" / run.id


def stage(run: state.Run, folder: Path | str) -> list[str]:
    """Stage in check mode, then for real; both tell the same."""
    dry, made = _changes.Changes(dry=True), _changes.Changes(dry=False)
    before = sorted(run.path.parents[2].rglob("*"))
    _output.stage(run, str(folder or ""), dry)
    assert sorted(run.path.parents[2].rglob("*")) == before, "check mode touched something"
    _output.stage(run, str(folder or ""), made)
    assert dry.made == made.made
    files.write_json(run.launch, {"shared": str(folder)} if folder else {})
    files.write_json(run.record, {"run": run.id})
    return [change["action"] for change in made.made]


def test_output_is_a_link_to_what_all_share(nodes: list[state.Run]) -> None:
    for run in nodes:
        assert stage(run, shared(run)) == ["create"]
        assert stage(run, shared(run)) == []
    (nodes[0].output / "adapter_model.safetensors").write_bytes(b"weights")
    assert (nodes[1].output / "adapter_model.safetensors").read_bytes() == b"weights"


def test_the_place_of_what_has_not_begun_may_change(nodes: list[state.Run], tmp_path: Path) -> None:
    for run in nodes:
        stage(run, shared(run))
        _output.leave_mark(run, 0)
    other = tmp_path / "other"
    other.mkdir()
    for run in nodes:
        assert stage(run, other / run.id) == ["update"]
    assert not shared(nodes[0]).exists(), "nothing is left in the first one"
    for run in nodes:
        assert stage(run, "") == ["update"]
        run.output.mkdir()
        assert stage(run, shared(run)) == ["update"]
    assert not (other / nodes[0].id).exists() and nodes[0].output.is_symlink()


def test_a_link_that_was_removed_is_put_back(nodes: list[state.Run]) -> None:
    run = nodes[0]
    stage(run, shared(run))
    files.write_json(run.state, {"state": "interrupted"})
    run.output.unlink()
    assert stage(run, shared(run)) == ["create"]


def test_a_run_whose_storage_is_not_there_does_not_begin_anew(nodes: list[state.Run]) -> None:
    run = nodes[0]
    stage(run, shared(run))
    files.write_json(run.state, {"state": "interrupted"})
    shutil.rmtree(shared(run).parent)
    with pytest.raises(FinetuneError, match="are not there") as caught:
        stage(run, shared(run))
    assert "mount" in str(caught.value) and not shared(run).parent.exists()


@pytest.mark.parametrize("link", [True, False])
def test_what_a_node_has_elsewhere_is_not_thrown_away(nodes: list[state.Run], tmp_path: Path, link: bool) -> None:
    run = nodes[0]
    run.path.mkdir(parents=True)
    files.write_json(run.record, {"run": run.id})
    files.write_json(run.state, {"state": "interrupted"})
    shared(run).mkdir()
    if link:
        run.output.symlink_to(tmp_path)
    else:
        run.output.mkdir()
    with pytest.raises(FinetuneError, match="is not in the folder that the other nodes share"):
        stage(run, shared(run))
    assert run.output.exists()


def test_a_folder_of_ones_own_is_left_alone(nodes: list[state.Run], tmp_path: Path) -> None:
    run = nodes[0]
    run.path.mkdir(parents=True)
    run.output.symlink_to(tmp_path)
    assert stage(run, "") == [] and run.output.is_symlink(), "a link of the account's own making"


def test_storage_that_is_not_there_or_not_ours_is_told(nodes: list[state.Run], tmp_path: Path) -> None:
    assert _output.unusable("") == _output.unusable(str(tmp_path)) == ""
    assert _output.unusable(str(tmp_path / "none")) == "there is no such folder"
    with pytest.raises(FinetuneError, match=r"Results cannot go to .*: there is no such folder") as caught:
        _output.stage(nodes[0], str(tmp_path / "none" / "x"), _changes.Changes(dry=False))
    assert "train_output_root" in str(caught.value)


def test_runs_that_have_results_there_are_known_by_name(tmp_path: Path) -> None:
    for name in ("x-1/checkpoint-8", "x-2/.node-0-abc", "y-1/checkpoint-8", "x-3"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "x-file").touch()
    assert _output.facts(str(tmp_path), "x") == {"why": "", "runs": ["x-1"]}
    assert _output.facts("", "x") == {"why": "", "runs": []}
    assert _output.facts(str(tmp_path / "none"), "x") == {"why": "there is no such folder", "runs": []}


def test_a_folder_without_the_right_to_write_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    assert "may not write in it" in _output.unusable(str(tmp_path))


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_shared_goes_once_and_each_node_tells_the_same(nodes: list[state.Run], whole: bool) -> None:
    for run in nodes:
        stage(run, shared(run))
    (shared(nodes[0]) / "checkpoint-8").mkdir()
    for run in nodes:
        dry, made = _changes.Changes(dry=True), _changes.Changes(dry=False)
        _remove.remove(run, dry, patience=1, spec={"whole": whole})
        assert run.output.is_symlink()
        _remove.remove(run, made, patience=1, spec={"whole": whole})
        paths = [shared(run), run.path] if whole else [run.path]
        assert dry.made == made.made == [{"action": "remove", "path": str(path)} for path in paths]
        assert not run.path.exists()
        again = _changes.Changes(dry=False)
        _remove.remove(run, again, patience=1, spec={"whole": whole})
        assert again.made == []
    assert shared(nodes[0]).exists() is not whole and shared(nodes[0]).parent.exists()


@pytest.mark.parametrize("dry", [True, False])
def test_results_on_storage_that_is_not_mounted_are_not_said_to_be_removed(nodes: list[state.Run], dry: bool) -> None:
    run = nodes[0]
    stage(run, shared(run))
    shared(run).parent.rename(shared(run).parent.with_name("unmounted"))
    with pytest.raises(FinetuneError, match="cannot be removed"):
        _remove.remove(run, _changes.Changes(dry=dry), patience=1)
    assert run.path.exists()


def test_a_link_of_another_making_is_not_followed(nodes: list[state.Run], tmp_path: Path) -> None:
    run = nodes[0]
    run.path.mkdir(parents=True)
    stage(run, "")
    (tmp_path / "theirs").mkdir()
    run.output.symlink_to(tmp_path / "theirs")
    _remove.remove(run, _changes.Changes(dry=False), patience=1)
    assert (tmp_path / "theirs").exists() and not run.path.exists()


def test_who_does_not_see_the_marks_of_others_has_another_folder(
    nodes: list[state.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_output, "SIGHT_SECONDS", 0.1)
    for run in nodes:
        stage(run, shared(run))
    _output.leave_mark(nodes[1], 1)
    marks = {host: _output.leave_mark(run, rank) for rank, (host, run) in enumerate(zip("ab", nodes, strict=True))}
    assert sorted(os.listdir(shared(nodes[0]))) == sorted(marks.values()), "one for each node, the newest"
    assert [_output.unseen(run, marks) for run in nodes] == [[], []]
    nodes[1].output.unlink()
    (tmp_path / "b" / "own").mkdir()
    nodes[1].output.symlink_to(tmp_path / "b" / "own")
    _output.leave_mark(nodes[1], 1)
    assert _output.unseen(nodes[1], marks) == ["a", "b"]


def test_results_are_recorded_beside_them_and_rank_0_answers_for_the_record(nodes: list[state.Run]) -> None:
    for rank, run in enumerate(nodes):
        stage(run, shared(run))
        files.write_json(run.launch, {"shared": str(shared(run)), "node_rank": rank})
        files.write_json(run.state, {"state": "finished", "attempt": 1})
    weights = nodes[0].output / "adapter_model.safetensors"
    weights.write_bytes(b"weights")
    assert [bool(state.damaged(run)) for run in nodes] == [True, False], "the others are done a moment earlier"
    files.write_json(nodes[0].artefacts, state.inventory(nodes[0]))
    assert [state.damaged(run) for run in nodes] == [[], []]
    for run in nodes:
        assert list(_run.results(run.path.parents[1], "", "")) == [f"{run.id}/adapter_model.safetensors"]
    weights.write_bytes(b"weighty")
    assert all("other content" in str(state.damaged(run)) for run in nodes)
