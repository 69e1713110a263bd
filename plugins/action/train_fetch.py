# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""train_fetch on the controller: gets the files that differ, and trusts none before its digest is right."""

from __future__ import annotations

import os
import typing as t
from pathlib import Path

from ansible.plugins.action import ActionBase

from ..module_utils._engine import files
from ..module_utils._errors import FinetuneError


class ActionModule(ActionBase):
    _VALID_ARGS = frozenset(("user", "root", "id", "name", "to"))

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        super().run(tmp, task_vars)
        known = task_vars or {}
        arguments = dict(self._task.args)
        to = Path(str(arguments.pop("to", "") or "results")).expanduser()
        to = to if to.is_absolute() else Path(os.environ.get("PWD") or os.getcwd()) / to
        if self._task.become and not self._task.check_mode:
            arguments["through"] = self._connection._shell.join_path(self._make_tmp_path(), "results")
        answer = self._execute_module(module_args=arguments, task_vars=known)
        if answer.get("failed"):
            return t.cast("dict[str, t.Any]", answer)
        changes: list[dict[str, str]] = []
        try:
            for run in answer["runs"]:
                for name, file in run["files"].items():
                    changes += self._bring(file, to / run["id"] / name)
        except FinetuneError as error:
            return {"failed": True, "msg": str(error), "changes": changes, "changed": bool(changes)}
        for run in answer["runs"]:
            self._display.display(f"{run['id']}  {len(run['files'])} files in {to / run['id']}")
        if not answer["runs"]:
            self._display.display("no finished run is meant")
        return {"changed": bool(changes), "changes": changes, "runs": answer["runs"]}

    def _bring(self, file: dict[str, t.Any], path: Path) -> list[dict[str, str]]:
        there = path.is_file()
        if there and path.stat().st_size == file["size"] and files.sha256(path) == file["sha256"]:
            return []
        change = {"action": "update" if there else "create", "path": str(path)}
        if self._task.check_mode:
            return [change]
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        self._connection.fetch_file(file["path"], str(part))
        if files.sha256(part) != file["sha256"]:
            part.unlink()
            raise FinetuneError(
                f"{path.name} is not what the run left.",
                where=file["path"],
                change="apply the run again, which tells what was damaged, and fetch again",
            )
        part.replace(path)
        return [change]
