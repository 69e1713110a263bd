# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What earlier applies recorded: of this run what a plan keeps, of others how it differs from them."""

from __future__ import annotations

import typing as t

from . import _hub, _request
from ._ranks import Facts

if t.TYPE_CHECKING:
    from ._plan import Plan

Resolved = t.Dict[str, t.Any]


class Recorded(t.NamedTuple):
    run: t.Mapping[str, t.Any]
    """What the first host knows of it."""
    resolved: Resolved
    """What its request came to; empty where it is new, or is to be resolved again."""
    kept: bool
    """It goes on as recorded: there are as many ranks."""

    @property
    def state(self) -> str:
        return str(self.run.get("state", "absent"))

    @property
    def commit(self) -> str:
        """Of the model; empty where it was recorded as a branch, which ranks fetched themselves."""
        revision = str(self.resolved.get("model", {}).get("revision", ""))
        return revision if _hub.COMMIT.fullmatch(revision) else ""


def find(run_id: str, node: Facts, world_size: int, *, refresh: bool) -> Recorded:
    """node: facts of the first host; refresh: what is recorded does not count."""
    run = node["runs"].get(run_id, {})
    resolved = {} if refresh else dict(run.get("resolved") or {})
    return Recorded(run, resolved, resolved.get("world_size") == world_size)


def join(record: Recorded, fresh: Resolved, *, of_hub: bool) -> tuple[Recorded, Resolved]:
    """The record as the run keeps it, and what its request comes to today: to one commit of a hub's model."""
    if not record.kept:  # other ranks go on with the model that the first ones had
        return record, {**fresh, "model": record.resolved["model"]} if of_hub and record.commit else fresh
    arguments = record.resolved["arguments"]
    order = dict.fromkeys([*fresh["arguments"], *arguments])  # that of a new plan: the files come out the same
    kept = {**record.resolved, "arguments": {key: arguments[key] for key in order if key in arguments}}
    if of_hub and not record.commit:
        kept["model"] = fresh["model"]
    return record._replace(resolved=kept), fresh


def difference(plan: Plan, node: Facts) -> list[str]:
    """How a new run differs from the newest one of the same name that did not fail: what is asked for besides
    arguments, then the arguments as they come out."""
    others = [run for other, run in node["runs"].items() if other != plan.id and run.get("request")]
    if plan.id in node["runs"] or not others:
        return []
    last = max(others, key=lambda run: (run["state"] != "failed", float(run.get("created") or 0)))
    old, new = ({**request, "name": "", "args": {}} for request in (last["request"], plan.request))
    lines = _request.difference(old, new)
    lines += _request.arguments(last["resolved"]["arguments"], plan.resolved["arguments"], plan.origins)
    if not lines:
        written = _request.difference(last["request"]["args"], plan.request["args"])
        lines = [f"{line}, which comes to the same" for line in written]
    return [f"since   {last['id']} ({last['state']})", *(f"        {line}" for line in lines)]
