# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs that a run begins with: its model or adapter (train_from), and the reward model of PPO (train_reward_from).

Each is named by the name of a run, and found as one run: the one that this play made or will make, else the newest one
that is finished. In a request and in what it is resolved to it stands as `run:<id>`: another earlier run is another
request. On a node that is the folder of its results.
"""

from __future__ import annotations

import typing as t
from dataclasses import replace

from . import _memory, _model, _model_place, _schema, _sent_model, _template
from ._engine import hub_modelscope
from ._engine.state import EARLIER
from ._errors import FinetuneError
from ._wish.wish import Wish

if t.TYPE_CHECKING:
    from ._ranks import Facts

_ANEW = ("rm", "dpo", "kto", "ppo")
"""Stages that get a new adapter. The last three compare with the model as it was, and an adapter that went on being
trained would not be there to compare; PPO puts that of rm onto a model into which the earlier one is merged."""
_WHOLE = ("full", "freeze")
_OF_ADAPTER = (
    *("lora_rank", "lora_alpha", "lora_dropout", "lora_target", "use_dora", "use_rslora", "pissa_init"),
    *("oft_rank", "oft_block_size", "module_dropout", "additional_target"),
)
"""What LLaMA-Factory asks for when it makes an adapter (model/adapter.py _setup_lora_tuning)."""
_SHAPE = ("model_type", "hidden_size", "num_hidden_layers")
"""What of config.json tells two models apart that may have one name, or none."""

Run = dict[str, t.Any]
"""id, state and resolved of a run."""


def folder(value: str, root: str) -> str:
    """Where `run:<id>` is on a node; with commas between several, and anything else as it is."""
    return ",".join(_model_place.earlier(word, root) for word in value.split(","))


def named(resolved: t.Mapping[str, t.Any]) -> list[str]:
    """Ids of the runs that a resolved request begins with."""
    values = (
        resolved["model"]["name"],
        *(resolved["arguments"].get(key) for key in ("adapter_name_or_path", "reward_model")),
    )
    words = [word for value in values if isinstance(value, str) for word in value.split(",")]
    return [word.removeprefix(EARLIER) for word in dict.fromkeys(words) if word.startswith(EARLIER)]


def begin(wish: Wish, facts: t.Mapping[str, Facts], made: t.Mapping[str, Run]) -> Wish:
    """The wish with the model, the adapter and the reward model of the runs that it names. made: by name, those of this
    play."""
    known = next(iter(facts.values()))["before"] if facts else {}
    if wish.begins_with:
        run = _find(wish.begins_with, "train_from", wish, known, made)
        wish = replace(_with_model(wish, run), left=_left(run, known))
    if wish.rewarded_by:
        run = _find(wish.rewarded_by, "train_reward_from", wish, known, made)
        judged = _left(run, known).get("config") or {}
        wish = _with_reward(wish, run, judged, _memory.config(wish, facts))
    return wish


def _left(run: Run, known: t.Mapping[str, Run]) -> dict[str, t.Any]:
    """What a run left, as its node has seen it, else as it was planned."""
    return known.get(run["id"], {}).get("left") or run.get("left") or {}


def missing(resolved: t.Mapping[str, t.Any], facts: t.Mapping[str, Facts]) -> str:
    """Which of the earlier runs is not finished on which host; empty where all are."""
    for run_id in named(resolved):
        states = {host: node["before"].get(run_id, {}).get("state", "absent") for host, node in facts.items()}
        wrong = [f"{host}: {state}" for host, state in states.items() if state != "finished"]
        if wrong:
            return str(
                FinetuneError(
                    f"Run {run_id}, which this one begins with, is not finished.",
                    where="\n          ".join(wrong),
                    change="apply that one first; a host that was added since gets its results from train_store, with "
                    "train_output_root, or when their folder is copied to it",
                )
            )
    return ""


def _find(wanted: str, variable: str, wish: Wish, known: t.Mapping[str, Run], made: t.Mapping[str, Run]) -> Run:
    """The run of that name or id. known: by id, those on the first node."""
    if wanted == wish.name:
        raise FinetuneError("A run cannot begin with itself.", where=variable, change="name an earlier one")
    if wanted in made:
        return made[wanted]
    if wanted in known:
        return known[wanted]
    finished = [run for run in known.values() if run["id"].rpartition("-")[0] == wanted and run["state"] == "finished"]
    if not finished:
        others = ", ".join(f"{run['id']} is {run['state']}" for run in known.values())
        raise FinetuneError(
            f"There is no finished run {wanted!r}" + (f": {others}." if others else "."),
            where=variable,
            change="train it first, or correct the name; status shows all runs",
        )
    return max(finished, key=lambda run: float(run.get("created") or 0))


def _with_model(wish: Wish, run: Run) -> Wish:
    """All weights of the run are the model; an adapter of its goes onto the model that it was made for."""
    arguments, model = run["resolved"]["arguments"], run["resolved"]["model"]
    origin, reference = f"train_from {run['id']}", EARLIER + run["id"]
    family = str(model.get("family") or model["name"])
    template = arguments.get("template")
    wish = replace(
        wish,
        family=family,
        template=_template.Choice(str(template), False, origin) if template else wish.template,
    )
    if arguments["stage"] == "rm" != wish.stage:
        wish = _noting(wish, f"{origin}: that run is a reward model, and what scores answers in it is not taken along.")
    if arguments["finetuning_type"] in _WHOLE:
        return replace(wish, model=reference, model_revision="")
    adapters = [*_merged(arguments), reference]
    own: dict[str, t.Any] = {"adapter_name_or_path": ",".join(adapters)}
    asked = {**wish.base, **wish.args}
    if wish.stage in _ANEW and "create_new_adapter" not in asked and not asked.get("quantization_bit"):
        own["create_new_adapter"] = True
    void = [key for key in _OF_ADAPTER if key in asked and (asked[key] or None) != (arguments.get(key) or None)]
    if void and not {**asked, **own}.get("create_new_adapter"):
        wish = _noting(
            wish,
            f"{origin}: its adapter is trained on as it is, and {', '.join(void)} passed over; with "
            "create_new_adapter: true in train_args a new one is begun on top.",
        )
    return _with(replace(wish, model=model["name"], model_revision=str(model["revision"])), own, origin)


def _noting(wish: Wish, notice: str) -> Wish:
    return replace(wish, notices=[*wish.notices, notice])


def _with_reward(wish: Wish, run: Run, judged: t.Mapping[str, t.Any], config: t.Mapping[str, t.Any]) -> Wish:
    """judged, config: config.json of the model that the reward model was trained on, and of the one of the wish."""
    arguments = run["resolved"]["arguments"]
    if arguments["stage"] != "rm":
        raise FinetuneError(
            f"Run {run['id']} is no reward model: its stage is {arguments['stage']}.",
            where="train_reward_from",
            change="name a run of recipe reward",
        )
    kind = "full" if arguments["finetuning_type"] in _WHOLE else "lora"
    if kind == "lora":
        if unlike := _unlike(wish.model, run["resolved"]["model"]["name"], judged, config):
            raise FinetuneError(
                f"Run {run['id']} left an adapter that scores answers on {unlike[0]}, and PPO would put it onto "
                f"{unlike[1]}.",
                where="train_reward_from",
                change="name a run of recipe reward on the same model, or one that trained all weights",
            )
        wish = replace(wish, scored_on=tuple(_merged(arguments)))
    own = {"reward_model": EARLIER + run["id"], "reward_model_type": kind}
    return _with(wish, own, f"train_reward_from {run['id']}")


def _unlike(
    model: str, scored: str, judged: t.Mapping[str, t.Any], config: t.Mapping[str, t.Any]
) -> tuple[str, str] | None:
    """What the reward model was trained on and what it would score, where these are known to be two models: by name,
    or by what config.json says of their shape."""
    ours, other = _plainly(model), _plainly(scored)
    if ours and other and ours != other:
        return other, ours
    keys = [key for key in _SHAPE if key in judged and key in config and judged[key] != config[key]]
    told = ", ".join(f"{key} {judged[key]} and not {config[key]}" for key in keys)
    return (f"a model with {told}", model) if keys else None


def _merged(arguments: t.Mapping[str, t.Any]) -> list[str]:
    return _model.merged(_schema.as_words(arguments.get("adapter_name_or_path")), arguments.get("create_new_adapter"))


def _plainly(model: str) -> str:
    """A model by the one name that it has; empty for a folder, which may be a copy of any."""
    copied = model.startswith(("/", _sent_model.PREFIX)) or model == _sent_model.NAME
    return "" if copied else model.removeprefix(hub_modelscope.PREFIX)


def _with(wish: Wish, own: dict[str, t.Any], origin: str) -> Wish:
    """Arguments that an earlier run decides; the author cannot have written them too."""
    for key in own:
        if key in wish.args:
            raise FinetuneError(
                f"{origin.partition(' ')[0]} decides {key}.",
                where=f"{wish.origins.get(key, 'train_args')}, key {key}",
                change=f"remove it there, or leave {origin.partition(' ')[0]} out",
            )
    return replace(wish, args={**wish.args, **own}, origins={**wish.origins, **dict.fromkeys(own, origin)})
