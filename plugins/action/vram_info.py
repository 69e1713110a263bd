# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""vram_info on the controller: how much memory a run needs, from files that only the controller reads."""

from __future__ import annotations

import re
import typing as t

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

from ..module_utils import _config, _model_config, _rules, _schema, _sources
from ..module_utils._errors import FinetuneError
from ..module_utils._vram import engines, estimate, hardware, keys, report
from ..module_utils._vram.options import Situation
from ..plugin_utils import _recipes

OPTIONS = (
    "config",
    "revision",
    "args",
    "recipe",
    "gpu",
    "used",
    "world_size",
    "engine",
    "padded",
    "torch",
    "expandable_segments",
    "quick",
)


_ENGINE = {key for key, variable in _config.OWNED.items() if variable == "train_engine"} - keys.UNKNOWN.keys()
"""LLaMA-Factory's keys in whose place stands the option `engine`."""


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _requires_connection = False
    _VALID_ARGS = frozenset(OPTIONS)

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        super().run(tmp, task_vars)
        given = {key: value for key, value in self._task.args.items() if value is not None and value != ""}
        try:
            gpu = hardware.find(str(given["gpu"])) if "gpu" in given else None
            used = hardware.amount(str(given["used"]), "used") if "used" in given else 0
            ranks = _ranks(given.get("world_size", 1))
            situation = Situation(
                world=ranks,
                engine=_engine(str(given.get("engine", "auto"))),
                gpu=gpu,
                torch=_version(given.get("torch", "2.8.0")),
                padded=_yes(given, "padded", None),
                expandable=_yes(given, "expandable_segments", True),
            )
            config = _model_config.find(given.get("config"), task_vars or {}, str(given.get("revision", "main")))
            found = estimate.estimate(config, _arguments(given), situation, not _yes(given, "quick", False))
        except FinetuneError as error:
            return {"failed": True, "msg": str(error)}
        verdict = estimate.verdict(found, gpu.memory, used) if gpu else None
        told = report.lines(found, verdict, ranks)
        for line in told:
            self._display.display(line)
        judged = {"verdict": verdict._asdict()} if verdict else {}
        return {"changed": False, "estimate": found.as_dict(), "told": told, **judged}


def _yes(given: t.Mapping[str, t.Any], option: str, default: bool | None) -> t.Any:
    try:
        return boolean(given[option]) if option in given else default
    except TypeError:
        raise FinetuneError(f"{option} is {given[option]}.", where=option, change="write true or false") from None


def _version(given: t.Any) -> str:
    if not re.match(r"[0-9]+\.[0-9]+", str(given)):
        raise FinetuneError(f"torch is {given}.", where="torch", change='write a version, as "2.8.0"')
    return str(given)


def _ranks(given: t.Any) -> int:
    text = str(given)
    if not re.fullmatch("[0-9]{1,6}", text) or int(text) < 1:
        raise FinetuneError(f"world_size is {text}.", where="world_size", change="use a whole number from 1")
    return int(text)


def _engine(wanted: str) -> str:
    if wanted not in ("auto", *engines.NAMES):
        raise FinetuneError(f"engine is {wanted!r}.", where="engine", change=f"use auto, {', '.join(engines.NAMES)}")
    return wanted


def _arguments(given: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The keys of a recipe, and over them those of args, checked as those of a run are."""
    own = given.get("args", {})
    if not isinstance(own, t.Mapping):
        raise FinetuneError("args is no dict.", where="args", change="write args: {cutoff_len: 4096}")
    recipes, base = _recipes.read(), {}
    if "recipe" in given:
        name = str(given["recipe"])
        if name not in recipes:
            raise FinetuneError(
                f"There is no recipe {name}.", where="recipe", change=f"use one of {', '.join(sorted(recipes))}"
            )
        base = dict(recipes[name].arguments)
    for key in _ENGINE & own.keys():
        raise FinetuneError(
            f"{key} is a file or a word for how ranks share the work, and is not read here.",
            where=f"args, key {key}",
            change=f"remove it, and name the engine: {', '.join(engines.NAMES)}",
        )
    schema = _sources.schemas()["main"]
    arguments = {**base, **_schema.typed(own, schema, "args")}
    wrong = _rules.problems(arguments, schema, _rules.Situation(), own, _rules.ranges.ESTIMATED)
    _schema.refuse(wrong, dict.fromkeys(own, "args"))
    return arguments
