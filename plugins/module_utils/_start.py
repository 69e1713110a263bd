# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether an apply starts the run: what its nodes do together for that, and what stands in the way."""

from __future__ import annotations

import typing as t

from . import _assumed, _held, _origin, _state, _store
from ._ranks import Facts
from ._wish.wish import Wish

if t.TYPE_CHECKING:
    from ._plan import Plan


def prepare(plan: Plan, wish: Wish, facts: t.Mapping[str, Facts]) -> None:
    """Of several nodes that are about to start, what each has is compared, and those that do not run yet hold their
    place until then."""
    starts = wish.state == "finished" and _starts(plan, wish)  # what is only staged holds no place: others may train
    several = len(plan.nodes) > 1
    lacking = several and any(_store.is_fresh(plan.id, node) for node in facts.values())
    for node in plan.nodes.values():
        node["compared"] = several and starts
        node["listens"] = node["compared"] and node["state"] != "running"
        node["lacking"] = lacking


def bare(plan: Plan, facts: t.Mapping[str, Facts]) -> bool:
    """Whether a node lacks its account or something of an environment, which it is given before the run is staged.

    True where any task of the role's furnish.yml has something to do on any host.
    """
    builds = plan.environment["current"] and not all(node["environment_whole"] for node in facts.values())
    return builds or bool(plan.s3 or plan.unread) or not all(node["account_exists"] for node in facts.values())


def held(plan: Plan, wish: Wish, facts: t.Mapping[str, Facts]) -> str:
    """Who has what the run needs, where it would start now; or that its GPUs are none."""
    if wish.assumed:
        return str(_assumed.HELD)
    if not wish.present or not _starts(plan, wish):
        return ""
    if missing := _origin.missing(plan.resolved, facts):
        return missing
    for host, node in plan.nodes.items() if wish.state == "finished" else ():
        for key in node["launch"]["leases"] if node["state"] != "running" else ():
            holder = facts[host]["leases"].get(key)
            if holder is not None and not (holder.get("staging") and holder.get("run") == plan.id):
                return str(_held.refusal(key, holder, node["user"], host))
    return ""


def _starts(plan: Plan, wish: Wish) -> bool:
    return _state.joint_step([node["state"] for node in plan.nodes.values()], retry=wish.retry) == "start"
