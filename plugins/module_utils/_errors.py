# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one error of this collection: what is wrong, where, and what to change."""

from __future__ import annotations


class FinetuneError(Exception):
    """A refusal or failure that a person can act on.

    what: one sentence. where: variable, file, record or host. change: the remedy, naming the variable.
    """

    def __init__(self, what: str, *, where: str = "", change: str = "") -> None:
        self.what = what
        self.where = where
        self.change = change
        super().__init__(self.message())

    def message(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where:  {self.where}")
        if self.change:
            lines.append(f"  change: {self.change}")
        return "\n".join(lines)
