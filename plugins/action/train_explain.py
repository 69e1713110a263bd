# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""train_explain on the controller: why runs do not go on, from what all hosts say of them."""

from __future__ import annotations

import typing as t

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

from ..module_utils import _explain, _report


class ActionModule(ActionBase):
    _requires_connection = False
    _VALID_ARGS = frozenset(("found", "fail"))

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        super().run(tmp, task_vars)
        known = task_vars or {}
        register = str(self._task.args["found"])
        found = {host: known["hostvars"][host][register]["runs"] for host in known["ansible_play_hosts_all"]}
        halted = _explain.halted(found)
        told = [str(_explain.why(runs)) for runs in halted]
        if told and boolean(self._task.args.get("fail", False)):
            run = halted[0][_explain.first(halted[0])]
            short = {key: run.get(key) for key in ("id", "state", "attempt", "log")}
            return {"failed": True, "msg": "\n".join(told), "run": short}
        for text in told or [_report.well(sum(map(len, found.values())))]:
            self._display.display(text)
        return {"changed": False, "told": told}
