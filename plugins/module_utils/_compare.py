# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one node of a run sees of the others before they start."""

from __future__ import annotations

import contextlib
import os
import resource
import typing as t
from pathlib import Path

from . import _output, _place, _user
from ._engine import probe
from ._engine.state import Run


def compare(spec: t.Mapping[str, t.Any], *, dry: bool) -> dict[str, t.Any]:
    """findings: what each node sees of the others, from `probe.survey`. unseen: hosts whose marks are not in the folder
    that all are to share. allreduce: whether this node's part of one began.

    spec: the nodes to survey, where this one does that; marks of the others where the folder is shared; a port for the
    all-reduce or None; and the host, user and folder of the run.
    """
    run = Run(Path(spec["folder"]))
    findings = probe.survey(spec["host"], spec["nodes"])
    begins = (
        spec["port"] is not None
        and not dry
        and not any(finding["why"] for seen in findings.values() for finding in seen)
    )

    def as_user() -> dict[str, t.Any]:
        if begins:
            _place.begin_allreduce(run, dict(spec), int(spec["port"]))
        return {"unseen": _output.unseen(run, spec["marks"]) if spec["marks"] else []}

    if begins and os.geteuid() == 0:
        with contextlib.suppress(OSError, ValueError):  # InfiniBand and EFA want memory locked, as the run's unit may
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    more = _user.as_user(spec["user"], as_user) if begins or spec["marks"] else {"unseen": []}
    return {"findings": findings, "allreduce": begins, **more}
