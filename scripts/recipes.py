# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The recipes in roles/train/files/recipes, as tables.

usage: python scripts/recipes.py           prints name, purpose, hardware, and whether it is proved
       python scripts/recipes.py --write   writes docs/recipes.md, and the option train_recipe of the role
"""

from __future__ import annotations

import re
import signal
import sys
import textwrap
import typing as t
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "recipes.md"
SPECS = REPOSITORY / "roles" / "train" / "meta" / "argument_specs.yml"
DATA = {
    "pt": "plain text",
    "sft": "answers",
    "rm": "pairs of answers",
    "dpo": "pairs of answers",
    "kto": "answers marked as good or bad",
    "ppo": "prompts, and a reward model",
}
"""By stage: what it learns from."""
_DEFAULT = "lora_sft"
_OPTION = re.compile(r"^      train_recipe:\n(?:        .*\n)+", re.MULTILINE)
"""In the specs of the role."""


def recipes() -> dict[str, t.Any]:
    sys.path.insert(0, str(REPOSITORY / "collections"))
    from ansible_collections.llmops.finetune.plugins.plugin_utils import _recipes

    return dict(_recipes.read())


def page() -> str:
    from ansible_collections.llmops.finetune.plugins.module_utils import _parallel, _recipe
    from ansible_collections.llmops.finetune.plugins.module_utils._engine import base_model

    known = recipes()
    common = set.intersection(*(set(recipe.arguments.items()) for recipe in known.values()))
    first = next(iter(known.values())).arguments
    lines = [
        "# Recipes",
        "",
        "What `train_recipe` takes. Written by `scripts/recipes.py` from the files in `roles/train/files/recipes`.",
        "Proved means that `make soak` trains with it on a CPU, and lets a rank die ([soak.md](soak.md)); none was run",
        "on a GPU yet. Of the others LLaMA-Factory's own parser takes the keys, in their environments; but for",
        "`megatron`, which has none, and whose keys are held against its documents alone. `train_args` go over every",
        "key.",
        "",
        "| recipe | what it does | learns from | needs | proved |",
        "|---|---|---|---|---|",
    ]
    for name, recipe in known.items():
        cells = [f"`{name}`", recipe.purpose, DATA[recipe.arguments["stage"]], recipe.hardware]
        lines.append("| " + " | ".join([*cells, f"no: {recipe.unproved}" if recipe.unproved else "yes"]) + " |")
    all_have = ", ".join(f"`{key}: {_value(first[key])}`" for key in first if (key, first[key]) in common)
    demo = ", ".join(f"`{key}: {_value(value)}`" for key, value in base_model.RECIPE["fine_tuning"].items())
    lines += ["", "## Their keys", "", f"All have {all_have}.", ""]
    lines += [f"On the small model `demo` a run has in their place {demo}. `train_args` go over these too.", ""]
    lines += ["| recipe | keys | environment | engine |"]
    lines.append("|---|---|---|---|")
    for name, recipe in known.items():
        own = [f"`{key}: {_value(value)}`" for key, value in recipe.arguments.items() if (key, value) not in common]
        environment = _recipe.environment(recipe.arguments, _parallel.environment(recipe.engine))
        lines.append(f"| `{name}` | {', '.join(own)} | node-{environment} | {recipe.engine or 'auto'} |")
    return "\n".join(lines) + "\n"


def option() -> str:
    """The option train_recipe of the role, as YAML."""
    known = recipes()
    lines = ["      train_recipe:", "        type: str", f"        default: {_DEFAULT}"]
    lines += ["        choices:", *(f"          - {name}" for name in known), "        description:"]
    lines += _item(
        "Named set of LLaMA-Factory's keys that the run starts from; O(train_args) and O(train_set) go over it."
    )
    for name, recipe in known.items():
        told = f" B(Unproved): {recipe.unproved}." if recipe.unproved else ""
        lines += _item(f"V({name}) is {recipe.purpose}. It needs {recipe.hardware}.{told}")
    return "\n".join(lines) + "\n"


def specs() -> str:
    """The specs of the role, with the option of today."""
    return _OPTION.sub(lambda _found: option(), SPECS.read_text(encoding="utf-8"), count=1)


def table() -> str:
    rows = [
        (name, recipe.purpose, recipe.hardware, f"unproved: {recipe.unproved}" if recipe.unproved else "proved")
        for name, recipe in recipes().items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0])) for row in rows)


def _value(value: t.Any) -> str:
    from ansible_collections.llmops.finetune.plugins.module_utils import _config

    return _config.to_yaml(value)


def _item(text: str) -> list[str]:
    """An item of a list, folded."""
    lines = textwrap.wrap(text, 104, break_on_hyphens=False)
    return ["          - >-", *(f"            {line}" for line in lines)]


if __name__ == "__main__":
    if "--write" in sys.argv:
        recipes()
        PAGE.write_text(page(), encoding="utf-8")
        SPECS.write_text(specs(), encoding="utf-8")
    else:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it
        print(table())
