# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For every row of the rules, arguments that break it and the least change that is taken; a room for each of theirs."""

from __future__ import annotations

from . import data, engines, model, packages, pretrained, ranges, stages, trackers, trainer, tuning
from .situations import Case

CASES: list[Case] = [
    case
    for room in (model, pretrained, data, stages, tuning, engines, packages, trainer, ranges, trackers)
    for case in room.CASES
]
