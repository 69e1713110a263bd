# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""train_watch on the controller: one stream of progress from rank 0 until the run ends."""

from __future__ import annotations

import os
import typing as t

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

from ..module_utils import _explain, _report


class ActionModule(ActionBase):
    _VALID_ARGS = frozenset(("plan", "run", "wait", "interval", "refusal"))

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        super().run(tmp, task_vars)
        known = task_vars or {}
        plan, run = self._task.args["plan"], dict(self._task.args["run"])
        if self._task.args.get("refusal"):
            return {"failed": True, "msg": self._task.args["refusal"]}
        spec = plan["nodes"][known["inventory_hostname"]]
        if self._task.check_mode and run["state"] != "finished":
            return {"changed": False, "run": run, "halted": False}
        if not boolean(self._task.args.get("wait", True)):
            self._say(_report.left(run))
            return {"changed": False, "run": run, "halted": False}
        question = {"user": spec["user"], "root": spec["root"], "id": plan["id"]}
        attempt = run.get("attempt")
        play = os.getppid()
        if run["state"] == "running":
            self._say([_report.following(run)])
        while run["state"] == "running":
            if os.getppid() != play:
                os._exit(1)  # the play was killed: this worker of it would wait for ever to hand over its result
            answer = self._execute_module(
                module_name="llmops.finetune.train_run_info",
                module_args={**question, "wait": float(self._task.args.get("interval", 10))},
                task_vars=known,
            )
            if answer.get("failed") or answer.get("unreachable"):
                return t.cast("dict[str, t.Any]", answer)
            run = answer["runs"][0]
            if run["attempt"] != attempt:
                attempt = run["attempt"]
                self._say([_report.restarted(run)])
            if run["state"] == "running" and run["line"]:
                self._say([f"{run['id']}  {run['line']}"])
        self._say(_report.ended(run))
        return {"changed": False, "run": run, "halted": run["state"] in _explain.HALTED}

    def _say(self, lines: t.Sequence[str]) -> None:
        for line in lines:
            self._display.display(line)
