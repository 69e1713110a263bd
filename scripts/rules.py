# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write docs/rules.md, the page of what a plan refuses because LLaMA-Factory would later, from the tables of rules.

usage: python scripts/rules.py
"""

from __future__ import annotations

import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "rules.md"


def page() -> str:
    sys.path.insert(0, str(REPOSITORY / "collections"))
    from ansible_collections.llmops.finetune.plugins.module_utils import _rules

    lines = [
        "# What a plan refuses",
        "",
        "Written by `scripts/rules.py` from `plugins/module_utils/_rules`. These are combinations that LLaMA-Factory",
        "refuses after minutes, or takes and does otherwise; misspelt keys, values of another type and records are",
        "refused besides. Sources are files of LLaMA-Factory unless they name another package. Where no remedy is",
        "given, the refusal has one that depends on the values.",
    ]
    for table in _rules.TABLES:
        lines += ["", f"## {(table.__doc__ or '').partition(chr(10))[0].rstrip('.')}", ""]
        lines += ["| about | refused, because | what to do | source |", "|---|---|---|---|"]
        for rule in table.RULES:
            remedy = "" if callable(rule.change) else str(rule.change)
            cells = [", ".join(f"`{key}`" for key in rule.keys), rule.what, remedy, rule.source]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
