# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A LLaMA-Factory file that somebody has: what of it is arguments, model and data, and what a managed run owns."""

from __future__ import annotations

import typing as t
from pathlib import Path

from ..module_utils import _config, _lookup, _parallel, _recipe, _schema
from ..module_utils._errors import FinetuneError
from ..module_utils._wish.imported import NOT_WRITTEN, Imported
from . import _import_data, _import_engine, _import_yaml

_OTHERS = (
    (
        ("model", "train_dataset", "sample_backend", "dist_config", "peft_config"),
        "LLaMA-Factory's v1 trainer, which 0.9.5 does not start by itself",
        "take a file that begins with model_name_or_path",
    ),
    (
        ("ray_num_workers", "ray_init_kwargs"),
        "Ray, which needs the package ray that the environment does not have",
        "remove the keys of Ray; hosts of the inventory are the workers",
    ),
    (
        ("compute_environment", "distributed_type", "num_machines"),
        "accelerate's launcher, and trains nothing by itself",
        "take the file that it launches; train_engine decides how ranks share the work",
    ),
)
"""Keys that tell whose a file is, and what to do."""
_NAMES = {"dataset": "datasets", "eval_dataset": "eval_datasets"}
_TEXTS = {"dataset_dir": "dataset_dir", "model_name_or_path": "model", "model_revision": "revision"}
"""Keys that a variable decides, and where they are kept."""


def find(wanted: str, folders: t.Sequence[Path], schemas: t.Mapping[str, _schema.Schema]) -> Imported:
    """The file of train_config. folders: where a relative one is looked for, in order. schemas: by environment."""
    path = _lookup.find(wanted, folders, "There", "train_config", "correct it")
    try:
        found = read(path.read_text(encoding="utf-8"), path.name, schemas, path.absolute().parents)
    except (OSError, UnicodeDecodeError) as error:
        raise FinetuneError(
            f"{path} cannot be read: {error}.", where="train_config", change="save it as UTF-8"
        ) from None
    model = next((place for parent in path.absolute().parents if (place := parent / found.model).is_dir()), None)
    if found.model and not found.model.startswith("/") and model is not None:
        found.notices.append(
            f"{path.name}: model_name_or_path {found.model} is a model of a hub, and not the folder {model} of this "
            "controller; of one on the nodes, write the full path."
        )
    folder = _import_data.describe(found, path)
    media_dir = str(found.arguments.get("media_dir") or "")
    above = [str(parent / media_dir) for parent in path.absolute().parents if (parent / media_dir).is_dir()]
    found.media_folders = [*(above[:1] if media_dir else []), *([folder] if folder else [])]
    return found


def read(text: str, name: str, schemas: t.Mapping[str, _schema.Schema], folders: t.Iterable[Path] = ()) -> Imported:
    """The file `name`; everything that is wrong with it is refused at once, with its lines. Its stage and
    its engine tell which version reads it.

    folders: from the file's own upwards, where a file that it names may be.
    """
    values, lines = _import_yaml.mapping(text, name)
    _refuse_other_trainers(values, lines)
    if not any(str(key).isidentifier() for key in values):
        raise FinetuneError(
            f"{name} has none of LLaMA-Factory's keys.", where=f"train_config, {name}", change="take another file"
        )
    found = Imported(name)
    problems: list[_schema.Problem] = []
    try:
        found.engine = _import_engine.engine(values, folders)
    except FinetuneError as error:
        problems.append(_schema.Problem(error.where, error.what, error.change))
    schema = schemas[_recipe.environment(values, _parallel.environment(found.engine))]
    for key, value in values.items():
        if key in _config.RESERVED:
            found.notices.append(f"{lines[key]}: {key} is left out, {_config.RESERVED[key]}.")
        elif key in _import_engine.KEYS:
            continue
        elif _config.is_secret(key):
            if value:
                problems.append(_schema.Problem(key, f"{key} is a secret", f"remove it; {_config.handed_over(key)}"))
        elif key in _NAMES:
            words = _words(value)
            problems += [_schema.Problem(key, f"{key} is {value!r}", "write names")] if words is None else []
            setattr(found, _NAMES[key], words)
        elif key in _TEXTS:
            if not isinstance(value or "", str):
                problems.append(_schema.Problem(key, f"{key} is {value!r}", "write text, in quotes"))
            elif value:
                setattr(found, _TEXTS[key], value)
        else:
            found.arguments[key], problem = _schema.read(key, value, schema)
            problems += [problem] if problem else []
    if found.engine:
        line = next(lines[key] for key in (*_import_engine.KEYS, *_import_engine.MEGATRON) if values.get(key))
        found.notices.append(f"{line}: it becomes train_engine {found.engine}, where that is left at auto.")
    if values.get("fsdp_config") and not values.get("fsdp"):
        found.notices.append(f"{lines['fsdp_config']}: fsdp_config is left out, as there is no fsdp.")
    found.origins = {key: lines[key] for key in found.arguments}
    _schema.refuse(problems, lines)
    _refuse_nothing_to_do(found, name)
    for key in ("stage", "finetuning_type", "per_device_train_batch_size", "gradient_accumulation_steps"):
        if key not in found.arguments:
            found.arguments[key], found.origins[key] = schema.keys[key].default, NOT_WRITTEN
    return found


def _refuse_nothing_to_do(found: Imported, name: str) -> None:
    """Files for commands of LLaMA-Factory that do not train."""
    if not found.arguments.get("do_train"):
        purpose = "merge an adapter or to quantize" if "export_dir" in found.arguments else "talk to a model"
        if found.arguments.get("do_eval") or found.arguments.get("do_predict"):
            purpose = "evaluate or to predict"
        raise FinetuneError(
            f"{name} does not say do_train: it is there to {purpose}.",
            where=f"train_config, {name}",
            change="take a file for training, or add do_train: true",
        )


def _refuse_other_trainers(values: t.Mapping[str, t.Any], lines: t.Mapping[str, str]) -> None:
    """Files that are not for the trainer of LLaMA-Factory that the environments have."""
    for keys, whose, change in _OTHERS:
        key = next((key for key in keys if key in values), None)
        if key is not None:
            raise FinetuneError(f"{key} is a key of {whose}.", where=f"train_config, {lines[key]}", change=change)


def _words(value: t.Any) -> list[str] | None:
    """Names in a list or with commas; None where the value is something else."""
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value or [], list) or not all(isinstance(word, str) for word in value or []):
        return None
    return [word.strip() for word in value or [] if word.strip()]
