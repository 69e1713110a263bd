# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan as a person reads it."""

from __future__ import annotations

import typing as t

from . import _origin, _pin, _ranks, _state, _tokens
from ._dataset import Source
from ._engine.state import EARLIER
from ._plan import Plan
from ._ranks import Facts
from ._wish.wish import DEMO_MODEL


def lines(plan: Plan, sources: t.Sequence[Source], facts: t.Mapping[str, Facts]) -> list[str]:
    """In lines."""
    arguments, resolved = plan.resolved["arguments"], plan.resolved
    now = _state.aggregate([node["state"] for node in plan.nodes.values()])
    model = resolved["model"]
    made = " (made on the node from the demo text)" if model["name"] == DEMO_MODEL else f" at {model['revision']}"
    if model["name"].startswith(("/", EARLIER)):
        made = ""
    if plan.model:
        made = f" {plan.model['local']} of this controller, {model['revision'][:12]}"
    fetches = [host for host, node in plan.nodes.items() if node["model"]["hub"] and node["model"]["missing"]]
    size = next((facts[host]["hub"]["bytes"] for host in fetches if facts[host]["hub"].get("bytes")), 0)
    if fetches and size:
        made += f", {_pin.size(size)} to be fetched"
    micro, accumulation = arguments["per_device_train_batch_size"], arguments["gradient_accumulation_steps"]
    copies = resolved["global_batch_size"] // (micro * accumulation)
    each = "ranks" if copies == resolved["world_size"] else "copies of the model"
    batch = f"{micro} × {accumulation} × {copies} (micro-batch × accumulation × {each})"
    chosen = arguments.get("template") and "template" not in plan.request["args"] and model["name"] != DEMO_MODEL
    begins = _origin.named(resolved)
    told = [
        f"Run {plan.id}: {now}",
        f"  recipe  {plan.request['recipe']}, environment {plan.environment['lock']} {plan.environment['digest']}",
        f"  model   {model['name']}{made}",
        *([f"  from    {', '.join(begins)}"] if begins else []),
        "  data    "
        + ", ".join(source.dataset.name + (" (held out)" if source.evaluates else "") for source in sources)
        + (f", with {plan.media['count']} file{'s' * (plan.media['count'] > 1)} of media" if plan.media else ""),
        *([f"  tokens  {_tokens.FOLDER}/{plan.tokens['digest']}, made when the run is staged"] if plan.tokens else []),
        f"  batch   {resolved['global_batch_size']} = {batch}",
        f"  engine  {resolved['engine']}",
        *(
            [f"  chat    template {arguments['template']}, {plan.origins.get('template', 'as recorded')}"]
            if chosen
            else []
        ),
    ]
    told += [f"  {line}" for line in plan.memory.get("told", ())]
    for host, node in plan.nodes.items():
        used = [gpu for gpu in facts[host]["gpus"] if gpu["uuid"] in node["launch"]["leases"]]
        device = _ranks.devices(used) or f"{facts[host]['cpus']} CPUs, no GPU"
        ranks = node["launch"]["nproc_per_node"]
        place = f" at {node['launch']['address']}" if len(plan.nodes) > 1 else ""
        told.append(f"  node {node['node_rank']:<2} {host}{place}: {device}, {ranks} process(es), {node['folder']}")
    told += [f"  results {plan.shared}"] if plan.shared else []
    told += [f"  store   {plan.store['url']}"] if plan.store else []
    told += [f"  {line}" for line in plan.difference]
    told += [f"  note    {notice}" for notice in plan.notices]
    return told + ([f"  held    {plan.held.splitlines()[0]}"] if plan.held else [])
