# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a wish to LLaMA-Factory's arguments: layer over layer, each value with its origin. No paths, no hosts."""

from __future__ import annotations

import typing as t

from . import _config, _parallel, _ranks, _schema, _sent_model, _template
from ._dataset import Source
from ._engine import base_model
from ._ranks import Facts
from ._wish.wish import DEMO_MODEL, Wish


def resolve(
    wish: Wish,
    sources: t.Sequence[Source],
    facts: t.Mapping[str, Facts],
    world_size: int,
    corpus_digest: str,
    environment: dict[str, str],
    template: _template.Choice | None = None,
    commit: str = "",
) -> tuple[dict[str, t.Any], dict[str, str]]:
    """LLaMA-Factory's arguments without paths, and where each came from. template: the one that is the model's; commit:
    of a model from a hub, or the digest of one that is sent."""
    layers: list[tuple[str, dict[str, t.Any]]] = [(f"recipe {wish.recipe}", wish.base)]
    if DEMO_MODEL in (wish.model, wish.family):
        own = base_model.IN_ENVIRONMENT.get(wish.environment, {})
        layers.append(("model demo", {**base_model.RECIPE["fine_tuning"], **own}))
    arguments: dict[str, t.Any] = {}
    origins: dict[str, str] = {}
    for origin, values in layers:
        arguments.update(values)
        origins.update(dict.fromkeys(values, origin))
    arguments.update(wish.args)
    origins.update(wish.origins)
    for key, value in _precision(wish, facts).items():
        arguments[key], origins[key] = value, "GPUs of the nodes"
    if template and template.template and "template" not in arguments:
        arguments["template"], origins["template"] = template.template, template.why
    if any(source.evaluates for source in sources) and "do_eval" not in arguments:
        arguments["do_eval"], origins["do_eval"] = True, "train_eval_datasets"
    if arguments.get("report_to") is None:  # to LLaMA-Factory that is every tracker that it finds
        arguments["report_to"], origins["report_to"] = "none", "no tracker is named"
    engine = _parallel.pick(wish.engine, arguments, world_size)
    replicas = _parallel.replicas(engine, arguments, world_size)
    micro, accumulation = _config.batch(arguments, wish.origins, replicas, wish.global_batch_size)
    for key, value in (("per_device_train_batch_size", micro), ("gradient_accumulation_steps", accumulation)):
        if arguments[key] != value:
            arguments[key], origins[key] = value, "train_global_batch_size"
    model = {"name": wish.model, "revision": commit or wish.model_revision}
    if wish.family:
        model["family"] = wish.family
    if wish.model == DEMO_MODEL:
        model = {"name": DEMO_MODEL, "revision": base_model.identity(corpus_digest)}
    if wish.model.startswith(_sent_model.PREFIX):
        model["name"] = _sent_model.NAME
    return {
        "arguments": arguments,
        "world_size": world_size,
        "global_batch_size": micro * accumulation * replicas,
        "engine": engine,
        "model": model,
        "environment": environment,
    }, origins


def template(wish: Wish, facts: t.Mapping[str, Facts], schema: _schema.Schema) -> _template.Choice | None:
    """The chat template of the model, by its name; of a folder also by what its config.json says it was."""
    names = [(node.get("model") or {}).get("name") for node in facts.values()]
    return wish.template or next((_template.choose(name, schema) for name in names if name), None)


def _precision(wish: Wish, facts: t.Mapping[str, Facts]) -> dict[str, t.Any]:
    """bf16 from compute capability 8.0 on, fp16 below, float32 without a GPU; unless the author chose."""
    if {"bf16", "fp16", "pure_bf16"} & wish.args.keys():
        return {}
    gpus = [gpu for host, node in facts.items() for gpu in _ranks.gpus(wish.gpus, node["gpus"], host)]
    if not gpus:
        return {}
    return {"bf16": True} if all(gpu["compute_capability"] >= 8 for gpu in gpus) else {"fp16": True}
