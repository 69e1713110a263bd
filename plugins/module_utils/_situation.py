# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What rules are told of besides arguments: nodes, data and the model itself."""

from __future__ import annotations

import typing as t

from . import _config, _memory, _parallel, _ranks, _rules, _schema, _split, _template, _tools
from ._dataset import Source
from ._errors import FinetuneError
from ._model import Model
from ._ranks import Facts
from ._vram import shape
from ._wish.wish import Wish


def refuse(
    wish: Wish, problems: t.Sequence[_schema.Problem], origins: t.Mapping[str, str], schema: _schema.Schema
) -> None:
    """What LLaMA-Factory would refuse after minutes, or take and do otherwise. problems: that are found."""
    told = [
        problem._replace(change=problem.change + _instead(problem.removes, origins, schema)) for problem in problems
    ]
    told = [problem._replace(key=wish.model_place) if problem.key == "train_model" else problem for problem in told]
    _schema.refuse(told, origins)


def _instead(removes: t.Iterable[str], origins: t.Mapping[str, str], schema: _schema.Schema) -> str:
    """How to be rid of keys that a remedy removes and the author has not written: there is nothing to remove."""
    told = []
    for key in removes:
        origin = origins.get(key, "")
        if origin.startswith("recipe "):
            none = _config.to_yaml(schema.keys[key].default)
            told.append(f"; {key} is of {origin}: take another train_recipe, or set {key}: {none} in train_args")
        elif origin.startswith(("train_from ", "train_reward_from ")):
            told.append(f"; {key} comes with {origin.partition(' ')[0]}: leave that out")
    return "".join(told)


def refuse_missing_model(wish: Wish, facts: t.Mapping[str, Facts]) -> None:
    """A folder on the nodes that has none."""
    missing = [host for host, node in facts.items() if node.get("model_missing")]
    if missing:
        raise FinetuneError(
            f"There is no model in {wish.model} on {', '.join(missing)}.",
            where=wish.model_place,
            change="correct the path; the folder holds config.json and the weights, and the account may read it",
        )


def found(
    wish: Wish,
    resolved: t.Mapping[str, t.Any],
    sources: t.Sequence[Source],
    facts: t.Mapping[str, Facts],
    schema: _schema.Schema,
    template: _template.Choice | None,
    variables: t.Mapping[str, str],
) -> list[_schema.Problem]:
    """What speaks against a run that is resolved so. variables: what is known of train_secrets."""
    gpus = [gpu for host, node in facts.items() for gpu in _ranks.gpus(wish.gpus, node["gpus"], host)]
    situation = _rules.Situation(
        world_size=sum(_ranks.local(wish, host, node) for host, node in facts.items()),
        gpus=bool(gpus),
        bf16=bool(gpus) and all(gpu["compute_capability"] >= 8 for gpu in gpus),
        datasets=sum(not source.evaluates for source in sources),
        eval_datasets=sum(source.evaluates for source in sources),
        sliced=any(
            source.dataset.source in ("hub", "registered")
            and _split.sliced(source.dataset.options.get("split") or "train")
            for source in sources
        ),
        media=any(source.media for source in sources),
        records=_records(sources),
        tools={
            use: f"dataset {source.dataset.name}: {records}"
            for source in sources
            for use, records in _tools.found(source.doubts).items()
        },
        model=wish.model,
        template=None if wish.insists else template,
        folders={folder: _in_every(folder, facts) for folder in wish.folders},
        scored_on=wish.scored_on,
        weights=_weights(wish, facts),
        engine=_parallel.ENGINES[resolved["engine"]],
        variables=variables,
    )
    return _rules.problems(resolved["arguments"], schema, situation, wish.args)


def _records(sources: t.Sequence[Source]) -> int | None:
    """How many there are to train on, after num_samples drew as many as it says; None where only hubs know."""
    counts = [source.dataset.options.get("num_samples", source.records) for source in sources if not source.evaluates]
    return None if None in counts else sum(count or 0 for count in counts)


def _in_every(folder: str, facts: t.Mapping[str, Facts]) -> frozenset[str]:
    """What all nodes have of a folder."""
    return frozenset.intersection(*(frozenset(node["folders"].get(folder, ())) for node in facts.values()))


def _weights(wish: Wish, facts: t.Mapping[str, Facts]) -> Model:
    """What is known of the model itself: the same on every node, or the run is refused. Where no weights tell its
    modules, config.json does; for GPUs that are assumed there need be no weights."""
    (first, known), *others = ((host, node.get("model") or {}) for host, node in facts.items())
    for host, other in others:
        if other != known:
            raise FinetuneError(
                f"The model in {wish.model} is not the same on {first} and {host}.",
                where=wish.model_place,
                change="copy one folder to all nodes",
            )
    model = Model(**known)
    config = _memory.config(wish, facts)
    if not model.modules:
        model = model._replace(modules=shape.modules(config))
    if not model.layers and isinstance(config.get("num_hidden_layers"), int):
        model = model._replace(layers=config["num_hidden_layers"])
    return model._replace(absent=(), damaged=()) if wish.assumed else model
