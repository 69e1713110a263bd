# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""train_preflight on the controller: from what staging found on every node, what all of them do next."""

from __future__ import annotations

import typing as t

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

from ..module_utils import _state


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset(("plan", "staged", "retry"))

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        super().run(tmp, task_vars)
        known = task_vars or {}
        plan, register = self._task.args["plan"], self._task.args["staged"]
        staged = {host: known["hostvars"][host][register] for host in plan["nodes"]}
        states = [found["run"]["state"] for found in staged.values()]
        step = _state.joint_step(states, retry=boolean(self._task.args.get("retry", False)))
        return {"changed": False, "next": step}
