# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""train_preflight on the controller: what all nodes do next, and where several are to start, a call to the first one,
which asks the others."""

from __future__ import annotations

import typing as t

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

from ..module_utils import _state


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset(("plan", "staged", "retry", "verify"))

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        super().run(tmp, task_vars)
        known = task_vars or {}
        plan, register = self._task.args["plan"], self._task.args["staged"]
        missing = [host for host in plan["nodes"] if "run" not in (known["hostvars"][host].get(register) or {})]
        if missing:
            return {"failed": True, "msg": f"The run was not staged on {', '.join(missing)}; nothing was started."}
        staged = {host: known["hostvars"][host][register]["run"] for host in plan["nodes"]}
        states = [run["state"] for run in staged.values()]
        step = _state.joint_step(states, retry=boolean(self._task.args.get("retry", False)))
        own = known["inventory_hostname"]
        answer = {
            "changed": False,
            "next": step,
            "proof": staged[own].get("proof", {}),
            "findings": {},
            "unseen": [],
            "allreduce": False,
        }
        if step != "start" or self._task.check_mode or not plan["nodes"][own]["listens"]:
            return answer
        nodes = [
            {
                "host": host,
                "run": plan["id"],
                "node_rank": node["node_rank"],
                "address": node["launch"]["address"],
                **{key: staged[host][key] for key in ("ports", "token")},
            }
            for host, node in plan["nodes"].items()
            if node["listens"]
        ]
        node, first = plan["nodes"][own], next(iter(staged.values()))
        full = self._task.args.get("verify") == "full" and len(nodes) == len(plan["nodes"])
        spec = {
            **{key: node[key] for key in ("user", "root", "folder", "launch")},
            **{key: plan[key] for key in ("id", "name")},
            "host": own,
            "nodes": nodes if len(nodes) > 1 and nodes[0]["host"] == own else [],
            "marks": {host: staged[host]["mark"] for host in plan["nodes"] if host != own} if plan["shared"] else {},
            "port": first["spare_port"] if full else None,
        }
        if not (spec["nodes"] or spec["marks"] or full):
            return answer  # the first one asks this one
        found = self._execute_module(
            module_name="llmops.finetune.train_run",  # which is packed already
            module_args={"state": "compared", "spec": spec},
            task_vars=known,
        )
        return t.cast("dict[str, t.Any]", found if found.get("failed") else {**answer, **found["seen"]})
