# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""node_info on the controller: the first call to a host, so what stands in its way is told here, with its remedy."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase

from ..module_utils import _hub
from ..module_utils._errors import FinetuneError
from ..plugin_utils import _connection, _worker


class ActionModule(ActionBase):
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        super().run(tmp, task_vars)
        _worker.no_garbage()
        known = task_vars or {}
        host = known["inventory_hostname"]
        try:
            _connection.refuse_key(str(self._option("private_key_file") or ""), host)
            answer = self._execute_module(module_args=self._arguments(), task_vars=known)
        except FinetuneError as error:
            return {"failed": True, "msg": str(error)}
        except AnsibleError as error:
            said = str(error)
            told, unreachable = self._explain(said, host, ssh=True), isinstance(error, AnsibleConnectionFailure)
            if told is None and "could not be sent" in said:
                # Something there ended before it had read the module; where ssh ends after its pipe, why is lost.
                told, unreachable = self._explain(self._ask_python(known), host, ssh=False), False
            if told is None:
                raise
            return {"failed": True, "unreachable": unreachable, "msg": told}
        if answer.get("failed") and "node" not in answer:
            said = " ".join(str(answer.get(key, "")) for key in ("msg", "module_stderr", "module_stdout", "exception"))
            told = self._explain(said, host, ssh=False) if "change:" not in str(answer.get("msg")) else None
            if told is not None:
                return {"failed": True, "msg": told}
        return t.cast("dict[str, t.Any]", answer)

    def _arguments(self) -> dict[str, t.Any]:
        """Of secrets the node is sent what asks the hub: whatever a module is not to log is struck out of its answer,
        also where a secret is a short word."""
        arguments = dict(self._task.args)
        secrets = arguments.pop("secrets", None) or {}
        hub = arguments.get("hub") or {}
        if hub.get("model"):
            arguments["hub"] = {**_hub.access(hub["model"], secrets)._asdict(), **hub}
        return arguments

    def _ask_python(self, known: dict[str, t.Any]) -> str:
        """What the host says to the name of its Python alone, with nothing sent along."""
        python = str(self._templar.template(known.get("ansible_python_interpreter")) or "auto")
        try:
            answer = self._low_level_execute_command(f"{'python3' if python.startswith('auto') else python} -c pass")
        except AnsibleError as error:
            return str(error)
        return f"{answer['stdout']} {answer['stderr']}"

    def _explain(self, said: str, host: str, *, ssh: bool) -> str | None:
        address, user = self._option("host"), self._option("remote_user")
        told = _connection.explain(said, host=host, address=str(address or ""), user=str(user or ""), ssh=ssh)
        return str(told) if told else None

    def _option(self, name: str) -> t.Any:
        """An option of the connection plugin, where it has that one."""
        try:
            return self._connection.get_option(name)
        except KeyError:
            return None
