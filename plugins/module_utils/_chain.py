# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The members of train_chain: what each says goes over the role's inputs, its train_args key by key."""

from __future__ import annotations

import typing as t

from ._errors import FinetuneError
from ._wish.wish import DEMO_MODEL

VARIABLE = "train_chain"
KEYS = (
    "train_name",
    "train_from",
    "train_reward_from",
    "train_recipe",
    "train_config",
    "train_args",
    "train_model",
    "train_model_revision",
    "train_datasets",
    "train_eval_datasets",
    "train_engine",
    "train_global_batch_size",
)
"""What a member may say: what the run is, and not where it runs."""


def members(chain: t.Any) -> list[t.Any]:
    """Refuse two of one name, and what begins with a run that only comes later."""
    found = list(chain) if isinstance(chain, (list, tuple)) else [chain]
    names = [_word(member, "train_name") for member in found]
    for place, (name, member) in enumerate(zip(names, found)):
        if name and name in names[:place]:
            raise FinetuneError(
                f"Two members of the chain are called {name}.",
                where=f"train_chain, member {place + 1}",
                change="give each a train_name of its own, by which later ones take it up (train_from)",
            )
        for key in ("train_from", "train_reward_from"):
            first = _word(member, key)
            if not name or not first or first not in names[place + 1 :]:
                continue
            if name in _begins_with(first, dict(zip(names, found))):
                raise FinetuneError(
                    f"{name} begins with {first}, and that with {name} again.",
                    where=f"train_chain, member {name}, {key}",
                    change="let one of them begin with a model: leave its train_from out",
                )
            raise FinetuneError(
                f"{name} begins with {first}, which comes later in the chain.",
                where=f"train_chain, member {name}, {key}",
                change=f"list {first} before {name}",
            )
    return found


def _word(member: t.Any, key: str) -> str:
    return str(member.get(key) or "") if isinstance(member, t.Mapping) else ""


def _begins_with(name: str, members: t.Mapping[str, t.Any]) -> set[str]:
    """The runs that a member begins with, and what these begin with."""
    found: set[str] = set()
    waiting = {name}
    while waiting:
        member = members.get(waiting.pop())
        waiting |= {_word(member, key) for key in ("train_from", "train_reward_from")} - found - {""}
        found |= waiting
    return found


def check(variables: t.Mapping[str, t.Any], chain: t.Any, read: t.Callable[[dict[str, t.Any]], t.Any]) -> None:
    """Read all members, and say in which one a mistake is."""
    for member in members(chain):
        given = over(variables, member)
        try:
            read(given)
        except FinetuneError as error:
            raise of_member(member, error) from None


def passed_over(chain: t.Any, member: t.Any) -> list[str]:
    """What a plan says where there is a chain, and the run is none of its members."""
    return (
        ["train_chain is passed over: the playbook llmops.finetune.chain applies it."] if chain and not member else []
    )


def of_member(member: t.Any, error: FinetuneError) -> FinetuneError:
    """The same error, which says in which member it is."""
    if not isinstance(member, t.Mapping) or error.where.startswith(VARIABLE):
        return error
    where = f"{VARIABLE}, member {member.get('train_name')}: {error.where}"
    return FinetuneError(error.what, where=where, change=error.change)


def over(variables: t.Mapping[str, t.Any], member: t.Any) -> dict[str, t.Any]:
    """The variables of one member. What all have in common is not for one that has its own from elsewhere: held-out
    records where it names data, the model where it begins with an earlier run, and the revision of another model."""
    if not isinstance(member, t.Mapping) or not member.get("train_name"):
        raise FinetuneError(
            "A member of a chain has no name.",
            where=f"train_chain: {member}",
            change="give each a train_name of its own, by which later ones take it up (train_from)",
        )
    where = f"train_chain, member {member['train_name']}"
    for key in member:
        if key not in KEYS:
            raise FinetuneError(f"A member of a chain cannot say {key}.", where=where, change="use " + ", ".join(KEYS))
    own = member.get("train_args") or {}
    common = variables.get("train_args") or {}
    if not isinstance(own, t.Mapping) or not isinstance(common, t.Mapping):
        raise FinetuneError("train_args is no dict.", where=where, change="write keys with their values below it")
    held_out = [] if "train_datasets" in member else variables.get("train_eval_datasets")
    model = DEMO_MODEL if member.get("train_from") else variables.get("train_model")
    variables = {**variables, "train_eval_datasets": held_out, "train_model": model}
    if member.get("train_from") or member.get("train_model") not in (None, model):
        variables["train_model_revision"] = "main"
    return {**variables, **member, "train_args": {**common, **own}}
