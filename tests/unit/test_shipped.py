# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Ansible sends with a module that runs on nodes: nothing of what decides on the controller.

Every import counts, also one in a function or for types alone: Ansible reads each file for them, packs what it names,
and sends that with every call.
"""

from __future__ import annotations

import ast
import typing as t
from pathlib import Path

import pytest

from ..conftest import REPOSITORY

UTILS = REPOSITORY / "plugins" / "module_utils"
CONTROLLER = {"_plan", "_nodes", "_situation", "_memory", "_fastest", "_ranks", "_identity", "_rules", "_vram", "_wish"}
MODULES = ("node_info", "train_run", "train_run_info", "train_allreduce", "train_fetch", "uv_env")


def file(name: str) -> Path | None:
    found = (UTILS.joinpath(*name.split(".")).with_suffix(".py"), UTILS.joinpath(*name.split("."), "__init__.py"))
    return next((path for path in found if path.is_file()), None)


def imported(path: Path, package: list[str]) -> t.Iterator[str]:
    """Names below module_utils. package: that of the file, from there."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            words = (node.module or "").split(".") if node.module else []
            base = [*package[: len(package) - node.level + 1], *words]
            if path.parent.name == "modules":
                base = words[1:]
            yield from (".".join([*base, one.name]) for one in node.names)
            yield ".".join(base)


def sent(module: str) -> set[str]:
    waiting = list(imported(REPOSITORY / "plugins" / "modules" / f"{module}.py", []))
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        path = file(name) if name else None
        if path is None or name in found:
            continue
        found.add(name)
        words = name.split(".")
        waiting += imported(path, words if path.name == "__init__.py" else words[:-1])
    return found


@pytest.mark.parametrize("module", MODULES)
def test_a_module_on_nodes_has_nothing_that_decides(module: str) -> None:
    names = sent(module)
    assert "_errors" in names and not {name.partition(".")[0] for name in names} & CONTROLLER


def test_what_only_acts_has_nothing_that_looks_at_records_or_gpus() -> None:
    names = {name.partition(".")[0] for name in sent("train_run")}
    assert "_sealed" in names and not names & {"_node", "_checker", "_dataset", "_records", "_tables", "_json"}


def test_what_starts_a_supervisor_is_none() -> None:
    """Its parts are sent as text, for the folder of the run."""
    names = sent("train_run")
    assert "_engine.logs" in names and not names & {"_engine.supervisor", "_engine.rank", "_engine.notices"}
