# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan: from a wish, what the nodes are and what is recorded, to what is on each node and how its ranks start.

Pure: nothing here reads a file or a clock.
"""

from __future__ import annotations

import typing as t
from dataclasses import asdict, dataclass, field, replace

from . import (
    _addresses,
    _dataset,
    _media_send,
    _media_set,
    _nodes,
    _parallel,
    _profile,
    _ranks,
    _report,
    _request,
    _resolve,
    _schema,
    _situation,
    _state,
    _tools,
)
from ._dataset import Source
from ._engine import base_model
from ._errors import FinetuneError
from ._ranks import Facts
from ._wish import DEMO_MODEL, Wish


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
    unread: dict[str, str] = field(default_factory=dict)
    """Datasets whose records no Python on a node can read before the environment is there, and why."""
    media: dict[str, t.Any] = field(default_factory=dict)
    """The images, videos and audios that its datasets bring along: digest, number, and where they come from."""
    held: str = ""
    """Why an apply would be refused now: another run has what this one needs, or the environment has no lock. Empty
    when nothing stands in the way."""

    def as_dict(self) -> dict[str, t.Any]:
        return asdict(self)


def request(wish: Wish, sources: t.Sequence[Source], corpus_digest: str) -> _request.Request:
    """The wish as its identity: what the author wrote, datasets by content, the embedded model by its recipe."""
    model: dict[str, t.Any] = {"name": wish.model, "revision": wish.model_revision}
    if wish.model == DEMO_MODEL:
        model = {"name": DEMO_MODEL, "recipe": base_model.identity(corpus_digest)}
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
    }


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
) -> Plan:
    """The plan for hosts in rank order. environment: name and digest of the lock that is current; schema: what it
    takes; addresses: train_address by host."""
    if not facts:
        raise FinetuneError(
            "There is no host to train on.", where="inventory, group trainers", change="add a host or widen --limit"
        )
    media = _media_send.plan(sources)
    if media:  # the run has a media_dir of its own; where its content came from does not count
        wish = replace(wish, args={key: value for key, value in wish.args.items() if key != "media_dir"})
    wanted = request(wish, sources, corpus_digest)
    run_id = _request.run_id(wanted)
    _ranks.refuse_mixed(wish, facts)
    _ranks.refuse_shared_root(facts)
    ranks = {host: _ranks.local(wish, host, node) for host, node in facts.items()}
    world_size = sum(ranks.values())
    first = next(iter(facts.values()))
    record = {} if wish.refresh else dict(first["runs"].get(run_id, {}).get("resolved") or {})
    recorded = record.get("world_size") == world_size
    resolved, origins = _resolve.resolve(wish, sources, facts, world_size, corpus_digest, environment)
    if recorded:  # in the order of a new plan: the files come out the same
        arguments = record["arguments"]
        order = dict.fromkeys([*resolved["arguments"], *arguments])
        record["arguments"] = {key: arguments[key] for key in order if key in arguments}
    missing = [host for host, node in facts.items() if node.get("model_missing")]
    if missing:
        raise FinetuneError(
            f"There is no model in {wish.model} on {', '.join(missing)}.",
            where=wish.model_place,
            change="correct the path; the folder holds config.json and the weights, and the account may read it",
        )
    if first["runs"].get(run_id, {}).get("state") != "finished":
        _parallel.refuse(resolved["engine"], facts)
        _parallel.refuse_other_shards(first["runs"].get(run_id, {}), world_size)
        _situation.refuse_what_cannot_run(wish, resolved, origins, sources, facts, schema)
    plan = Plan(run_id, wish.name, wanted, record if recorded else resolved, origins, recorded, {})
    current = plan.resolved["environment"] == environment and bool(environment["digest"])
    plan.environment = {**plan.resolved["environment"], "current": current}
    plan.difference = _against_last(plan, first)
    plan.media = media
    plan.unread = {source.dataset.name: source.unread for source in sources if source.unread}
    plan.notices = _notices(wish, plan, record, resolved, sources)
    places = dict.fromkeys(facts, _addresses.LOOPBACK)
    if len(facts) > 1:
        places = _addresses.choose({host: node["interfaces"] for host, node in facts.items()}, addresses or {})
    for rank, (host, node) in enumerate(facts.items()):
        plan.nodes[host] = _nodes.node(plan, wish, sources, places, host, node, rank, ranks)
    _mark_starters(plan, wish)
    plan.held = _held(plan, wish, facts)
    return plan


def describe(plan: Plan, sources: t.Sequence[Source], facts: t.Mapping[str, Facts]) -> list[str]:
    """The plan as a person reads it."""
    arguments, resolved = plan.resolved["arguments"], plan.resolved
    now = _state.aggregate([node["state"] for node in plan.nodes.values()])
    model = resolved["model"]
    made = " (made on the node from the demo text)" if model["name"] == DEMO_MODEL else f" at {model['revision']}"
    if model["name"].startswith("/"):
        made = ""
    micro, accumulation = arguments["per_device_train_batch_size"], arguments["gradient_accumulation_steps"]
    copies = resolved["global_batch_size"] // (micro * accumulation)
    each = "ranks" if copies == resolved["world_size"] else "copies of the model"
    batch = f"{micro} × {accumulation} × {copies} (micro-batch × accumulation × {each})"
    lines = [
        f"Run {plan.id}: {now}",
        f"  recipe  {plan.request['recipe']}, environment {plan.environment['lock']} {plan.environment['digest']}",
        f"  model   {model['name']}{made}",
        "  data    "
        + ", ".join(source.dataset.name + (" (held out)" if source.evaluates else "") for source in sources)
        + (f", with {plan.media['count']} file{'s' * (plan.media['count'] > 1)} of media" if plan.media else ""),
        f"  batch   {resolved['global_batch_size']} = {batch}",
        f"  engine  {resolved['engine']}",
    ]
    for host, node in plan.nodes.items():
        count = len(node["launch"]["leases"]) if facts[host]["gpus"] else 0
        device = f"{count} × {facts[host]['gpus'][0]['name']}" if count else f"{facts[host]['cpus']} CPUs, no GPU"
        ranks = node["launch"]["nproc_per_node"]
        place = f" at {node['launch']['address']}" if len(plan.nodes) > 1 else ""
        lines.append(f"  node {node['node_rank']:<2} {host}{place}: {device}, {ranks} process(es), {node['folder']}")
    lines += [f"  {line}" for line in plan.difference]
    lines += [f"  note    {notice}" for notice in plan.notices]
    return lines + ([f"  held    {plan.held.splitlines()[0]}"] if plan.held else [])


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
    """Who has what the run needs, where it would start now; or that its environment has no lock to be made from."""
    if wish.state in ("finished", "staged") and not plan.environment["digest"]:
        return str(_profile.missing(wish.environment))
    step = _state.joint_step([node["state"] for node in plan.nodes.values()], retry=wish.retry)
    if wish.state != "finished" or step != "start":
        return ""
    for host, node in plan.nodes.items():
        for key in node["launch"]["leases"] if node["state"] != "running" else ():
            holder = facts[host]["leases"].get(key)
            if holder is not None and not (holder.get("staging") and holder.get("run") == plan.id):
                return str(_report.held(key, facts[host]["leases"][key], node["user"], host))
    return ""


def _notices(
    wish: Wish, plan: Plan, record: dict[str, t.Any], resolved: dict[str, t.Any], sources: t.Sequence[Source]
) -> list[str]:
    notices = list(wish.notices)
    if record and not plan.recorded:
        notices.append(
            f"Resolved again: recorded for {record.get('world_size')} ranks, now there are {resolved['world_size']}."
        )
    if plan.recorded:
        for key in ("environment", "model"):
            if record[key] != resolved[key]:
                notices.append(
                    f"Drift: the run keeps {key} {record[key]}; train_resolve=refresh would take {resolved[key]}."
                )
    if again := _nodes.begins_again(plan.resolved["arguments"]):
        notices.append(f"{again} cannot go on from a checkpoint: after an interruption it begins again.")
    if _parallel.ENGINES[plan.resolved["engine"]].unproved:
        notices.append(
            f"Engine {plan.resolved['engine']} is unproved: its files and variables are rendered as its documents have "
            "them, and this project has never run it."
        )
    if _parallel.ENGINES[plan.resolved["engine"]].offload:
        notices.append(
            f"Engine {plan.resolved['engine']}: a run that goes on from a checkpoint has come out otherwise than an "
            "undisturbed one; without _offload it comes out the same."
        )
    if wish.stage == "dpo" and _copies_the_model(plan.resolved["arguments"]):
        notices.append("Without `ref_model`, DPO of all weights keeps a second copy of the model in memory.")
    if "eval_steps" in wish.args and plan.resolved["arguments"].get("eval_strategy", "no") == "no":
        notices.append("eval_steps is passed over: eval_strategy is no.")
    for source in sources:
        known = bool(plan.resolved["arguments"].get("template"))
        doubts = _tools.with_template(source.doubts) if known else source.doubts
        notices += [f"Dataset {source.dataset.name}: {told}." for told in doubts]
        drawn, most = source.dataset.options.get("num_samples"), plan.resolved["arguments"].get("max_samples")
        if drawn and most and drawn > most:
            notices.append(f"Dataset {source.dataset.name}: of its num_samples {drawn}, max_samples keeps {most}.")
        if source.unread:
            notices.append(
                f"Dataset {source.dataset.name}: its records are read when the environment is there, and the plan is "
                "made again with them before anything is staged."
            )
        if source.dataset.formatting == "openai":
            notices.append(
                f"Dataset {source.dataset.name}: to records of formatting openai without tools, LLaMA-Factory adds the "
                "system prompt `detailed thinking off`; sharegpt with `tags` does not."
            )
    if wish.model != DEMO_MODEL and "template" not in plan.resolved["arguments"]:
        notices.append("No `template` is given: LLaMA-Factory takes the chat template of the model's tokenizer.")
    return notices


def _copies_the_model(arguments: t.Mapping[str, t.Any]) -> bool:
    """DPO compares with the model as it was: an adapter is taken off for that, changed weights need their copy."""
    alone = arguments.get("pref_loss") in ("orpo", "simpo")
    return arguments["finetuning_type"] != "lora" and not arguments.get("ref_model") and not alone
