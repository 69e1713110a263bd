# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""vram_info on the controller: how much memory a run needs, from files that only the controller reads."""

from __future__ import annotations

import json
import re
import typing as t
from pathlib import Path

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

from ..module_utils import _lookup, _parallel, _rules, _schema, _sources
from ..module_utils._errors import FinetuneError
from ..module_utils._vram import estimate, hardware, report
from ..module_utils._vram.options import Situation
from ..plugin_utils import _recipes

OPTIONS = (
    "config",
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
                torch=str(given.get("torch", "2.8.0")),
                padded=boolean(given["padded"]) if "padded" in given else None,
                expandable=boolean(given.get("expandable_segments", True)),
            )
            config = self._config(given.get("config"), task_vars or {})
            found = estimate.estimate(config, _arguments(given), situation, not boolean(given.get("quick", False)))
        except FinetuneError as error:
            return {"failed": True, "msg": str(error)}
        verdict = estimate.verdict(found, gpu.memory, used) if gpu else None
        told = report.lines(found, verdict, ranks)
        for line in told:
            self._display.display(line)
        judged = {"verdict": verdict._asdict()} if verdict else {}
        return {"changed": False, "estimate": found.as_dict(), "told": told, **judged}

    def _config(self, given: t.Any, known: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        if isinstance(given, t.Mapping):
            return dict(given)
        wanted, folders = str(given or ""), _lookup.folders(known)
        if wanted and any(map(Path.is_dir, _lookup.candidates(wanted, folders))):
            wanted = str(Path(wanted) / "config.json")
        change = "give the path of the model's config.json, or of its folder; of a model on a hub, fetch that file"
        return _read(_lookup.find(wanted, folders, "There", "config", change))


def _read(path: Path) -> dict[str, t.Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FinetuneError(f"{path} cannot be read: {error}.", where="config", change="fetch it again") from None
    if not isinstance(found, dict):
        raise FinetuneError(f"{path} is no JSON object.", where="config", change="give the model's config.json")
    return found


def _ranks(given: t.Any) -> int:
    text = str(given)
    if not re.fullmatch("[0-9]{1,6}", text) or int(text) < 1:
        raise FinetuneError(f"world_size is {text}.", where="world_size", change="use a whole number from 1")
    return int(text)


def _engine(wanted: str) -> str:
    names = [name for name, engine in _parallel.ENGINES.items() if not engine.unproved and name != "single"]
    if wanted not in ("auto", *names):
        raise FinetuneError(f"engine is {wanted!r}.", where="engine", change=f"use auto, {', '.join(names)}")
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
    schema = _sources.schemas()["main"]
    arguments = {**base, **_schema.typed(own, schema, "args")}
    wrong = _rules.problems(arguments, schema, _rules.Situation(), own, _rules.ranges.ESTIMATED)
    _schema.refuse(wrong, dict.fromkeys(own, "args"))
    return arguments
