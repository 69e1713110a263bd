# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""train_fetch on the controller: gets the files that differ, and trusts none before its digest is right."""

from __future__ import annotations

import os
import typing as t
from pathlib import Path

from ansible.plugins.action import ActionBase

from ..module_utils import _changes
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
        answer = self._execute_module(module_args=arguments, task_vars=known)
        if answer.get("failed"):
            return t.cast("dict[str, t.Any]", answer)
        left: dict[str, dict[str, t.Any]] = answer["files"]
        wanted = [name for name, file in left.items() if not is_there(to / name, file)]
        changes = [
            {"action": "update" if (to / name).exists() else "create", "path": str(to / name)} for name in wanted
        ]
        if wanted and not self._task.check_mode:
            if self._task.become:  # they may be readable by their account alone
                lent = {"through": self._make_tmp_path(), "files": wanted}
                answer = self._execute_module(module_args={**arguments, **lent}, task_vars=known)
                if answer.get("failed"):
                    return t.cast("dict[str, t.Any]", answer)
            try:
                for name in wanted:
                    self._bring(answer["files"][name], to / name)
            except FinetuneError as error:
                return {"failed": True, "msg": str(error), "changed": True}
        for run_id in dict.fromkeys(name.partition("/")[0] for name in left):
            self._display.display(f"{run_id}  is in {to / run_id}")
        if not left:
            self._display.display("no finished run is meant")
        return {**_changes.answer(changes, self._task.diff), "files": left}

    def _bring(self, file: dict[str, t.Any], path: Path) -> None:
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


def is_there(path: Path, file: dict[str, t.Any]) -> bool:
    """Whether the file is on this controller as the run left it."""
    return path.is_file() and path.stat().st_size == file["size"] and files.sha256(path) == file["sha256"]
