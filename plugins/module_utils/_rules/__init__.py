# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What LLaMA-Factory refuses after minutes, or takes and does otherwise: as tables that a plan reads in no time.

A row speaks when its condition holds. It is about `keys`, of which the author changes one. Sources are files of
LLaMA-Factory, 0.9.5, for stage ppo 0.9.3 and for KTransformers 0.9.6.dev0, unless they name another package.
"""

from __future__ import annotations

import typing as t

from .._schema import Problem, Schema
from . import data, engines, model, packages, pretrained, ranges, stages, trackers, trainer, tuning
from .rule import Rule, Situation, View

__all__ = ["RULES", "TABLES", "Rule", "Situation", "View", "problems"]

TABLES = (model, pretrained, data, stages, tuning, engines, packages, trainer, ranges, trackers)
RULES: t.Tuple[Rule, ...] = tuple(rule for table in TABLES for rule in table.RULES)


def problems(
    arguments: t.Mapping[str, t.Any],
    schema: Schema,
    situation: Situation,
    written: t.Container[str] = (),
    rules: t.Sequence[Rule] = RULES,
) -> list[Problem]:
    """Every row that speaks about these arguments, as a problem of the first of its keys that the author wrote."""
    view = View(arguments, schema, situation)
    return [
        Problem(next((key for key in rule.keys if key in written), rule.keys[0]), rule.what, *rule.remedy(view))
        for rule in rules
        if rule.broken(view)
    ]
