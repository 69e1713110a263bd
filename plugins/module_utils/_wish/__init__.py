# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the author of a run wrote: the role's variables, read and checked.

wish: what comes of it. names: what variables there are. arguments: LLaMA-Factory's keys. data, model: what is trained.
settings: variables that stand alone. values: what may be in one. imported: the file of train_config. Pure.
"""

from __future__ import annotations

import typing as t

from .. import _parallel, _recipe, _schema, _template
from .._errors import Attempts, together
from . import arguments, data, model, settings, values
from .imported import Imported
from .wish import DEMO_MODEL, IMPORTED, Wish

__all__ = ["read"]


def read(
    variables: t.Mapping[str, t.Any],
    schemas: t.Mapping[str, _schema.Schema],
    recipes: t.Mapping[str, _recipe.Recipe],
    imported: Imported | None = None,
) -> Wish:
    """The wish in a role's variables (train_…); FinetuneError names the variable that is wrong, or all that are.

    schemas: by environment, what it takes. recipes: by name. imported: the file of train_config, which stands in for
    the recipe; its model and data count where the variables are the role's defaults.
    """
    first, told = Attempts(), Attempts()  # without the first ones there is nothing to hold the others against
    recipe_name = str(variables.get("train_recipe") or "") if imported is None else IMPORTED
    recipe = first(_recipe.find, recipe_name, recipes) if imported is None else _recipe.Recipe()
    given = imported or Imported()
    written = {
        "train_args": first(arguments.from_args, variables),
        "train_set": first(arguments.from_set, variables),
    }
    engine = first(values.one_of, variables, "train_engine", _parallel.CHOICES, _parallel.PROVIDED)
    fields = {field: told(reader, variables) for field, reader in settings.FIELDS.items()}
    for check in settings.CHECKS:
        told(check, variables)
    if first.errors:
        raise together([*first.errors, *told.errors])
    if engine == _parallel.AUTO:
        engine = given.engine or recipe.engine or engine
    asked = arguments.over(recipe_name, recipe, given, written, engine, schemas, told)
    datasets, eval_datasets = told(data.read, variables, imported, asked.stage) or ([], [])
    model_name, revision, place = told(model.read, variables, imported) or ("", "", "")
    template = _template.choose(model_name, asked.schema) if model_name not in ("", DEMO_MODEL) else None
    insisted = told(settings.insisted, variables)
    name = told(values.name, str(variables.get("train_name") or recipe_name.replace("_", "-")))
    begins_with = told(values.run, variables, "train_from") or ""
    rewarded_by = told(model.rewarded_by, variables, asked.stage)
    folders = told(model.folders, asked)
    fit = told(settings.fit, variables)
    told.refuse()
    return Wish(
        name=name,
        recipe=recipe_name,
        args=asked.args,
        origins=asked.origins,
        environment=asked.environment,
        base=asked.base,
        notices=asked.notices,
        model=model_name,
        model_revision=revision,
        begins_with=begins_with,
        rewarded_by=rewarded_by,
        model_place=place,
        template=template,
        datasets=datasets,
        eval_datasets=eval_datasets,
        stage=asked.stage,
        media=data.media(asked, template.template if template else ""),
        media_folders=given.media_folders,
        folders=folders,
        engine=engine,
        **fields,
        **insisted,
        **fit,
    )
