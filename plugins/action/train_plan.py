# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""train_plan on the controller: it sees the variables and what every node is, and decides; nothing is changed."""

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase

from ..module_utils import (
    _assumed,
    _before,
    _chain,
    _dataset,
    _describe,
    _hub,
    _identity,
    _lookup,
    _plan,
    _profile,
    _ranks,
    _schema,
    _secrets,
    _sources,
    _store,
    _trackers,
    _wish,
)
from ..module_utils._errors import Attempts, FinetuneError
from ..module_utils._wish import names
from ..module_utils._wish.imported import Imported
from ..module_utils._wish.wish import Wish
from ..plugin_utils import _import, _recipes, _s3, _worker

MADE = "llmops_runs"
"""A fact: by name, the runs that were planned in this play, for later ones that begin with them."""


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _requires_connection = False
    _VALID_ARGS = frozenset(("facts",))

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        super().run(tmp, task_vars)
        _worker.no_garbage()
        known = task_vars or {}
        register = self._task.args.get("facts")
        member = self._templar.template(known.get("train_member"))
        try:
            told = Attempts()
            told(names.refuse_misspelt, known)
            secrets = told(_secrets.read, self._templar.template(known.get("train_secrets")))
            schemas = _sources.schemas()
            variables = {name: self._templar.template(known[name]) for name in names.INPUTS if name in known}
            recipes = _recipes.read()

            def read(given: dict[str, t.Any]) -> Wish:
                wish = _wish.read(given, schemas, recipes, self._imported(given, known, schemas))
                _profile.refuse_missing(wish)
                return wish

            if "train_member" in known:
                if not register:  # a mistake in a later one is told before the first one trains
                    _chain.check(variables, self._templar.template(known.get("train_chain") or []), read)
                variables = _chain.over(variables, member)
            made = known.get("ansible_facts", {}).get(MADE, {})
            wish = told(read, variables)
            told.refuse()
            if not register:
                return {
                    "changed": False,
                    "name": wish.name,
                    "stage": wish.stage,
                    "media": {"taken": wish.media.taken, "folder": "".join(wish.media.folders)},
                    "model": wish.model,
                    "hub": {**wish.hub, **_in_s3(wish, secrets)},
                    "folders": wish.folders,
                    "environment": _profile.looked_for(
                        _profile.find(wish.environment, wish.lock, _lookup.folders(known)),
                        {name: self._templar.template(known.get(name)) for name in _profile.DEEPER},
                    ),
                    "before": [name for name in (wish.begins_with, wish.rewarded_by) if name],
                    "datasets": _dataset.on_nodes([*wish.datasets, *wish.eval_datasets]),
                }
            facts: t.Mapping[str, t.Any] = {
                host: known["hostvars"][host][register]["node"] for host in known["ansible_play_hosts_all"]
            }
            _ranks.refuse_incomplete({host: known["hostvars"][host].get("train_nodes") for host in facts})
            facts = _assumed.over(wish.assumed, facts)
            fetched = _s3.fetch(wish.objects, secrets)
            sources = _sources.sources(wish, _lookup.folders(known), facts, fetched)
            model = _sources.model(wish, _lookup.folders(known))
            profile = _profile.find(wish.environment, wish.lock, _lookup.folders(known))
            schema = schemas[wish.environment]
            facts = _before.with_stored(wish.fetched, facts, made, lambda name: _s3.earlier(wish.store, name, secrets))
            corpus = _sources.corpus_digest()
            who = _identity.find(wish, sources, facts, corpus_digest=corpus, model=model, made=made)
            facts = self._recorded(who, facts, secrets)
            plan = _plan.make(
                who,
                sources,
                facts,
                schema=schema._replace(packages=profile.packages or schema.packages),
                addresses={host: str(known["hostvars"][host].get("train_address") or "") for host in facts},
                environment=profile.identity,
                variables=_trackers.told(secrets),
                store=_profile.find(_store.ENVIRONMENT, "", []).identity["digest"],
            )
        except FinetuneError as error:
            return {"failed": True, "msg": str(_chain.of_member(member, error))}
        plan.notices += names.unheard(known, schema.keys, wish.args)
        plan.notices += _chain.passed_over(known.get("train_chain"), member)
        for line in _describe.lines(plan, sources, facts):
            self._display.display(line)
        result = plan.as_dict()
        result["environment"]["path"] = profile.path
        run = {"id": plan.id, "resolved": plan.resolved, "left": plan.left}
        return {"changed": False, "plan": result, "ansible_facts": {MADE: {**made, plan.name: run}}}

    def _recorded(
        self, who: _identity.Identity, facts: t.Mapping[str, t.Any], secrets: dict[str, t.Any]
    ) -> t.Mapping[str, t.Any]:
        """The facts, with what the store has recorded of a run that the hosts know nothing of."""
        if not who.wish.store or not who.wish.present or not _store.unrecorded(who.id, facts):
            return facts
        record = _s3.record(f"{who.wish.store}/{who.id}", secrets)
        return _store.with_record(who.id, record, facts, who.wish.output_root)

    def _imported(
        self, variables: dict[str, t.Any], known: t.Mapping[str, t.Any], schemas: t.Mapping[str, _schema.Schema]
    ) -> Imported | None:
        """The file of train_config, where there is one."""
        wanted = str(variables.get("train_config") or "")
        return _import.find(wanted, _lookup.folders(known), schemas) if wanted else None


def _in_s3(wish: Wish, secrets: dict[str, str]) -> dict[str, t.Any]:
    """What this controller is told of a model there; nodes are not asked before they have what speaks to S3."""
    return {"told": _s3.model(wish.model, wish.model_revision, secrets)} if _hub.of_s3(wish.model) else {}
