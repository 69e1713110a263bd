# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan: from a wish, what the nodes are and what is recorded, to what is on each node and how its ranks start.

Pure: nothing here reads a file or a clock.
"""

from __future__ import annotations

import typing as t
from dataclasses import asdict, dataclass, field, replace
from functools import partial

from . import (
    _addresses,
    _assumed,
    _dataset,
    _fastest,
    _hub,
    _media_send,
    _media_set,
    _memory,
    _nodes,
    _notices,
    _origin,
    _output,
    _parallel,
    _pin,
    _ranks,
    _report,
    _request,
    _resolve,
    _schema,
    _sent_model,
    _situation,
    _state,
    _store,
    _tokens,
)
from ._dataset import Source
from ._engine import base_model
from ._errors import FinetuneError
from ._ranks import Facts
from ._wish.wish import ASKED, DEMO_MODEL, Wish


@dataclass
class Plan:
    id: str
    name: str
    request: _request.Request
    resolved: dict[str, t.Any]
    origins: dict[str, str]
    recorded: bool
    """An earlier apply resolved this request; its record is reused."""
    nodes: dict[str, dict[str, t.Any]]
    """Per host: rank, root, user, state, files to write, datasets, model, launch."""
    environment: dict[str, t.Any] = field(default_factory=dict)
    difference: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    shared: str = ""
    """The folder in which all nodes have checkpoints and results in common; empty where each has its own."""
    store: dict[str, str] = field(default_factory=dict)
    """Where in S3 its checkpoints and results go, and the lock of what sends them; empty for nowhere."""
    whole: bool = True
    """These are all hosts of the run: what they share goes with it."""
    unread: dict[str, str] = field(default_factory=dict)
    """Datasets whose records no Python on a node can read before the environment is there, and why."""
    model: dict[str, t.Any] = field(default_factory=dict)
    """Where its model comes from, which is sent from the controller: folder, and digests of its files."""
    media: dict[str, t.Any] = field(default_factory=dict)
    """The images, videos and audios that its datasets bring along: digest, number, and where they come from."""
    tokens: dict[str, t.Any] = field(default_factory=dict)
    """Where its data is tokenized when it is staged: the digest of what decides the tokens."""
    memory: dict[str, t.Any] = field(default_factory=dict)
    """What a rank needs of its GPU, by an estimate: told in lines, estimate, free; empty where nothing would start."""
    left: dict[str, t.Any] = field(default_factory=dict)
    """What a later run of the same play that begins with this one takes its memory from."""
    held: str = ""
    """Why an apply would be refused now: another run has what this one needs. Empty when nothing stands in the way."""

    def as_dict(self) -> dict[str, t.Any]:
        return asdict(self)


def request(
    wish: Wish, sources: t.Sequence[Source], corpus_digest: str, sent: _sent_model.Sent | None = None
) -> _request.Request:
    """The wish as its identity: what the author wrote, datasets and a model that is sent by content, the embedded model
    by its recipe."""
    model: dict[str, t.Any] = {"name": wish.model, "revision": wish.model_revision}
    if wish.model == DEMO_MODEL:
        model = {"name": DEMO_MODEL, "recipe": base_model.identity(corpus_digest)}
    if sent:
        model = {"name": _sent_model.NAME, "digest": sent.digest}
    return {
        "name": wish.name,
        "recipe": wish.recipe,
        "args": wish.args,
        "model": model,
        "datasets": [_identity(source) for source in sources if not source.evaluates],
        "eval_datasets": [_identity(source) for source in sources if source.evaluates],
        "engine": wish.engine,
        "global_batch_size": wish.global_batch_size or "auto",
        "processes_per_node": wish.processes_per_node or "auto",
        **({"fit": wish.fit, "quantize": wish.quantizes} if wish.fit != ASKED else {}),
    }


def identify(
    wish: Wish,
    sources: t.Sequence[Source],
    facts: t.Mapping[str, Facts],
    *,
    corpus_digest: str,
    model: _sent_model.Sent | None = None,
    made: t.Mapping[str, dict[str, t.Any]] | None = None,
) -> tuple[Wish, _request.Request]:
    """The wish with what it begins with, and who the run is; arguments are those of `make`."""
    wish = _origin.begin(wish, facts, made or {})
    if _media_send.plan(sources):  # the run has a media_dir of its own; where its content came from does not count
        wish = replace(wish, args={key: value for key, value in wish.args.items() if key != "media_dir"})
    return wish, request(wish, sources, corpus_digest, model)


def _identity(source: Source) -> dict[str, t.Any]:
    return _dataset.identity(source.dataset, source.digest, _media_set.digest(source.media_files))


def make(
    wish: Wish,
    sources: t.Sequence[Source],
    facts: t.Mapping[str, Facts],
    *,
    corpus_digest: str,
    environment: dict[str, str],
    schema: _schema.Schema,
    addresses: t.Mapping[str, str] | None = None,
    model: _sent_model.Sent | None = None,
    made: t.Mapping[str, dict[str, t.Any]] | None = None,
    variables: t.Mapping[str, str] | None = None,
    store: str = "",
) -> Plan:
    """The plan for hosts in rank order. environment: name and digest of the lock that is current; schema: what it
    takes; addresses: train_address by host; model: that is sent; made: by name, runs that were planned before in the
    same play; variables: what is known of train_secrets; store: digest of the lock of what speaks to S3."""
    if not facts:
        raise FinetuneError(
            "There is no host to train on.", where="inventory, group trainers", change="add a host or widen --limit"
        )
    if model:
        facts = {host: {**node, "model": model.facts} for host, node in facts.items()}
    media = _media_send.plan(sources)
    wish, wanted = identify(wish, sources, facts, corpus_digest=corpus_digest, model=model, made=made)
    run_id = _request.run_id(wanted)
    _ranks.refuse_mixed(wish, facts)
    _ranks.refuse_shared_root(facts)
    ranks = {host: _ranks.local(wish, host, node) for host, node in facts.items()}
    world_size = sum(ranks.values())
    first = next(iter(facts.values()))
    run = first["runs"].get(run_id, {})
    record = {} if wish.refresh else dict(run.get("resolved") or {})
    recorded = record.get("world_size") == world_size
    template = _resolve.template(wish, facts, schema)
    pin = _pin.choose(wish, facts, _pinned(record)) if wish.hub else _pin.Pin(model.digest if model else "")
    resolved, origins = _resolve.resolve(
        wish, sources, facts, world_size, corpus_digest, environment, template, pin.revision
    )
    if recorded:  # in the order of a new plan: the files come out the same
        arguments = record["arguments"]
        order = dict.fromkeys([*resolved["arguments"], *arguments])
        record["arguments"] = {key: arguments[key] for key in order if key in arguments}
        if wish.hub and not _pinned(record):
            record["model"] = resolved["model"]
    elif wish.hub and _pinned(record):  # other ranks go on with the model that the first ones had
        resolved["model"] = record["model"]
    missing = [host for host, node in facts.items() if node.get("model_missing")]
    if missing:
        raise FinetuneError(
            f"There is no model in {wish.model} on {', '.join(missing)}.",
            where=wish.model_place,
            change="correct the path; the folder holds config.json and the weights, and the account may read it",
        )
    now = run.get("state")
    if now != "finished":
        if wish.state in ("finished", "staged"):
            _ranks.refuse_slices(wish, facts)
            _ranks.refuse_unequal(wish, facts)
        _parallel.refuse(resolved["engine"], facts)
        for node in facts.values():
            _parallel.refuse_other_shards(node["runs"].get(run_id, {}), world_size)
        _situation.refuse_what_cannot_run(wish, resolved, origins, sources, facts, schema, template, variables or {})
    starts = wish.state in ("finished", "staged") and now not in ("finished", "running")
    wrong = partial(
        _situation.found,
        wish,
        sources=sources,
        facts=facts,
        schema=schema,
        template=template,
        variables=variables or {},
    )
    fit = _fastest.settle(wish, record if recorded else {}, resolved, origins, facts, run, wrong if starts else None)
    resolved, origins = fit.resolved, fit.origins
    plan = Plan(run_id, wish.name, wanted, record if recorded else resolved, origins, recorded, {})
    plan.notices += fit.notices
    if starts:
        began = now in ("interrupted", "stopped")  # what others took since does not stop what was well so far
        taught = {host: {**node, "peaks": {}} for host, node in facts.items()} if began else facts
        memory = _memory.check(wish, plan.resolved, taught, wrong)
        plan.memory = {**asdict(memory), "told": memory.told + fit.told}
        plan.notices += memory.notices
    plan.left = _memory.left(wish, plan.resolved, facts)
    plan.shared = _output.place(run_id, wish.output_root, facts)
    plan.whole = _output.whole(run_id, world_size, facts)
    plan.store = _store.plan(wish.store, run_id, store)
    if wish.state in ("finished", "staged"):
        _output.refuse_unusable(plan.shared, wish.output_root, facts)
        _output.refuse_foreign(run_id, plan.shared, facts, retry=wish.retry)
    current = plan.resolved["environment"] == environment and bool(environment["digest"])
    plan.environment = {**plan.resolved["environment"], "current": current}
    plan.tokens = _tokens.plan(wish, plan, sources, facts, schema)
    plan.difference = _against_last(plan, first)
    plan.media = media
    plan.model = {"local": model.local, "files": model.files} if model else {}
    plan.unread = {source.dataset.name: source.unread for source in sources if source.unread}
    plan.notices += _notices.notices(wish, plan, record, resolved, sources, template) + _ranks.notices(wish, facts)
    in_part = wish.state == "absent" and not plan.whole
    plan.notices += _output.notices(plan.shared, wish.output_root, removed_in_part=in_part)
    plan.notices += _store.notices(plan.store, removed_in_part=in_part)
    if wish.hub and now != "finished":
        _pin.refuse_full_disks(wish, plan.resolved["model"]["revision"], facts)
    if wish.assumed:
        plan.notices.append(_assumed.notice(wish.assumed))
    if pin.old:
        plan.notices.append(f"The hub could not be asked ({pin.old}): the model is the one that the last run took.")
    places = dict.fromkeys(facts, _addresses.LOOPBACK)
    if len(facts) > 1:
        places = _addresses.choose({host: node["interfaces"] for host, node in facts.items()}, addresses or {})
    for rank, (host, node) in enumerate(facts.items()):
        plan.nodes[host] = _nodes.node(plan, wish, sources, places, host, node, rank, ranks)
    _mark_starters(plan, wish)
    lacking = len(facts) > 1 and any(_store.is_fresh(run_id, node) for node in facts.values())
    for node in plan.nodes.values():
        node["lacking"] = lacking
    plan.held = _held(plan, wish, facts)
    return plan


def _pinned(record: t.Mapping[str, t.Any]) -> str:
    """The commit of a recorded model; empty where it was recorded as a branch, which ranks fetched themselves."""
    revision = str(record.get("model", {}).get("revision", ""))
    return revision if _hub.COMMIT.fullmatch(revision) else ""


def _against_last(plan: Plan, node: Facts) -> list[str]:
    """How a new run differs from the newest one of the same name that did not fail: what is asked for besides
    arguments, then the arguments as they come out."""
    others = [run for other, run in node["runs"].items() if other != plan.id and run.get("request")]
    if plan.id in node["runs"] or not others:
        return []
    last = max(others, key=lambda run: (run["state"] != "failed", float(run.get("created") or 0)))
    old, new = ({**request, "name": "", "args": {}} for request in (last["request"], plan.request))
    lines = _request.difference(old, new)
    lines += _request.arguments(last["resolved"]["arguments"], plan.resolved["arguments"], plan.origins)
    if not lines:
        written = _request.difference(last["request"]["args"], plan.request["args"])
        lines = [f"{line}, which comes to the same" for line in written]
    return [f"since   {last['id']} ({last['state']})", *(f"        {line}" for line in lines)]


def _mark_starters(plan: Plan, wish: Wish) -> None:
    """Of several nodes that are about to start, what each has is compared, and those that do not run yet hold their
    place until then."""
    step = _state.joint_step([node["state"] for node in plan.nodes.values()], retry=wish.retry)
    starts = wish.state == "finished" and step == "start"  # what is only staged holds no place: others may train
    for node in plan.nodes.values():
        node["compared"] = len(plan.nodes) > 1 and starts
        node["listens"] = node["compared"] and node["state"] != "running"


def _held(plan: Plan, wish: Wish, facts: t.Mapping[str, Facts]) -> str:
    """Who has what the run needs, where it would start now; or that its GPUs are none."""
    if wish.assumed:
        return str(_assumed.HELD)
    step = _state.joint_step([node["state"] for node in plan.nodes.values()], retry=wish.retry)
    if wish.state in ("finished", "staged") and step == "start" and (missing := _origin.missing(plan.resolved, facts)):
        return missing
    if wish.state != "finished" or step != "start":
        return ""
    for host, node in plan.nodes.items():
        for key in node["launch"]["leases"] if node["state"] != "running" else ():
            holder = facts[host]["leases"].get(key)
            if holder is not None and not (holder.get("staging") and holder.get("run") == plan.id):
                return str(_report.held(key, facts[host]["leases"][key], node["user"], host))
    return ""
