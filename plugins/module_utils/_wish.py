# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the author of a run wrote: the role's variables, read and checked."""

from __future__ import annotations

import difflib
import typing as t
from dataclasses import dataclass, field

from . import _assumed, _config, _dataset, _inputs, _media, _parallel, _recipe, _schema, _sent_model, _store, _template
from ._engine import hub_modelscope
from ._engine.state import EARLIER
from ._errors import Attempts, FinetuneError, together

IMPORTED = "config"
"""The recipe of a run that train_config describes."""
DEMO_MODEL = "demo"
"""train_model for the base model that is made on the spot."""

ASKED, FASTEST = "asked", "fastest"
"""What train_fit may be."""
_STATES = ("finished", "staged", "stopped", "absent")


INPUTS = (
    "train_name",
    "train_recipe",
    "train_config",
    "train_args",
    "train_set",
    "train_model",
    "train_model_revision",
    "train_from",
    "train_reward_from",
    "train_datasets",
    "train_eval_datasets",
    "train_tokenized",
    "train_engine",
    "train_lock",
    "train_global_batch_size",
    "train_gpus",
    "train_processes_per_node",
    "train_address",
    "train_nodes",
    "train_port",
    "train_user",
    "train_root",
    "train_output_root",
    "train_store",
    "train_spot_notices",
    "train_max_restarts",
    "train_state",
    "train_wait",
    "train_watch_interval",
    "train_retry",
    "train_preflight",
    "train_resolve",
    "train_insist",
    "train_fit",
    "train_fit_quantize",
    "train_assume_gpus",
)
"""The role's inputs that a wish is read from, or that are checked with it."""

OTHERS = ("train_become", "train_chain", "train_lease_dir", "train_secrets", "train_run_id", "train_fetch_to")
"""Inputs that a task of the role hands on as they are."""


@dataclass(frozen=True)
class Wish:
    """One run as wished for. None stands for `auto`."""

    name: str
    recipe: str
    args: _config.Arguments
    """train_args, then train_set over it."""
    origins: dict[str, str]
    """Which of the two each key of `args` came from."""
    base: _config.Arguments
    """What the recipe starts from; nothing with train_config."""
    environment: str
    """Profile of the environment that the ranks run in."""
    lock: str
    """A lock of the author's own for it, on the controller; empty for the collection's."""
    notices: list[str]
    """What of train_config is not taken over."""
    model: str
    model_revision: str
    begins_with: str
    """A run, by name or id, whose model or adapter this one takes up."""
    rewarded_by: str
    """A run, by name or id, that is the reward model of PPO."""
    model_place: str
    """The variable or the key that names it, as refusals tell it."""
    template: _template.Choice | None
    """The chat template that the model's name leads to."""
    insists: bool
    """A template is taken also where the registry has another one for the model."""
    mixes: bool
    """GPUs of several kinds may be used together."""
    risks: bool
    """It may start also where it does not fit into memory by the estimate."""
    datasets: list[_dataset.Dataset]
    eval_datasets: list[_dataset.Dataset]
    stage: str
    """LLaMA-Factory's, from the recipe unless the author wrote another."""
    media: _media.Media
    media_folders: list[str]
    """Where train_config has its media, on the controller."""
    folders: list[str]
    """Where on the nodes adapters, the reward model and descriptions of tokens are that the run begins with."""
    engine: str
    gpus: str
    global_batch_size: int | None
    processes_per_node: int | None
    port: int
    user: str
    root: str
    output_root: str
    """Where all nodes have their results in common; empty where each keeps its own."""
    store: str
    """Where in S3 checkpoints and results go; empty for nowhere."""
    spot_notices: list[str]
    """For what EC2 says it leaves."""
    state: str
    retry: bool
    refresh: bool
    max_restarts: int
    tokenized: bool = False
    """Its data is tokenized when it is staged, not by its ranks."""
    fit: str = ASKED
    quantizes: bool = False
    """Weights may be quantized where that is what fits."""
    assumed: _assumed.Assumed | None = None
    """GPUs that a plan takes each host to have."""
    family: str = ""
    """The model at the beginning of a chain of runs, where an earlier one is this one's model."""
    left: t.Mapping[str, t.Any] = field(default_factory=dict)
    """What is known of the run that it begins with: the config.json of its model, and LLaMA-Factory's keys of its
    adapter."""

    @property
    def objects(self) -> list[str]:
        """Addresses of what is in S3."""
        return [dataset.where for dataset in (*self.datasets, *self.eval_datasets) if dataset.source == "s3"]

    @property
    def hub(self) -> dict[str, str]:
        """The model and its revision as asked for, where it is one of a hub."""
        elsewhere = self.model.startswith(("/", EARLIER, _sent_model.PREFIX))
        there = elsewhere or self.model in ("", DEMO_MODEL, _sent_model.NAME)
        return {} if there else {"model": self.model, "revision": self.model_revision}


def read(
    variables: t.Mapping[str, t.Any],
    schemas: t.Mapping[str, _schema.Schema],
    recipes: t.Mapping[str, _recipe.Recipe],
    imported: _config.Imported | None = None,
) -> Wish:
    """The wish in a role's variables (train_…); FinetuneError names the variable that is wrong.

    schemas: by environment, what it takes. recipes: by name. imported: the file of train_config, which stands in for
    the recipe; its model and data count where the variables are the role's defaults.
    """
    first, told = Attempts(), Attempts()
    recipe = str(variables.get("train_recipe") or "") if imported is None else IMPORTED
    start = first(_recipe.find, recipe, recipes) if imported is None else _recipe.Recipe()
    given = imported or _config.Imported()
    written, single = first(_written, variables), first(_single, variables)
    engine = first(_inputs.one_of, variables, "train_engine", _parallel.CHOICES, _parallel.PROVIDED)
    settings = {field: told(reader, variables) for field, reader in _SETTINGS.items()}
    for check in _CHECKS:
        told(check, variables)
    if first.errors:
        raise together([*first.errors, *told.errors])
    base = {**start.arguments, **given.arguments}
    stage = str({**base, **written, **single}["stage"])
    if engine == _parallel.AUTO:
        engine = given.engine or start.engine or engine
    environment = _recipe.environment({**base, **written, **single}, _parallel.environment(engine))
    schema = schemas[environment]
    told(_schema.typed, given.arguments, schema, "train_config")
    written = told(_schema.typed, written, schema, "train_args") or {}
    single = told(_schema.typed, single, schema, "train_set") or {}
    over = {**written, **single}
    origins = {**given.origins, **dict.fromkeys(written, "train_args"), **dict.fromkeys(single, "train_set")}
    arguments = {**base, **over}
    datasets, eval_datasets = told(_data, variables, imported, stage) or ([], [])
    model, revision, model_place = told(_model, variables, imported) or ("", "", "")
    begins_with = str(variables.get("train_from") or "")
    if begins_with and model:
        model = told(_of_earlier, model, model_place)
    template = _template.choose(model, schema) if model and model != DEMO_MODEL else None
    insisted = told(_inputs.some_of, variables, "train_insist", ("template", "mixed_gpus", "memory")) or ()
    chats = arguments.get("template", template.template if template else "")
    name = told(_inputs.name, str(variables.get("train_name") or recipe.replace("_", "-")))
    rewarded_by, folders = told(_reward, variables, stage), told(_folders, arguments, origins, stage)
    fit = told(_fit, variables)
    told.refuse()
    return Wish(
        name=name,
        recipe=recipe,
        args={**given.arguments, **over},
        origins=origins,
        environment=environment,
        base=dict(start.arguments),
        notices=[
            *given.notices,
            *_overruled(given, over, origins),
            *_contradicted(recipe, start.arguments, over, origins),
            *_unproved(recipe, start),
        ],
        model=model,
        model_revision=revision,
        begins_with=begins_with,
        rewarded_by=rewarded_by,
        model_place=model_place,
        template=template,
        insists="template" in insisted,
        mixes="mixed_gpus" in insisted,
        risks="memory" in insisted,
        datasets=datasets,
        eval_datasets=eval_datasets,
        stage=stage,
        media=_media.Media(
            bool(schema.templates.get(str(chats), {}).get("media")),
            (str(arguments["media_dir"]),) if arguments.get("media_dir") else (),
        ),
        media_folders=given.media_folders,
        folders=folders,
        engine=engine,
        **settings,
        **fit,
    )


Variables = t.Mapping[str, t.Any]

_SETTINGS: dict[str, t.Callable[[Variables], t.Any]] = {
    "lock": lambda given: str(given.get("train_lock") or ""),
    "gpus": lambda given: _inputs.gpus(given.get("train_gpus", "all")),
    "global_batch_size": lambda given: _inputs.count(given, "train_global_batch_size"),
    "processes_per_node": lambda given: _inputs.count(given, "train_processes_per_node"),
    "port": lambda given: _inputs.port(given, "train_port"),
    "user": lambda given: str(given.get("train_user") or ""),
    "root": lambda given: _inputs.root(str(given.get("train_root") or "")),
    "output_root": lambda given: _inputs.output_root(str(given.get("train_output_root") or "")),
    "store": lambda given: _store.read(str(given.get("train_store") or "")),
    "spot_notices": lambda given: _inputs.some_of(given, "train_spot_notices", _store.NOTICES),
    "state": lambda given: _inputs.one_of(given, "train_state", _STATES),
    "retry": lambda given: _inputs.switch(given, "train_retry"),
    "refresh": lambda given: _inputs.one_of(given, "train_resolve", ("record", "refresh")) == "refresh",
    "max_restarts": lambda given: _inputs.number(given, "train_max_restarts"),
    "tokenized": lambda given: _inputs.switch(given, "train_tokenized"),
    "assumed": lambda given: _assumed.read(str(given.get("train_assume_gpus") or "")),
}
"""By field of a Wish: how it is read of one variable alone."""
_CHECKS: tuple[t.Callable[[Variables], t.Any], ...] = (
    lambda given: _inputs.switch(given, "train_wait"),
    lambda given: _inputs.one_of(given, "train_preflight", ("quick", "full")),
    lambda given: _inputs.seconds(given, "train_watch_interval"),
)
"""Of variables that are no part of a wish."""


def _written(variables: Variables) -> _config.Arguments:
    found = _config.parse_args(variables.get("train_args"))
    _config.check(found, "train_args")
    return found


def _single(variables: Variables) -> _config.Arguments:
    found = _config.parse_set(str(variables.get("train_set") or ""))
    _config.check(found, "train_set")
    return found


def _data(
    variables: t.Mapping[str, t.Any], imported: _config.Imported | None, stage: str
) -> tuple[list[_dataset.Dataset], list[_dataset.Dataset]]:
    """What to train and to evaluate on: the data of the file where the variables are the role's defaults."""
    given = imported or _config.Imported()
    entries = variables.get("train_datasets") or []
    if entries == ["demo"] and imported is not None:
        if not given.datasets:
            raise _not_there(given, "dataset", "train_datasets")
        if "train_datasets" in given.refused:
            raise given.refused["train_datasets"]
        entries = given.datasets
    described = given.described if entries is given.datasets else {}
    datasets = _dataset.parse(entries, "train_datasets", described)
    if not datasets:
        raise FinetuneError("There is nothing to train on.", where="train_datasets", change="name at least one dataset")
    entries = variables.get("train_eval_datasets") or []
    if stage == "ppo" and entries == ["demo_heldout"]:
        entries = []  # the role's default beside the demo; PPO takes none
    if given.datasets and entries in ([], ["demo_heldout"]):
        if "train_eval_datasets" in given.refused:
            raise given.refused["train_eval_datasets"]
        entries = given.eval_datasets
    described = given.described if entries is given.eval_datasets else {}
    eval_datasets = _dataset.parse(entries, "train_eval_datasets", described)
    for dataset in eval_datasets:
        if any(other.name == dataset.name and other != dataset for other in datasets):
            raise FinetuneError(
                f"{dataset.name!r} names one dataset to train on and another one to evaluate on.",
                where="train_eval_datasets",
                change="give each its own `name`",
            )
    return datasets, eval_datasets


def _model(variables: t.Mapping[str, t.Any], imported: _config.Imported | None) -> tuple[str, str, str]:
    """The model, its revision and where it is named: in the file where the variable is the role's default."""
    model: t.Any = variables.get("train_model") or ""
    revision = str(variables.get("train_model_revision") or "main")
    where = "train_model"
    if imported is not None and model == DEMO_MODEL:
        if not imported.model:
            raise _not_there(imported, "model_name_or_path", "train_model")
        model, revision = imported.model, imported.revision or revision
        where = f"train_config, {imported.file}, key model_name_or_path"
    if not model:
        raise FinetuneError(
            "There is no model to train.", where=where, change="name a hub id or a full path on the node"
        )
    if not isinstance(model, str):
        raise FinetuneError(f"{model!r} is no model.", where=where, change="write one name, as text")
    path = model.removeprefix(_sent_model.PREFIX)
    if path and path == path.strip() and (path != model or path.startswith("/")):
        return model, revision, where
    if not _dataset.HUB_ID.fullmatch(model.removeprefix(hub_modelscope.PREFIX)):
        raise FinetuneError(
            f"{model!r} is neither a hub id nor a full path on the node.",
            where=where,
            change="write owner/name or modelscope:owner/name; begin the path with / on the nodes, with file: on this "
            "controller",
        )
    return model, revision, where


def _of_earlier(model: str, where: str) -> str:
    """Of a run that begins with an earlier one: not known yet."""
    if model != DEMO_MODEL:
        raise FinetuneError(
            f"train_from takes the model of an earlier run, and {where} names {model}.",
            where=f"train_from, {where}",
            change="leave one of them out",
        )
    return ""


def _fit(variables: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Whether something is chosen, and of what."""
    wanted = _inputs.one_of(variables, "train_fit", (ASKED, FASTEST))
    quantizes = _inputs.switch(variables, "train_fit_quantize")
    if quantizes and wanted == ASKED:
        raise FinetuneError(
            "train_fit_quantize allows a choice, and nothing is chosen.",
            where="train_fit_quantize, train_fit",
            change="set train_fit: fastest; or quantization_bit: 4 in train_args, to have it so",
        )
    return {"fit": wanted, "quantizes": quantizes}


def _reward(variables: t.Mapping[str, t.Any], stage: str) -> str:
    wanted = str(variables.get("train_reward_from") or "")
    if wanted and stage != "ppo":
        raise FinetuneError(
            f"Stage {stage} takes no reward model.", where="train_reward_from", change="leave it out, or use recipe ppo"
        )
    return wanted


def _not_there(given: _config.Imported, key: str, variable: str) -> FinetuneError:
    """A file that leaves out what it is about: the demo that is the role's default is not what its author means."""
    return FinetuneError(
        f"{given.file} has no {key}.",
        where=f"train_config, {given.file}",
        change=f"add {key} to the file, or set {variable}",
    )


def _overruled(given: _config.Imported, over: _config.Arguments, origins: t.Mapping[str, str]) -> list[str]:
    """Lines of the file of train_config that a variable goes over."""
    return [
        f"{given.origins[key]}: {key} {_config.to_yaml(value)} is overruled by {origins[key]}: "
        f"{_config.to_yaml(over[key])}."
        for key, value in given.arguments.items()
        if over.get(key, value) != value and given.origins[key] != _config.NOT_WRITTEN
    ]


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


def _folders(arguments: t.Mapping[str, t.Any], origins: t.Mapping[str, str], stage: str) -> list[str]:
    """Full paths among what names a folder on the node, a hub id, or the address of a server."""
    named = [("adapter_name_or_path", path.strip()) for path in _text(arguments, "adapter_name_or_path").split(",")]
    if stage == "ppo":
        named.append(("reward_model", _text(arguments, "reward_model")))
    for key, found in named:
        if found.startswith(("~", ".")) or (found.count("/") > 1 and not found.startswith("/") and "://" not in found):
            raise FinetuneError(
                f"{found!r} is neither a full path on the node nor a hub id.",
                where=f"{origins[key]}, key {key}",
                change="begin the path with /",
            )
    paths = [found for _key, found in named] + [_text(arguments, "new_special_tokens_config")]
    return [path for path in paths if path.startswith("/")]


def _text(arguments: t.Mapping[str, t.Any], key: str) -> str:
    """What a key says; empty where it says nothing, or no text, which the rules tell."""
    found = arguments.get(key)
    return found if isinstance(found, str) else ""


def refuse_misspelt(names: t.Iterable[str]) -> None:
    """Refuse variables that are nearly one of the role's inputs: Ansible itself would pass over them.

    Others that begin with train_ are left alone, they may be the inventory's own.
    """
    known = (*INPUTS, *OTHERS)
    wrong = []
    for name in sorted(set(names) - set(known)):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.85) if name.startswith("train_") else []
        if near:
            change = f"write {near[0]}, or give a variable of your own another name"
            wrong.append(FinetuneError(f"There is no input {name}.", where=name, change=change))
    if wrong:
        raise together(wrong)
