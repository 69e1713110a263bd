# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make soak [PART=faults|hosts|recipes|parsers]`: long campaigns, and their tables in docs/soak.md. What follows
PART is for pytest, as in PART="recipes -k dora".

Takes the world of the end-to-end tests: a fresh clone, a real environment, real training.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import REPOSITORY

PAGE = REPOSITORY / "docs" / "soak.md"
PARTS = {
    "faults": "What is killed",
    "hosts": "What befalls hosts",
    "recipes": "Recipes",
    "parsers": "What is refused",
}
"""By file soak_….py: the heading of its table."""
REPORT: list[str] = []
"""Rows of the part that is running, the head first."""


def main(asked: list[str]) -> int:
    parts = [word for word in asked if word in PARTS] or list(PARTS)
    options = [word for word in asked if word not in PARTS]
    failed = 0
    for part in parts:
        REPORT.clear()
        commit = _head()  # what the world clones now; a long campaign may see others made
        file = Path(__file__).with_name(f"soak_{part}.py")
        rc = pytest.main([str(file), "-q", "-p", "no:cacheprovider", "-o", "python_files=soak_*.py", *options])
        failed = failed or int(rc)
        if REPORT:
            write(part, options, REPORT, commit, ended_well=rc == 0)
    return failed


def write(part: str, options: list[str], report: list[str], commit: str, *, ended_well: bool) -> None:
    """Put the rows of a part in place of its last ones; where only some of it was asked for, the others stay."""
    head, rule, *rows = report
    sections = dict(section.split("\n", 1) for section in _text().split("\n## ")[1:])
    before = [row for row in sections.get(PARTS[part], "").splitlines() if row.startswith("| ")][1:]
    kept = {_about(row): row for row in before} if options else {}
    table = kept | {_about(row): f"{row} {commit} |" for row in rows}
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    ended = "" if ended_well else " Some of the last run FAILED: what is not of its commit."
    lines = [f"`make soak PART={part}`: {machine}.{ended}", "", f"{head} commit |", f"{rule}---|", *table.values()]
    sections[PARTS[part]] = "\n" + "\n".join(lines) + "\n"
    told = [f"## {title}\n{sections[title]}" for title in PARTS.values() if title in sections]
    PAGE.write_text("\n".join(["# Soak\n", *told]), encoding="utf-8")


def _head() -> str:
    asked = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()


def _text() -> str:
    return PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""


def _about(row: str) -> str:
    return row.split("|")[1].strip()


if __name__ == "__main__":
    from tests.e2e import soak  # as pytest imports it

    sys.exit(soak.main(sys.argv[1:]))
