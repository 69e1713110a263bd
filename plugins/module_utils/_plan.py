# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan: from who a run is, what its nodes are and what is recorded, to what is on each and how its ranks start.

Pure: nothing here reads a file or a clock.
"""

from __future__ import annotations

import typing as t
from dataclasses import asdict, dataclass, field
from functools import partial

from . import (
    _addresses,
    _assumed,
    _before,
    _fastest,
    _memory,
    _nodes,
    _notices,
    _output,
    _parallel,
    _pin,
    _ranks,
    _recorded,
    _request,
    _resolve,
    _schema,
    _sent_model,
    _situation,
    _start,
    _store,
    _tokens,
)
from ._dataset import Source
from ._identity import Identity
from ._ranks import Facts


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
    """Where in S3 its checkpoints and results go; empty for nowhere."""
    s3: dict[str, str] = field(default_factory=dict)
    """The lock of what speaks to S3, where nodes have to; else empty."""
    whole: bool = True
    """These are all hosts of the run: what they share goes with it."""
    unread: dict[str, str] = field(default_factory=dict)
    """Datasets whose records no Python on a node can read before the environment is there, and why."""
    bare: bool = False
    """A node lacks its account or something of an environment: it is given that before the run is staged."""
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


def make(
    who: Identity,
    sources: t.Sequence[Source],
    facts: t.Mapping[str, Facts],
    *,
    environment: dict[str, str],
    schema: _schema.Schema,
    addresses: t.Mapping[str, str] | None = None,
    variables: t.Mapping[str, str] | None = None,
    store: str = "",
) -> Plan:
    """The plan for hosts in rank order. environment: name and digest of the lock that is current; schema: what it
    takes; addresses: train_address by host; variables: what is known of train_secrets; store: digest of the lock of
    what speaks to S3."""
    wish = who.wish
    facts = _sent_model.over(who.model, facts)
    ranks = _ranks.by_host(wish, facts)
    first, world_size = next(iter(facts.values())), sum(ranks.values())

    # What its arguments come to: from the wish and the hub, then as recorded, then as what fits
    record = _recorded.find(who.id, first, world_size, refresh=wish.refresh)
    template = _resolve.template(wish, facts, schema)
    pin = _pin.choose(wish, facts, record.commit, who.model)
    fresh, origins = _resolve.resolve(wish, sources, facts, world_size, who.corpus, environment, template, pin.revision)
    record, fresh = _recorded.join(record, fresh, of_hub=bool(wish.hub))
    wrong = partial(
        _situation.found,
        wish,
        sources=sources,
        facts=facts,
        schema=schema,
        template=template,
        variables=variables or {},
    )
    _situation.refuse_missing_model(wish, facts)
    if record.state != "finished":
        _refuse(who, fresh["engine"], facts, world_size)
        _situation.refuse(wish, wrong(fresh), origins, schema)
    starts = wish.present and record.state not in ("finished", "running")
    kept = record.resolved if record.kept else {}
    fit = _fastest.settle(wish, kept, fresh, origins, facts, record.run, wrong if starts else None)
    plan = Plan(who.id, wish.name, who.request, kept or fit.resolved, fit.origins, record.kept, {}, media=who.media)
    plan.notices += fit.notices

    # What it needs, and where what it makes goes
    if starts:
        began = record.state in ("interrupted", "stopped")  # what others took since does not stop what was well so far
        memory = _memory.check(wish, plan.resolved, _memory.unlearned(facts) if began else facts, wrong)
        plan.memory = {**asdict(memory), "told": memory.told + fit.told}
        plan.notices += memory.notices
    plan.left = _memory.left(wish, plan.resolved, facts)
    plan.shared = _output.place(who.id, wish.output_root, facts)
    plan.whole = _output.whole(who.id, world_size, facts)
    plan.store = _store.plan(wish.store, who.id)
    plan.s3 = _store.speaker(plan.store, plan.resolved["model"], facts if starts else {}, store)
    if wish.present:
        _output.refuse_unusable(plan.shared, wish.output_root, facts)
        _output.refuse_foreign(who.id, plan.shared, facts, retry=wish.retry)
    current = plan.resolved["environment"] == environment and bool(environment["digest"])
    plan.environment = {**plan.resolved["environment"], "current": current}
    plan.tokens = _tokens.plan(wish, plan, sources, facts, schema)
    plan.model = {"local": who.model.local, "files": who.model.files} if who.model else {}
    plan.unread = {source.dataset.name: source.unread for source in sources if source.unread}

    # What there is to tell
    in_part = wish.state == "absent" and not plan.whole
    plan.difference = _recorded.difference(plan, first)
    plan.notices += _notices.notices(wish, plan, record.resolved, fit.resolved, sources, template)
    plan.notices += _ranks.notices(wish, facts)
    plan.notices += _output.notices(plan.shared, wish.output_root, removed_in_part=in_part)
    plan.notices += _store.notices(plan.store, removed_in_part=in_part)
    plan.notices += _assumed.notices(wish.assumed) + _pin.notices(pin)
    if wish.hub and record.state != "finished":
        _pin.refuse_full_disks(wish, plan.resolved["model"]["revision"], facts)

    # What each node has of it
    places = _addresses.meet({host: node["interfaces"] for host, node in facts.items()}, addresses or {})
    for rank, (host, node) in enumerate(facts.items()):
        plan.nodes[host] = _nodes.node(plan, wish, sources, places, host, node, rank, ranks)
    plan.notices += _before.notices(plan.nodes)
    _start.prepare(plan, wish, facts)
    plan.bare = _start.bare(plan, facts)
    plan.held = _start.held(plan, wish, facts)
    return plan


def _refuse(who: Identity, engine: str, facts: t.Mapping[str, Facts], world_size: int) -> None:
    """Hosts on which it cannot run, or not go on."""
    if who.wish.present:
        _ranks.refuse_slices(who.wish, facts)
        _ranks.refuse_unequal(who.wish, facts)
    _parallel.refuse(engine, facts)
    for node in facts.values():
        _parallel.refuse_other_shards(node["runs"].get(who.id, {}), world_size)
