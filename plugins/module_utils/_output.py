# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where checkpoints and results of a run go: into a folder of each node's own, or once for all of them into
`<train_output_root>/<run id>`, to which `output` of each node then is a link.

The plan decides, from the recorded runs: a run keeps the place where it began.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import typing as t
import uuid
from pathlib import Path

from . import _user
from ._changes import Changes
from ._engine import files, state
from ._errors import FinetuneError

MARK = ".node-"
"""How the names of marks begin."""
SIGHT_SECONDS = 5.0
"""How long a node looks for what the others left; a file of a new name is asked for at the storage itself."""

Facts = t.Mapping[str, dict[str, t.Any]]


# Decided


def place(run_id: str, root: str, facts: Facts) -> str:
    """The folder that all nodes share; empty where each has its own. root: train_output_root."""
    begun = [runs[run_id] for runs in (node["runs"] for node in facts.values()) if run_id in runs]
    kept = next((run.get("shared", "") for run in begun if run["state"] != "staged"), None)
    return (f"{root}/{run_id}" if root else "") if kept is None else str(kept)


def refuse_unusable(shared: str, root: str, facts: Facts) -> None:
    """A folder for results that cannot be used on a node, before anything is touched."""
    if not shared or Path(shared).parent != Path(root):
        return  # none, or that of an earlier apply
    wrong = {host: str(node["output_root"]["why"]) for host, node in facts.items()}
    for host, node in facts.items():
        if Path(node["root"], "runs") in (Path(root), *Path(root).parents):
            wrong[host] = "it is where train_root has its runs"
    if any(wrong.values()):
        raise FinetuneError(
            f"Results cannot go to {root}.",
            where="\n          ".join(["train_output_root", *(f"{host}: {why}" for host, why in wrong.items() if why)]),
            change="mount the storage that all hosts share, make a folder on it that the account may write in, and "
            "name that folder",
        )


def refuse_foreign(run_id: str, shared: str, facts: Facts, *, retry: bool) -> None:
    """The same request of somebody else has the same id: what other hosts have there is not gone on with unasked."""
    begun = any(node["runs"].get(run_id, {}).get("state", "staged") != "staged" for node in facts.values())
    if shared and not begun and not retry and any(run_id in node["output_root"]["runs"] for node in facts.values()):
        raise FinetuneError(
            f"Run {run_id} has results already, of hosts that are not in this play.",
            where=shared,
            change="name another train_output_root; if those hosts are gone for good, -e train_retry=true goes on from "
            "the newest whole checkpoint there",
        )


def notices(shared: str, root: str, *, removed_in_part: bool) -> list[str]:
    """What the plan says of a run that began with another train_output_root, or of whose hosts only some remove it."""
    if removed_in_part:
        return [f"{shared} stays: hosts of the run are left out, and it is theirs too."] if shared else []
    if (str(Path(shared).parent) if shared else "") == root:
        return []
    now = f"in {shared}" if shared else "with each node"
    other = f"train_output_root {root}" if root else "that train_output_root is empty"
    return [f"The results stay {now}, where the run began; {other} is for runs that begin from now on."]


def whole(run_id: str, world_size: int, facts: Facts) -> bool:
    """Whether this play has all hosts of the run: as many ranks as it was recorded with, or more."""
    known = [node["runs"][run_id] for node in facts.values() if run_id in node["runs"]]
    return all(int((run.get("resolved") or {}).get("world_size") or 0) <= world_size for run in known)


# On a node


def facts(root: str, name: str) -> dict[str, t.Any]:
    """What there is to know of a train_output_root: why it cannot be used, and which runs of that name have anything
    there besides marks of nodes."""
    why = unusable(root)
    there = [] if why or not root else [folder for folder in Path(root).glob(f"{name}-*") if folder.is_dir()]
    return {"why": why, "runs": sorted(folder.name for folder in there if _has_results(folder))}


def _has_results(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return any(not path.name.startswith(MARK) for path in folder.iterdir())
    return True


def unusable(root: str) -> str:
    """Why results cannot go there, where it is us who write; empty where they can."""
    if not root:
        return ""
    if not os.path.isdir(root):
        return "there is no such folder"
    return "" if os.access(root, os.W_OK | os.X_OK) else f"{_user.login()} may not write in it"


def stage(run: state.Run, shared: str, changes: Changes) -> None:
    """Have `output` lead to the shared folder, where there is one to be."""
    begun = state.observe(run) not in ("absent", "staged")
    leads = linked(run)
    if not shared:
        if leads and leads == files.read_json(run.launch).get("shared") and changes.add("update", run.output):
            _let_go(run)
        return
    if begun and not Path(shared).is_dir():
        raise FinetuneError(
            f"The checkpoints and results of run {run.id} are not there.",
            where=shared,
            change="mount the storage that they are on; if they were removed, train_state=absent, and apply again",
        )
    if leads != shared:
        there = os.path.lexists(run.output)
        if there and (begun or (not leads and any(run.output.iterdir()))):
            raise FinetuneError(
                f"What this node has of run {run.id} is not in the folder that the other nodes share.",
                where=f"{run.output}, {shared}",
                change=f"if nothing of it is needed, remove {run.path} on this node, and apply again",
            )
        changes.add("update" if there else "create", run.output)
    if not changes.dry:
        _make(shared)
        _lead(run, shared)


def linked(run: state.Run) -> str:
    """Where `output` leads to; empty where it is no link."""
    return os.readlink(run.output) if run.output.is_symlink() else ""


def _make(shared: str) -> None:
    root = os.path.dirname(shared)
    with contextlib.suppress(OSError):
        os.mkdir(shared)
    why = unusable(shared) and (unusable(root) or unusable(shared))
    if why:
        raise FinetuneError(
            f"Results cannot go to {shared}: {why}.",
            where="train_output_root",
            change="let the account write there; on storage of a network it needs the same number (uid) on all hosts",
        )


def _lead(run: state.Run, shared: str) -> None:
    if linked(run) == shared:
        return
    if run.output.is_symlink():
        _let_go(run)
    elif run.output.exists():
        run.output.rmdir()
    run.path.mkdir(parents=True, exist_ok=True)
    run.output.symlink_to(shared)


def _let_go(run: state.Run) -> None:
    """Of a folder in which nothing was trained yet; the last node removes it."""
    for mark in run.output.glob(f"{MARK}*"):
        mark.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        os.rmdir(linked(run))
    run.output.unlink()


def remove(run: state.Run, changes: Changes) -> None:
    """Remove what all nodes share of the run; each of them tells so, and it does not matter which one is first."""
    shared = linked(run)
    if not shared or shared != files.read_json(run.launch).get("shared"):
        return
    if not os.path.isdir(os.path.dirname(shared)):
        raise FinetuneError(
            f"The storage that the results of run {run.id} are on is not there, so that they cannot be removed.",
            where=shared,
            change=f"mount it, and apply again; if it is gone for good, remove {run.path} by hand on all its hosts",
        )
    if not changes.add("remove", shared):
        return
    while os.path.isdir(shared):
        with contextlib.suppress(FileNotFoundError):  # another node is at it too
            shutil.rmtree(shared)


# Whether it is shared


def leave_mark(run: state.Run, rank: int) -> str:
    """A file for the other nodes to see; it goes with the start. Its name is new: an old one may be known as absent."""
    for old in run.output.glob(f"{MARK}{rank}-*"):
        old.unlink(missing_ok=True)
    name = f"{MARK}{rank}-{uuid.uuid4().hex[:12]}"
    (run.output / name).touch()
    return name


def unseen(run: state.Run, marks: t.Mapping[str, str]) -> list[str]:
    """Hosts whose mark is not in the folder of this node. marks: by host."""
    deadline = time.monotonic() + SIGHT_SECONDS
    while True:
        left = [host for host, mark in marks.items() if not (run.output / mark).exists()]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.2)
