# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an apply changes on a node, or in check mode would change."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Changes:
    """What an apply changes, or in check mode would change."""

    dry: bool
    made: list[dict[str, str]] = field(default_factory=list)

    def add(self, action: str, path: Path | str) -> bool:
        """Note a change; True when it is to be made."""
        self.made.append({"action": action, "path": str(path)})
        return not self.dry


def answer(made: t.Sequence[t.Mapping[str, str]], diff: bool) -> dict[str, t.Any]:
    """What a module says of changes, each an action and what it is done to. diff: also as lines that --diff shows."""
    told: dict[str, t.Any] = {"changed": bool(made), "changes": made}
    lines = [" ".join(change.values()) for change in made]
    return {**told, "diff": {"prepared": "\n".join([*lines, ""])}} if diff and made else told
