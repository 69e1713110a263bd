# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""LLaMA-Factory's keys: train_set over train_args, over the recipe or the file of train_config."""

from __future__ import annotations

import typing as t

from .. import _config, _parallel, _recipe, _schema
from .._errors import Attempts
from .imported import Imported


class Arguments(t.NamedTuple):
    base: _config.Arguments
    """What the recipe starts from; nothing with train_config."""
    args: _config.Arguments
    """What goes over it."""
    origins: dict[str, str]
    """The variable, or file and line, that has each key of `args`."""
    stage: str
    environment: str
    schema: _schema.Schema
    """What that environment takes."""
    notices: list[str]

    @property
    def all(self) -> _config.Arguments:
        return {**self.base, **self.args}


def from_args(variables: t.Mapping[str, t.Any]) -> _config.Arguments:
    """As they are written in train_args."""
    found = _config.parse_args(variables.get("train_args"))
    _config.check(found, "train_args")
    return found


def from_set(variables: t.Mapping[str, t.Any]) -> _config.Arguments:
    """As they are written in train_set."""
    found = _config.parse_set(str(variables.get("train_set") or ""))
    _config.check(found, "train_set")
    return found


def over(
    name: str,
    recipe: _recipe.Recipe,
    given: Imported,
    written: t.Mapping[str, _config.Arguments],
    engine: str,
    schemas: t.Mapping[str, _schema.Schema],
    told: Attempts,
) -> Arguments:
    """Typed by what the environment takes that they need. name: of the recipe; written: by variable, the later over the
    earlier; told: takes what is wrong."""
    asked = {**recipe.arguments, **given.arguments}
    for found in written.values():
        asked.update(found)
    environment = _recipe.environment(asked, _parallel.environment(engine))
    schema = schemas[environment]
    told(_schema.typed, given.arguments, schema, "train_config")
    values: _config.Arguments = {}
    origins = dict(given.origins)
    for variable, found in written.items():
        typed = told(_schema.typed, found, schema, variable) or {}
        values.update(typed)
        origins.update(dict.fromkeys(typed, variable))
    return Arguments(
        base=dict(recipe.arguments),
        args={**given.arguments, **values},
        origins=origins,
        stage=str(asked["stage"]),
        environment=environment,
        schema=schema,
        notices=[
            *given.notices,
            *given.overruled(values, origins),
            *_contradicted(name, recipe.arguments, values, origins),
            *_unproved(name, recipe),
        ],
    )


def _contradicted(
    recipe: str, start: t.Mapping[str, t.Any], over: _config.Arguments, origins: t.Mapping[str, str]
) -> list[str]:
    """What makes a recipe another one."""
    return [
        f"Recipe {recipe} is overruled: {key} {over[key]} of {origins[key]}."
        for key in ("stage", "finetuning_type")
        if key in start and over.get(key, start[key]) != start[key]
    ]


def _unproved(name: str, recipe: _recipe.Recipe) -> list[str]:
    told = f"Recipe {name} is unproved: {recipe.unproved}, and this project has never run it."
    return [told] if recipe.unproved else []
