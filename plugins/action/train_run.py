# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""train_run on the controller: renders what lands on the node, sends data that it lacks, and makes one call."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

from ansible import constants
from ansible.plugins.action import ActionBase

from ..module_utils import _allreduce, _engine, _fit, _media_send, _sources
from ..module_utils._errors import FinetuneError
from ..plugin_utils import _worker
from ..plugin_utils._render import render


class ActionModule(ActionBase):
    TRANSFERS_FILES = False  # else a folder is made on the node for each call, also where there is nothing to send
    _VALID_ARGS = frozenset(
        (
            "state",
            "plan",
            "user",
            "root",
            "id",
            "name",
            "retry",
            "patience",
            "secrets",
            "verify",
            "preflight",
            "allreduce",
        )
    )

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        super().run(tmp, task_vars)
        _worker.no_garbage()
        known = task_vars or {}
        arguments = dict(self._task.args)
        plan = arguments.pop("plan", None)
        if arguments.get("state") == "compared":
            return {"failed": True, "msg": "Only train_preflight has nodes compared (state=compared); call that one."}
        register = arguments.pop("preflight", "")
        together = arguments.pop("allreduce", "")
        refusal = self._refusal(plan, register, together, known) if register else ""
        if plan:
            try:
                arguments["spec"] = {**self._spec(plan, arguments["state"], known), "refused": bool(refusal)}
            except FinetuneError as error:
                return {"failed": True, "msg": str(error)}
        answer = t.cast("dict[str, t.Any]", self._execute_module(module_args=arguments, task_vars=known))
        return {**answer, "refusal": refusal} if register else answer

    def _refusal(self, plan: dict[str, t.Any], register: str, together: str, known: dict[str, t.Any]) -> str:
        """Why the nodes do not fit together, from what each of them found; all come to the same answer."""
        found = {host: known["hostvars"][host][register] for host in plan["nodes"]}
        answers = {host: (known["hostvars"][host].get(together) or {}).get("allreduce", {}) for host in plan["nodes"]}
        wrong = _fit.between(found) or _allreduce.rows(answers, plan["nodes"])
        return str(_fit.refusal(wrong)) if wrong else ""

    def _spec(self, plan: dict[str, t.Any], state: str, known: dict[str, t.Any]) -> dict[str, t.Any]:
        """What of the plan is for this node."""
        spec = {**plan["nodes"][known["inventory_hostname"]], "id": plan["id"], "name": plan["name"]}
        if state in ("released", "stopped", "absent"):
            return {**spec, "whole": plan["whole"], "engine": engine() if plan["store"] and state == "absent" else {}}
        spec["together"] = all(node["listens"] for node in plan["nodes"].values())
        if state == "started":
            return {**spec, "unit": render("unit.j2", plan=plan, spec=spec)}
        spec.update({key: plan[key] for key in ("request", "resolved", "unread", "environment")})
        spec["files"] = {
            "train.yaml": render("train.yaml.j2", plan=plan, spec=spec),
            "dataset_info.json": render("dataset_info.json.j2", spec=spec),
            "launch.json": json.dumps(spec["launch"], indent=1, sort_keys=True) + "\n",
        }
        if spec["deepspeed"]:
            spec["files"]["deepspeed.json"] = render("deepspeed.json.j2", spec=spec)
        spec["engine"] = engine()
        if spec["model"]["build"] and spec["model"]["missing"]:
            spec["model"] = {**spec["model"], "corpus": _sources.CORPUS.read_text(encoding="utf-8")}
        spec["datasets"] = [self._send(dataset) for dataset in spec["datasets"]]
        spec["media"] = self._send_media(spec["media"])
        spec["model"] = self._send_model(spec["model"])
        return spec

    def _send(self, dataset: dict[str, t.Any]) -> dict[str, t.Any]:
        """Put a dataset that the node lacks where the module can read it."""
        if not dataset["missing"] or self._task.check_mode:
            return dataset
        return {**dataset, "source": self._bring(dataset["local"], dataset["digest"])}

    def _send_media(self, media: dict[str, t.Any]) -> dict[str, t.Any]:
        """The same for a media set, as one archive, which is gone with this ansible-playbook."""
        if not media or not media["missing"] or self._task.check_mode:
            return media
        archive = Path(constants.DEFAULT_LOCAL_TMP) / f"{media['digest']}.tar"
        _media_send.pack(media["parts"], archive)
        return {**media, "source": self._bring(str(archive), media["digest"])}

    def _send_model(self, model: dict[str, t.Any]) -> dict[str, t.Any]:
        """The same for a model of this controller."""
        if not model["local"] or not model["missing"] or self._task.check_mode:
            return model
        archive = Path(constants.DEFAULT_LOCAL_TMP) / f"{model['identity']}.tar"
        files = ((name, f"{model['local']}/{name}") for name in sorted(model["files"]))
        _media_send.write(files, archive, "The model")
        return {**model, "source": self._bring(str(archive), model["identity"])}

    def _bring(self, local: str, name: str) -> str:
        """Where the module can read a file of this controller."""
        if self._connection.transport == "local":
            return local
        folder = self._connection._shell.tmpdir or self._make_tmp_path()
        remote = self._connection._shell.join_path(folder, name)
        return str(self._transfer_file(local, remote))


def engine() -> dict[str, str]:
    """The sources of the engine by file name."""
    folder = Path(str(_engine.__file__)).parent
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))}
