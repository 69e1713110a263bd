# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write docs/keys-….md, the pages of every key that a version of LLaMA-Factory takes, and of those that Megatron adds.

usage: python scripts/keys.py
"""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
FILES = REPOSITORY / "roles" / "train" / "files"
GROUPS = {
    "model": "The model, its quantization and attention",
    "data": "Data, templates, packing",
    "finetuning": "Stages and ways to tune",
    "training": "The Trainer of transformers, and what LLaMA-Factory adds to it",
    "generating": "Generated answers",
}


def page(schema: dict[str, t.Any]) -> str:
    lines = megatron(schema) if "source" in schema else llamafactory(schema["versions"])
    for group, title in GROUPS.items():
        if group not in {key["group"] for key in schema["keys"].values()}:
            continue
        lines += ["", f"## {title}", "", "| key | takes | default | what for |", "|---|---|---|---|"]
        for name, key in sorted(schema["keys"].items()):
            if key["group"] == group:
                takes = ", ".join(map(str, key["choices"])) or " or ".join(kind for kind in key["types"])
                default = json.dumps(key["default"], ensure_ascii=False)
                cells = [f"`{name}`", takes, f"`{default}`", key["help"]]
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def llamafactory(versions: dict[str, str]) -> list[str]:
    return [
        f"# Keys of LLaMA-Factory {versions['llamafactory']}",
        "",
        "What `train_args` and `train_set` take. Written by `scripts/keys.py` from what `scripts/schema.py` extracted;",
        f"training keys are those of transformers {versions['transformers']}. Defaults are LLaMA-Factory's: a recipe's",
        "own values go over them. What a key is for is said in upstream's words (Apache-2.0).",
    ]


def megatron(schema: dict[str, t.Any]) -> list[str]:
    return [
        "# Keys of Megatron",
        "",
        "What `train_args` and `train_set` take besides with `train_engine: megatron`, which is unproved: this project",
        f"has never run it. Written by `scripts/keys.py` from {schema['source']}",
        f"({schema['versions']['mcore_adapter']}).",
    ]


def pages() -> dict[Path, str]:
    """Every page by its place."""
    schemas = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in FILES.glob("*/keys.json")}
    return {
        REPOSITORY / "docs" / f"keys-{name.removeprefix('llamafactory-')}.md": page(schema)
        for name, schema in sorted(schemas.items())
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(path)
