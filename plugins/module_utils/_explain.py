# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a run does not go on, from what all of its nodes say: which rank on which host failed first, and of what."""

from __future__ import annotations

import typing as t

from . import _report, _state
from ._engine import diagnose
from ._errors import FinetuneError

Report = dict[str, t.Any]
"""What train_run_info returns of a run."""

_FOLLOWS = ("", "peer-lost", "ended")
"""Diagnoses of nodes whose ranks only left because another one did."""


HALTED = ("failed", "interrupted")
"""What a run is that does not go on by itself."""


def halted(found: t.Mapping[str, t.Sequence[Report]]) -> list[dict[str, Report]]:
    """The runs that do not go on, each as its hosts have it. found: runs by host."""
    together = _report.by_id(found).values()
    return [runs for runs in together if any(run["state"] in HALTED for run in runs.values())]


def first(runs: t.Mapping[str, Report]) -> str:
    """The host where it began: that of the first error that does not follow from another, else of a killed rank."""
    errors = [error for run in runs.values() for error in run.get("errors") or []]
    own = sorted((error for error in errors if not diagnose.follows(error)), key=lambda error: float(error["time"]))
    for error in own:
        for host, run in runs.items():
            if run.get("node_rank") == error.get("node"):
                return host
    speaks = [host for host, run in runs.items() if (run.get("diagnosis") or {}).get("kind", "") not in _FOLLOWS]
    stands = [host for host, run in runs.items() if run["state"] in HALTED]
    return next(iter([*speaks, *stands, *runs]))


def why(runs: t.Mapping[str, Report]) -> FinetuneError:
    """For people. runs: one run as each host has it, in rank order."""
    host = first(runs)
    run = runs[host]
    now = _state.aggregate([other["state"] for other in runs.values()])
    place = f" on {host}" if len(runs) > 1 else ""
    others = [f"{other}: {_brief(report)}" for other, report in runs.items() if other != host]
    where = [f"{host}:{run.get('log', '')}" if place else run.get("log", ""), *run.get("tail", []), *others]
    if now == "interrupted":
        told = next((run["diagnosis"] for run in runs.values() if is_notice(run)), None)
        if told:
            return FinetuneError(f"Run {run['id']} was interrupted. {told['what']}", change=told["change"])
        gone = [other for other, report in runs.items() if report["state"] in ("interrupted", "absent")]
        return FinetuneError(
            f"Run {run['id']} was interrupted{' on ' + ', '.join(gone) if len(runs) > 1 else ''}: "
            "a supervisor is gone or was asked to end.",
            where="\n          ".join(where),
            change="the same command again resumes it from the newest whole checkpoint",
        )
    told = run.get("diagnosis") or {}
    return FinetuneError(
        f"Run {run['id']} failed in attempt {run['attempt']}{place}. {told.get('what', '')}".rstrip(),
        where="\n          ".join(where),
        change=f"{told.get('change', 'read the log')}; the same request again: -e train_retry=true",
    )


def is_notice(run: Report) -> bool:
    """It left because EC2 said so."""
    return run["state"] == "interrupted" and (run.get("diagnosis") or {}).get("kind") == diagnose.NOTICE


def _brief(run: Report) -> str:
    told = run.get("diagnosis") or {}
    return f"{run['state']}. {told.get('what', '')}".rstrip(". ") + ("." if told.get("what") else "")
