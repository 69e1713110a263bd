#!/usr/bin/python
# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: a run on one node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: train_run
short_description: A fine-tuning run on a node
version_added: 0.1.0
description:
  - Brings one run on one node to a state, from the plan that M(llmops.finetune.train_plan) made.
  - The action plugin of the same name renders the files and sends the data; the node does the rest in one call.
author: llmops.finetune contributors (@llmops-finetune)
options:
  state:
    description:
      - V(staged) has everything in place that the run needs.
      - V(compared) has what this node sees of the others. M(llmops.finetune.train_preflight) asks for it.
      - V(started) has its supervisor running.
      - V(released) gives up the place that staging took among several nodes, its leases and its port. Nothing that runs
        is touched.
      - V(stopped) has nothing running; a checkpoint is saved first.
      - V(absent) has the folder of the run gone, and what it shares with other nodes, unless the O(plan) leaves some of
        these out. Environments, models, datasets, tokens and media stay.
    type: str
    choices: [staged, compared, started, released, stopped, absent]
    required: true
  plan:
    description: What M(llmops.finetune.train_plan) returned. The action plugin reads it.
    type: dict
  spec:
    description: What of the plan is for this node, with rendered files. Set by the action plugin.
    type: dict
  user:
    description: The account that runs belong to, when there is no O(plan). Empty as for M(llmops.finetune.node_info).
    type: str
    default: ""
  root:
    description: Folder on the node that holds the runs, when there is no O(plan).
    type: str
    default: ~/llmops
  id:
    description: The run to stop or remove, when there is no O(plan); V(*) and V(?) stand for any letters.
    type: str
    default: ""
  name:
    description: Without O(plan) and O(id), every run of this name is stopped or removed. Empty for all.
    type: str
    default: ""
  secrets:
    description: >-
      Environment variables of the ranks that are kept in a file of their own. With O(state=staged), and with
      O(state=absent) for a run that has a store in S3.
    type: dict
    default: {}
  retry:
    description: Try a failed or stopped run again, and restore damaged results.
    type: bool
    default: false
  verify:
    description:
      - With O(state=staged) and several nodes, how the model is held against that of the other nodes. V(quick) compares
        names, sizes and the first megabyte of every file, V(full) every byte.
    type: str
    choices: [quick, full]
    default: quick
  preflight:
    description:
      - With O(state=started) and several nodes, name of the variable in which each host registered
        M(llmops.finetune.train_preflight). Where the nodes do not fit together nothing is started.
    type: str
    default: ""
  allreduce:
    description: The same of M(llmops.finetune.train_allreduce).
    type: str
    default: ""
  patience:
    description: Seconds to wait for a run to end when it is stopped.
    type: float
    default: 180
attributes:
  check_mode:
    description: Predicts RV(changes) and writes nothing.
    support: full
  diff_mode:
    description: Shows RV(changes), one a line; contents are not shown.
    support: partial
  idempotent:
    description: A second call changes nothing.
    support: full
"""

EXAMPLES = r"""
- name: End whatever runs under this root
  llmops.finetune.train_run:
    state: stopped

- name: Have everything in place
  llmops.finetune.train_run:
    state: staged
    plan: "{{ plan }}"
"""

RETURN = r"""
runs:
  description: What the runs are that were stopped or removed.
  returned: with O(state=stopped) and O(state=absent)
  type: list
  elements: dict
others:
  description: Ids of the runs under the root that are running and were not meant.
  returned: with O(state=stopped) and O(state=absent)
  type: list
  elements: str
seen:
  description: What this node sees of the others - findings, unseen and allreduce, as
    M(llmops.finetune.train_preflight) returns them.
  returned: with O(state=compared)
  type: dict
changes:
  description: What was changed, or in check mode would be, as dicts of action and path.
  returned: always
  type: list
  elements: dict
refusal:
  description: Why nothing was started, as a person reads it; empty where the nodes fit together.
  returned: with O(state=started)
  type: str
run:
  description: What the run is now - id, state, progress, line to read, summary, diagnosis, and what of it must be the
    same on all nodes. Where it waits for others to start, the ports that they try, and a token with which its listener
    is asked to try theirs.
  returned: with O(state=staged) and O(state=started)
  type: dict
"""

import contextlib  # noqa: E402
import os  # noqa: E402
import pathlib  # noqa: E402
import typing as t  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

from ..module_utils import _changes, _compare, _place, _run, _unit, _user  # noqa: E402
from ..module_utils._engine.state import Run, observe  # noqa: E402
from ..module_utils._errors import FinetuneError  # noqa: E402

Answer = dict[str, t.Any]


def staged(spec: Answer, given: Answer, changes: _changes.Changes) -> Answer:
    from ..module_utils import _stage  # a node compiles what it imports in each call, and the others need none of it

    with contextlib.ExitStack() as opened:
        wanted = {
            **spec,
            "datasets": [with_stream(dataset, opened) for dataset in spec["datasets"]],
            "media": spec["media"] and with_stream(spec["media"], opened),
            "model": with_stream(spec["model"], opened),
        }
        return as_user(
            spec,
            lambda: changed(
                changes,
                _stage.stage(
                    wanted, changes, retry=given["retry"], secrets=given["secrets"], full=given["verify"] == "full"
                ),
            ),
            changes,
        )


def with_stream(part: Answer, opened: contextlib.ExitStack) -> Answer:
    """What was sent of a part, opened as the login user, who may read it."""
    stream = opened.enter_context(open(part["source"], "rb")) if part.get("source") else None
    return {**part, "stream": stream}


def compared(spec: Answer, given: Answer, changes: _changes.Changes) -> Answer:
    return changed(changes, _compare.compare(spec, dry=changes.dry))


def started(spec: Answer, given: Answer, changes: _changes.Changes) -> Answer:
    run = Run(pathlib.Path(spec["folder"]))
    if spec.get("refused"):  # the nodes do not fit together: give up this one's place
        return as_user(spec, lambda: _run.give_up(run, dry=changes.dry), changes)
    asked = as_user(spec, lambda: changed(changes, {"token": _run.ask_start(spec, changes)}), changes)
    if not asked["token"]:
        return {**as_user(spec, lambda: _run.report(run), changes), "changes": asked["changes"]}
    if spec["systemd"]:
        pid = _unit.start(run.id, spec["unit"], spec["folder"])
    else:
        pid = as_user(spec, lambda: {"pid": _place.spawn(run, spec, "supervisor")}, changes)["pid"]
    try:
        now = as_user(spec, lambda: _run.wait_until_started(run, asked["token"], pid), changes)
    except FinetuneError:
        if spec["systemd"]:
            _unit.remove(run.id, spec["folder"])
        raise
    return {**now, "changes": asked["changes"]}


def released(spec: Answer, given: Answer, changes: _changes.Changes) -> Answer:
    return as_user(spec, lambda: _run.give_up(Run(pathlib.Path(spec["folder"])), dry=changes.dry), changes)


def ended(spec: Answer, given: Answer, changes: _changes.Changes) -> Answer:
    """Stop, or stop and remove, each run that is meant."""
    from ..module_utils import _remove  # as above

    root = pathlib.Path(_user.expand(spec["root"], spec["user"]))
    how = {"patience": given["patience"]}

    def end() -> Answer:
        meant = _run.find(root, spec["id"], spec["name"])
        if given["state"] == "stopped":
            runs = [_run.stop(run, changes, **how) for run in meant]
        else:
            runs = [_remove.remove(run, changes, spec=spec, secrets=given["secrets"], **how) for run in meant]
        others = [run.id for run in _run.find(root, "", "") if run not in meant and observe(run) == "running"]
        return changed(changes, {"runs": runs, "others": others})

    answer = as_user(spec, end, changes)
    if os.geteuid() == 0:
        for run in answer["runs"]:
            answer["changes"] += without_unit(run["id"], str(root / "runs" / run["id"]), answer["changes"], changes.dry)
    return answer


def without_unit(run_id: str, folder: str, made: list[dict[str, str]], dry: bool) -> list[dict[str, str]]:
    """No unit starts the run again. The change to tell: none where the end of the run told it already."""
    if not _unit.installed(run_id, folder):
        return []
    if not dry:
        _unit.remove(run_id, folder)
    told = any(change["path"] == folder for change in made)
    return [] if told else [{"action": "remove", "path": str(_unit.path(run_id))}]


def changed(changes: _changes.Changes, answer: Answer) -> Answer:
    return {**answer, "changes": changes.made}


def as_user(spec: Answer, work: t.Callable[[], Answer], changes: _changes.Changes) -> Answer:
    return _user.as_user(spec["user"], work, dry=changes.dry)


ACT = {
    "staged": staged,
    "compared": compared,
    "started": started,
    "released": released,
    "stopped": ended,
    "absent": ended,
}
"""By state."""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {
                "type": "str",
                "choices": list(ACT),
                "required": True,
            },
            "plan": {"type": "dict"},
            "spec": {"type": "dict"},
            "user": {"type": "str", "default": ""},
            "root": {"type": "str", "default": "~/llmops"},
            "id": {"type": "str", "default": ""},
            "name": {"type": "str", "default": ""},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "retry": {"type": "bool", "default": False},
            "verify": {"type": "str", "choices": ["quick", "full"], "default": "quick"},
            "preflight": {"type": "str", "default": ""},
            "allreduce": {"type": "str", "default": ""},
            "patience": {"type": "float", "default": 180},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)
    given = module.params
    changes = _changes.Changes(dry=module.check_mode)
    spec = given["spec"] or {
        "user": _user.account(given["user"]),
        **{key: given[key] for key in ("root", "id", "name")},
    }
    try:
        answer = ACT[given["state"]](spec, given, changes)
    except FinetuneError as error:
        module.fail_json(msg=str(error))
    made = answer.pop("changes")
    told = {"compared": {"seen": answer}, "stopped": answer, "absent": answer}.get(given["state"], {"run": answer})
    asked = {key: spec[key] for key in ("user", "root", "id", "name")}  # the rest holds the sources of the engine
    invocation = {"module_args": {"state": given["state"], "spec": asked}}
    module.exit_json(**_changes.answer(made, module._diff), **told, invocation=invocation)


if __name__ == "__main__":
    main()
