# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""train_status on the controller: prints runs, one line each."""

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase

from ..module_utils import _report


class ActionModule(ActionBase):
    _requires_connection = False
    _VALID_ARGS = frozenset(("runs", "others", "asked"))

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        super().run(tmp, task_vars)
        host = (task_vars or {})["inventory_hostname"]
        lines = _report.status(self._task.args["runs"]) or [_report.nothing(str(self._task.args.get("asked") or ""))]
        lines += _report.others(self._task.args.get("others", []))
        for line in lines:
            self._display.display(f"{host}  {line}")
        return {"changed": False, "lines": lines}
