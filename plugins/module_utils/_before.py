# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs that a run begins with, from the store: their results come to hosts that have nothing of them."""

from __future__ import annotations

import json
import re
import typing as t
from functools import partial
from pathlib import Path

from . import _store, _workshop
from ._changes import Changes
from ._engine import state

FETCHING_SECONDS = 24 * 3600.0
"""How long an apply waits for another one that fetches the same."""
_CHANGE = (
    "it is not begun with; where a host has the results of that run, remove results.json in the store, and stored.json "
    "in its folder there, and apply it: they are sent again"
)
_EARLIER = re.compile(rf"\b{state.EARLIER}([a-z0-9._-]+)")

Facts = t.Mapping[str, dict[str, t.Any]]
Run = dict[str, t.Any]


# Decided


def with_stored(
    named: t.Iterable[str], facts: Facts, made: t.Container[str], ask: t.Callable[[str], t.Iterable[Run]]
) -> dict[str, dict[str, t.Any]]:
    """Facts in which hosts without an earlier run know what the store has of it (`elsewhere`). named: runs that one
    begins with; made: names of runs of this play, which are on the hosts. ask: the finished runs of a name or id in the
    store."""
    known = dict(facts)
    waiting = [name for name in named if name not in made] if known else []
    asked: set[str] = set()
    while waiting:
        wanted = waiting.pop()
        here = _newest(next(iter(known.values()))["before"], wanted)
        lacks = not here or any(here["id"] not in node["before"] for node in known.values())
        wanted = here["id"] if here else wanted  # which run is meant, the first host decides where it has one
        if wanted in asked:
            continue
        asked.add(wanted)
        for run in ask(wanted) if lacks else ():
            told = {**run, "state": "finished", "elsewhere": True}
            known = {host: {**node, "before": {run["id"]: told, **node["before"]}} for host, node in known.items()}
        for run in next(iter(known.values()))["before"].values():
            waiting += _EARLIER.findall(json.dumps(run["resolved"])) if _is(run, wanted) else []
    return known


def _newest(runs: t.Mapping[str, Run], wanted: str) -> Run | None:
    found = [run for run in runs.values() if _is(run, wanted) and run["state"] == "finished"]
    return max(found, key=lambda run: float(run.get("created") or 0), default=None)


def _is(run: Run, wanted: str) -> bool:
    return wanted in (run["id"], run["id"].rpartition("-")[0])


def on_node(store: str, runs: t.Iterable[str], node: t.Mapping[str, t.Any]) -> dict[str, str]:
    """Which of these runs a host has to fetch, and from where. store: train_store; runs: ids."""
    return {run_id: f"{store}/{run_id}" for run_id in runs if node["before"].get(run_id, {}).get("elsewhere")}


def notices(nodes: t.Mapping[str, t.Mapping[str, t.Any]]) -> list[str]:
    """What the plan says of it."""
    urls = dict.fromkeys(url for node in nodes.values() for url in node["fetched"].values())
    hosts = {url: ", ".join(host for host, node in nodes.items() if url in node["fetched"].values()) for url in urls}
    return [f"The run begins with {url}, which {hosts[url]} will fetch." for url in urls]


# On a node


def stage(spec: t.Mapping[str, t.Any], changes: Changes, secrets: t.Mapping[str, str]) -> None:
    """Results are here, whole, before they are looked at."""
    root = Path(spec["root"])
    for run_id, url in spec["fetched"].items():
        run = state.Run(root / "runs" / run_id)
        if not run.record.exists() and changes.add("fetch", run.path):
            work = partial(_fetch, run, url, spec, secrets)
            _workshop.alone(root / run_id, f"run {run_id}", FETCHING_SECONDS, work)


def _fetch(run: state.Run, url: str, spec: t.Mapping[str, t.Any], secrets: t.Mapping[str, str], _lock: int) -> None:
    if run.record.exists():
        return  # another apply had it meanwhile
    with _workshop.Workshop(run.path.parents[1] / run.id, spec) as workshop:
        _store.ask(spec, workshop, "results", secrets, url, str(run.path), change=_CHANGE)
