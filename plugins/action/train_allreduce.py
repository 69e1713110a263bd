# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""train_allreduce on the controller: one call that waits on each node, and one line of what was measured."""

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase

from ..module_utils import _allreduce, _fit


class ActionModule(ActionBase):
    _VALID_ARGS = frozenset(("plan", "preflight"))

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        super().run(tmp, task_vars)
        known = task_vars or {}
        nodes = self._task.args["plan"]["nodes"]
        found = {host: known["hostvars"][host][self._task.args["preflight"]] for host in nodes}
        if _fit.between(found):
            return {"changed": False, "allreduce": {}}
        own = known["inventory_hostname"]
        asked = {key: nodes[own][key] for key in ("user", "folder")}
        answer = t.cast("dict[str, t.Any]", self._execute_module(module_args=asked, task_vars=known))
        if answer.get("allreduce", {}).get("ok") and own == next(iter(nodes)):
            self._display.display(_allreduce.line(answer["allreduce"], nodes))
        return answer
