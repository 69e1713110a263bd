# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ray_node on the controller: it sees all hosts, plans the cluster, and makes one call."""

from __future__ import annotations

import secrets
import typing as t

from ansible.plugins.action import ActionBase

from ..module_utils import _ray
from ..module_utils._errors import FinetuneError
from ..plugin_utils._render import render


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset(("state", "user", "root", "facts", "environment", "port", "head"))

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        super().run(tmp, task_vars)
        known = task_vars or {}
        arguments = dict(self._task.args)
        environment = arguments.pop("environment", "")
        head = arguments.pop("head", None)
        facts, port = arguments.pop("facts", ""), arguments.pop("port", _ray.PORT)
        if arguments.get("state", "present") == "absent":
            return t.cast("dict[str, t.Any]", self._execute_module(module_args=arguments, task_vars=known))
        try:
            cluster = head["cluster"] if head else self._plan(facts, port, known)
            spec = _ray.node(cluster, known["inventory_hostname"], environment, joins=bool(head))
        except FinetuneError as error:
            return {"failed": True, "msg": str(error)}
        spec["unit"] = render("ray.unit.j2", spec=spec)
        arguments.update(spec=spec, token=head["token"] if head else "", seal=secrets.token_hex(32))
        answer = t.cast("dict[str, t.Any]", self._execute_module(module_args=arguments, task_vars=known))
        sealed = answer.pop("sealed", "")
        if not head and not answer.get("failed"):
            # for the tasks of the other hosts; nothing of it is shown or recorded
            answer.update(cluster=cluster, token=_ray.sealed(sealed, arguments["seal"]), _ansible_no_log=True)
        return answer

    def _plan(self, register: str, port: int | str, known: dict[str, t.Any]) -> _ray.Cluster:
        hosts = known["ansible_play_hosts_all"]
        facts = {host: known["hostvars"][host].get(register, {}).get("node", {}) for host in hosts}
        asked = {host: self._address(known["hostvars"][host]) for host in hosts}
        return _ray.plan(facts, asked, port)

    @staticmethod
    def _address(variables: t.Mapping[str, t.Any]) -> str:
        return str(variables.get("ray_address") or variables.get("train_address") or "")
