# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what a run is to what an apply does about it."""

from __future__ import annotations

import typing as t

from ._engine.state import State

Wish = t.Literal["finished", "staged", "stopped", "absent"]
Step = t.Literal["start", "watch", "nothing", "refuse"]


def aggregate(states: t.Sequence[State]) -> State:
    """What a run is as a whole, from what it is on each node."""
    present = set(states)
    order: tuple[State, ...] = ("failed", "running", "interrupted", "stopped", "absent", "staged", "finished")
    if "finished" in present and present & {"absent", "staged"}:
        return "interrupted"
    return next(state for state in order if state in present)


def joint_step(states: t.Sequence[State], *, retry: bool) -> Step:
    """What an apply does next with all nodes together. A node that does not run joins those that do."""
    now = aggregate(states)
    if now == "running" and set(states) & {"absent", "staged", "interrupted"}:
        return "start"
    return next_step(now, retry=retry)


def next_step(now: State, *, retry: bool) -> Step:
    """What an apply with train_state=finished does next, once everything is staged."""
    steps: dict[State, Step] = {
        "absent": "start",
        "staged": "start",
        "running": "watch",
        "interrupted": "start",
        "failed": "start" if retry else "refuse",
        "stopped": "start" if retry else "nothing",
        "finished": "nothing",
    }
    return steps[now]
