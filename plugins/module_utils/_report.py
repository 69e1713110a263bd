# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person reads at the end of a watch, and in `status`."""

from __future__ import annotations

import typing as t

from ._engine import lease, progress
from ._errors import FinetuneError


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


def why(run: dict[str, t.Any]) -> str:
    """The refusal or failure as an error for people."""
    if run["state"] == "interrupted":
        return str(
            FinetuneError(
                f"Run {run['id']} was interrupted: its supervisor is gone or was asked to end.",
                where=run.get("log", ""),
                change="the same command again resumes it from the newest whole checkpoint",
            )
        )
    told = run.get("diagnosis") or {}
    return str(
        FinetuneError(
            f"Run {run['id']} failed in attempt {run['attempt']}. {told.get('what', '')}".rstrip(),
            where="\n          ".join([run.get("log", ""), *run.get("tail", [])]),
            change=f"{told.get('change', 'read the log')}; the same request again: -e train_retry=true",
        )
    )


def held(key: str, holder: dict[str, t.Any], user: str, where: str) -> FinetuneError:
    """A lease that another run has. user: the account this run would belong to."""
    ways = ["wait for it"]
    if holder.get("run"):
        theirs = "" if holder.get("user") == user else f" -e train_user={holder.get('user')}"
        ways.append(f"stop it (playbook llmops.finetune.stop, -e train_run_id={holder['run']}{theirs})")
    if key != lease.CPU:
        ways.append("choose other GPUs with train_gpus")
    return FinetuneError(lease.describe(key, holder), where=where, change=", or ".join(ways))


def nothing(asked: str) -> str:
    """What is said where no run is found. asked: train_run_id."""
    return f"no run matches {asked}" if asked else "no run is recorded here"


def others(ids: t.Sequence[str]) -> list[str]:
    """What is said of runs that a stop did not mean."""
    return [f"{run_id}  runs on: it has another name (-e train_run_id={run_id} ends it)" for run_id in ids]


def status(runs: t.Sequence[dict[str, t.Any]]) -> list[str]:
    """One line per run: id, state, progress or what is to be known."""
    lines = []
    for run in runs:
        told = run["line"] if run["state"] in ("running", "interrupted", "stopped") else ""
        if run["state"] == "failed":
            told = (run.get("diagnosis") or {}).get("what", "")
        if run["state"] == "finished" and run["summary"].get("last_loss") is not None:
            told = f"loss {run['summary']['last_loss']:.4f}  {run['summary']['output']}"
        lines.append(f"{run['id']}  {run['state']}  {told}".rstrip())
    return lines
