# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""train_status on the controller: prints the runs of all hosts, one line each."""

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase

from ..module_utils import _report


class ActionModule(ActionBase):
    _requires_connection = False
    _VALID_ARGS = frozenset(("found", "asked"))

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        super().run(tmp, task_vars)
        known = task_vars or {}
        register = str(self._task.args["found"])
        found = {host: known["hostvars"][host][register] for host in known["ansible_play_hosts_all"]}
        lines = _report.status({host: one["runs"] for host, one in found.items()})
        lines = lines or [_report.nothing(str(self._task.args.get("asked") or ""))]
        lines += _report.others(sorted({run_id for one in found.values() for run_id in one.get("others") or []}))
        for line in lines:
            self._display.display(line)
        return {"changed": False, "lines": lines}
