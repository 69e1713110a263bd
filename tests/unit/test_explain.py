# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which rank failed first, and what is said of it."""

from __future__ import annotations

import typing as t

from ansible_collections.llmops.finetune.plugins.module_utils import _explain

FULL = {"kind": "disk-full", "what": "The disk is full.", "change": "free space"}
LOST = {"kind": "peer-lost", "what": "Another rank went away.", "change": "look at the first failing rank"}


def report(now: str, node: int = 0, **more: t.Any) -> dict[str, t.Any]:
    run = {"id": "x-1", "state": now, "attempt": 2, "log": f"/l{node}", "tail": [f"words of {node}"], "node_rank": node}
    return {**run, "diagnosis": None, "errors": [], **more}


def error(rank: int, node: int, kind: str, time: float) -> dict[str, t.Any]:
    return {"rank": rank, "node": node, "type": kind, "message": "", "time": time}


def test_one_node_speaks_for_itself() -> None:
    text = str(_explain.why({"a": report("failed", diagnosis=FULL)}))
    wanted = ("failed in attempt 2. The disk is full.", "/l0", "words of 0", "free space", "train_retry=true")
    assert all(word in text for word in wanted) and " on a" not in text


def test_the_host_of_the_first_error_of_its_own_is_named_with_its_last_words() -> None:
    errors = [error(0, 0, "PeerLost", 1.0), error(2, 2, "OSError", 2.0), error(1, 1, "ValueError", 3.0)]
    runs = {
        "a": report("failed", 0, diagnosis=LOST, errors=errors),
        "b": report("failed", 1, diagnosis=FULL, errors=errors),
        "c": report("failed", 2, diagnosis=FULL, errors=errors),
    }
    assert _explain.first(runs) == "c"
    text = str(_explain.why(runs))
    assert "failed in attempt 2 on c. The disk is full." in text
    assert "c:/l2" in text and "words of 2" in text and "words of 0" not in text
    assert "a: failed. Another rank went away." in text


def test_a_killed_rank_leaves_no_error_and_its_node_is_found_all_the_same() -> None:
    killed = {"kind": "killed", "what": "A rank was killed (SIGKILL).", "change": "see the kernel log"}
    runs = {
        "a": report("failed", 0, diagnosis=LOST, errors=[error(0, 0, "PeerLost", 1.0)]),
        "b": report("failed", 1, diagnosis=killed),
    }
    assert "failed in attempt 2 on b. A rank was killed" in str(_explain.why(runs))


def test_an_interrupted_run_names_the_nodes_that_are_missing() -> None:
    runs = {"a": report("interrupted", 0), "b": report("finished", 1), "c": report("absent", 2)}
    text = str(_explain.why(runs))
    assert "was interrupted on a, c" in text and "resumes it" in text
    assert "interrupted:" in str(_explain.why({"a": report("interrupted")})).replace(" a supervisor", "")
