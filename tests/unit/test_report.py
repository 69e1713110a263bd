# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person reads: status, the end of a watch, refusals that name another run."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _report

SUMMARY = {"first_loss": 2.0, "last_loss": 1.5, "steps": 8, "output": "/r/x-1/output", "weights": ["/r/x-1/output/w"]}


def report(now: str, **more: t.Any) -> dict[str, t.Any]:
    return {"id": "x-1", "state": now, "line": "step 1/2", "attempt": 1, "summary": None, "diagnosis": None, **more}


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (report("running"), "x-1  running  step 1/2"),
        (report("interrupted"), "x-1  interrupted  step 1/2"),
        (report("stopped"), "x-1  stopped  step 1/2"),
        (report("staged"), "x-1  staged"),
        (report("failed", diagnosis={"what": "The disk is full."}), "x-1  failed  The disk is full."),
        (report("failed"), "x-1  failed"),
        (report("finished", summary={"last_loss": 1.5, "output": "/o"}), "x-1  finished  loss 1.5000  /o"),
        (report("finished", summary={"last_loss": None, "output": "/o"}), "x-1  finished"),
    ],
)
def test_status_is_one_line(run: dict[str, t.Any], expected: str) -> None:
    assert _report.status({"a": [run]}) == [f"a  {expected}"]


def test_a_run_of_several_hosts_is_one_line_and_one_for_each_that_differs() -> None:
    found = {"a": [report("running")], "b": [report("interrupted")], "c": [report("running")]}
    assert _report.status(found) == ["3 nodes  x-1  running  step 1/2", "    b  interrupted  step 1/2"]
    whole = {host: [report("finished", summary={"last_loss": 1.0, "output": "/o"})] for host in "ab"}
    assert _report.status({**whole, "c": []}) == ["2 nodes  x-1  finished  loss 1.0000  /o"]


def test_the_end_of_a_watch_says_what_to_type_next() -> None:
    told = _report.ended(report("finished", summary=SUMMARY))
    assert told[0] == "Run x-1 is finished."
    assert "train_set" in told[-1]
    assert "train_retry=true" in _report.ended(report("stopped"))[0]
    assert _report.ended(report("interrupted")) == []
    assert "attempt 2 from step 5. Lost." in _report.restarted(
        report("running", attempt=2, from_step=5, diagnosis={"what": "Lost."})
    )


def test_a_run_that_nobody_waits_for_says_how_it_is_seen_and_ended() -> None:
    told = "\n".join(_report.left(report("running")))
    assert all(word in told for word in ("goes on", "status", "train_wait=false", "stop with -e train_run_id=x-1"))
    assert "is finished" in _report.left(report("finished", summary=SUMMARY))[0]
    assert "Ctrl-C" in _report.following(report("running"))


def test_a_stop_tells_of_the_runs_it_did_not_mean() -> None:
    assert _report.others([]) == []
    assert "-e train_run_id=y-2" in _report.others(["y-2"])[0]
