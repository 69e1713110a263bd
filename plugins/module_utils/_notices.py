# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a plan says besides what it does: drift, doubts, and what comes out otherwise than its author may think."""

from __future__ import annotations

import re
import typing as t

from . import _nodes, _parallel, _template, _tools
from ._dataset import Source
from ._engine.hub_s3 import BRANCH
from ._wish.wish import DEMO_MODEL, Wish

if t.TYPE_CHECKING:
    from ._plan import Plan


def notices(
    wish: Wish,
    plan: Plan,
    record: dict[str, t.Any],
    resolved: dict[str, t.Any],
    sources: t.Sequence[Source],
    template: _template.Choice | None,
) -> list[str]:
    told = list(wish.notices)
    if record and not plan.recorded:
        told.append(
            f"Resolved again: recorded for {record.get('world_size')} ranks, now there are {resolved['world_size']}."
        )
    if plan.recorded:
        for key in ("environment", "model"):
            if record[key] != resolved[key]:
                told.append(
                    f"Drift: the run keeps {key} {_short(record[key])}; train_resolve=refresh would take "
                    f"{_short(resolved[key])}."
                )
    if again := _nodes.begins_again(plan.resolved["arguments"]):
        told.append(f"{again} cannot go on from a checkpoint: after an interruption it begins again.")
    if _parallel.ENGINES[plan.resolved["engine"]].unproved:
        told.append(
            f"Engine {plan.resolved['engine']} is unproved: its files and variables are rendered as its documents have "
            "them, and this project has never run it."
        )
    if _parallel.ENGINES[plan.resolved["engine"]].offload:
        told.append(
            f"Engine {plan.resolved['engine']}: a run that goes on from a checkpoint has come out otherwise than an "
            "undisturbed one; without _offload it comes out the same."
        )
    if wish.stage == "dpo" and _copies_the_model(plan.resolved["arguments"]):
        told.append("Without `ref_model`, DPO of all weights keeps a second copy of the model in memory.")
    if "eval_steps" in wish.args and plan.resolved["arguments"].get("eval_strategy", "no") == "no":
        told.append("eval_steps is passed over: eval_strategy is no.")
    if plan.resolved["arguments"].get("tokenized_path"):
        told.append("Where tokenized_path holds tokens already, they are trained on, whatever data and template are.")
    if not (wish.hub or wish.begins_with) and wish.model_revision != BRANCH:
        told.append(f"train_model_revision {wish.model_revision} is passed over: the model is not one of a hub.")
    learned = {source.digest for source in sources if source.digest and not source.evaluates}
    for source in sources:
        if source.evaluates and source.digest in learned:
            told.append(f"Dataset {source.dataset.name}: it is trained on, so that it does not show what was learned.")
        known = bool(plan.resolved["arguments"].get("template"))
        doubts = _tools.with_template(source.doubts) if known else source.doubts
        told += [f"Dataset {source.dataset.name}: {doubt}." for doubt in doubts]
        drawn, most = source.dataset.options.get("num_samples"), plan.resolved["arguments"].get("max_samples")
        if drawn and most and drawn > most:
            told.append(f"Dataset {source.dataset.name}: of its num_samples {drawn}, max_samples keeps {most}.")
        if drawn and plan.resolved["arguments"].get("streaming"):
            told.append(f"Dataset {source.dataset.name}: a stream passes over num_samples.")
        if source.unread:
            told.append(
                f"Dataset {source.dataset.name}: its records are read when the environment is there, and the plan is "
                "made again with them before anything is staged."
            )
        if not source.digest:
            told.append(f"Dataset {source.dataset.name} is on a hub: none of its records was read before.")
        if source.dataset.formatting == "openai":
            told.append(
                f"Dataset {source.dataset.name}: to records of formatting openai without tools, LLaMA-Factory adds the "
                "system prompt `detailed thinking off`; sharegpt with `tags` does not."
            )
    return told + _about_template(wish, plan.resolved["arguments"], template)


def _short(identity: t.Mapping[str, str]) -> str:
    """Name and version of an environment or a model, as a person reads them."""
    return " ".join(value[:12] if re.fullmatch("[0-9a-f]{16,}", value) else value for value in identity.values())


def _about_template(wish: Wish, arguments: t.Mapping[str, t.Any], choice: _template.Choice | None) -> list[str]:
    """That there is none, or that the model's is another one than the author has written."""
    if wish.model == DEMO_MODEL:
        return []
    if "template" not in arguments:
        why = (
            "none is known"
            if choice is None
            else "it was resolved without"
            if choice.template
            else "it is a base model"
        )
        return [f"No `template` is given ({why}): LLaMA-Factory takes the chat template of the model's tokenizer."]
    given, right = arguments["template"], choice.template if choice else ""
    if not right or given in (None, right) or _template.twin(given, right, wish.model):
        return []
    return [f"`template` is {given}; that of the model is {right}, {choice.why if choice else ''}."]


def _copies_the_model(arguments: t.Mapping[str, t.Any]) -> bool:
    """DPO compares with the model as it was: an adapter is taken off for that, changed weights need their copy."""
    alone = arguments.get("pref_loss") in ("orpo", "simpo")
    return arguments["finetuning_type"] != "lora" and not arguments.get("ref_model") and not alone
