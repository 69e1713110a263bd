# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person reads at the end of a watch, and in `status`."""

from __future__ import annotations

import typing as t

from . import _state
from ._engine import progress


def following(run: dict[str, t.Any]) -> str:
    return f"Following {run['id']}. Ctrl-C ends the following, not the run."


def left(run: dict[str, t.Any]) -> list[str]:
    """What is said of a run that nobody waits for."""
    if run["state"] != "running":
        return ended(run)
    return [
        f"Run {run['id']} goes on by itself.",
        "  see it    playbook llmops.finetune.status with the same inventory",
        "  follow    this command without train_wait=false",
        f"  end it    playbook llmops.finetune.stop with -e train_run_id={run['id']}",
    ]


def restarted(run: dict[str, t.Any]) -> str:
    """One line when the supervisor has begun another attempt."""
    told = (run.get("diagnosis") or {}).get("what", "")
    return f"{run['id']}  attempt {run['attempt']} from step {run['from_step']}. {told}".rstrip()


def ended(run: dict[str, t.Any]) -> list[str]:
    """The summary of a run that is no longer running."""
    if run["state"] == "finished":
        folder = run["summary"]["output"].rpartition("/")[0]
        return [
            f"Run {run['id']} is finished.",
            *(f"  {line}" for line in progress.summary_lines(run["summary"])),
            f"  next      less {folder}/train.yaml; one value changed is a new run:",
            "            this command with -e 'train_set=\"learning_rate=5e-5\"'",
        ]
    if run["state"] == "stopped":
        return [f"Run {run['id']} is stopped and stays so. To go on with it: -e train_retry=true"]
    return []


def nothing(asked: str) -> str:
    """What is said where no run is found. asked: train_run_id."""
    return f"no run matches {asked}" if asked else "no run is recorded here"


def well(count: int) -> str:
    """What is said where there is nothing to explain."""
    return "no run is recorded here" if not count else "no run has failed or was interrupted"


def others(ids: t.Sequence[str]) -> list[str]:
    """What is said of runs that a stop did not mean."""
    return [f"{run_id}  runs on: it has another name (-e train_run_id={run_id} ends it)" for run_id in ids]


def by_id(found: t.Mapping[str, t.Sequence[dict[str, t.Any]]]) -> dict[str, dict[str, dict[str, t.Any]]]:
    """Runs by id, each as its hosts have it. found: runs by host, oldest first."""
    together: dict[str, dict[str, dict[str, t.Any]]] = {}
    for host, runs in found.items():
        for run in runs:
            together.setdefault(run["id"], {})[host] = run
    return together


def status(found: t.Mapping[str, t.Sequence[dict[str, t.Any]]]) -> list[str]:
    """One line per run: where, id, state, progress or what is to be known. found: runs by host, oldest first.

    A run of several hosts has one line, and one more for each host that is in another state.
    """
    lines = []
    for run_id, runs_of in by_id(found).items():
        now = _state.aggregate([run["state"] for run in runs_of.values()])
        speaker = next((run for run in runs_of.values() if run["state"] == now), next(iter(runs_of.values())))
        where = next(iter(runs_of)) if len(runs_of) == 1 else f"{len(runs_of)} nodes"
        lines.append(f"{where}  {run_id}  {now}  {_told(speaker)}".rstrip())
        lines += [
            f"    {host}  {run['state']}  {_told(run)}".rstrip() for host, run in runs_of.items() if run["state"] != now
        ]
    return lines


def _told(run: dict[str, t.Any]) -> str:
    if run["state"] == "failed":
        return str((run.get("diagnosis") or {}).get("what", ""))
    if run["state"] == "finished":
        loss = run["summary"].get("last_loss")
        return f"loss {loss:.4f}  {run['summary']['output']}" if loss is not None else ""
    return str(run["line"]) if run["state"] in ("running", "interrupted", "stopped") else ""
