# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes what the installed LLaMA-Factory takes, as data: its keys, its chat templates, the models it knows.

usage, with the Python of a node environment:
    <root>/envs/<digest>/bin/python scripts/schema.py roles/train/files

Keys are those of the classes that LLaMA-Factory's own parser fills, so what they inherit from transformers is among
them: group, types, default, choices, and the first sentence of what each is for, which is upstream's (Apache-2.0).
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import importlib.metadata
import inspect
import json
import re
import sys
import types
import typing as t
from pathlib import Path

GROUPS = {
    "ModelArguments": "model",
    "DataArguments": "data",
    "TrainingArguments": "training",
    "FinetuningArguments": "finetuning",
    "GeneratingArguments": "generating",
}
WORDS = {str: "text", int: "integer", float: "number", bool: "boolean", dict: "dict", list: "list", type(None): "null"}


def kinds(annotation: t.Any) -> list[str]:
    """What a value may be, in the words of JSON: `Optional[Union[dict, str]]` → dict, null, text."""
    origin = t.get_origin(annotation)
    if origin in (t.Union, types.UnionType):
        return sorted({kind for part in t.get_args(annotation) for kind in kinds(part)})
    if origin is t.Literal:
        return sorted({WORDS[type(choice)] for choice in t.get_args(annotation)})
    if origin in (list, tuple, dict):
        return [WORDS[dict if origin is dict else list]]
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return ["text"]
    return [WORDS[annotation]] if annotation in WORDS else []


def choices(annotation: t.Any) -> list[t.Any]:
    """The only values there are; empty where any of the kind will do."""
    origin = t.get_origin(annotation)
    if origin in (t.Union, types.UnionType):  # an enumeration beside `str` takes no other text either
        return next((found for part in t.get_args(annotation) if (found := choices(part))), [])
    if origin is t.Literal:
        return list(t.get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return [member.value for member in annotation]
    return []


def default(field: dataclasses.Field[t.Any]) -> t.Any:
    value = field.default
    if value is dataclasses.MISSING:
        factory = field.default_factory
        value = None if factory is dataclasses.MISSING else factory()
    return value.value if isinstance(value, enum.Enum) else value


def keys() -> dict[str, dict[str, t.Any]]:
    from llamafactory.hparams import parser

    found = {}
    for arguments in parser._TRAIN_ARGS:
        annotations = t.get_type_hints(arguments)
        lists = re.findall(r"split_arg\(self\.(\w+)\)", inspect.getsource(arguments))  # `a,b` or a list
        for field in dataclasses.fields(arguments):
            if not field.init:
                continue
            annotation = annotations[field.name]
            either = ["list"] if field.name in lists else []
            found[field.name] = {
                "group": GROUPS[arguments.__name__],
                "types": sorted({*kinds(annotation), *either}),
                "default": default(field),
                "choices": choices(annotation),
                "help": re.split(r"(?<=[.?])\s", " ".join(str(field.metadata.get("help", "")).split()))[0],
            }
    return found


def templates() -> dict[str, dict[str, t.Any]]:
    """Chat templates by name: what matters to a plan."""
    from llamafactory.data import template

    return {
        name: {
            "reasoning": isinstance(found, template.ReasoningTemplate),
            "efficient_eos": found.efficient_eos,
            "media": type(found.mm_plugin).__name__ != "BasePlugin",
            "tools": found.format_tools.tool_format,
        }
        for name, found in template.TEMPLATES.items()
    }


def models() -> dict[str, str]:
    """Template by hub id, of the models that LLaMA-Factory lists."""
    from llamafactory.extras import constants

    return {
        path: constants.DEFAULT_TEMPLATE[name]
        for name, hubs in constants.SUPPORTED_MODELS.items()
        if name in constants.DEFAULT_TEMPLATE
        for path in hubs.values()
    }


def others(constants: str, known: t.Container[str]) -> dict[str, str]:
    """By hub id, of the models that LLaMA-Factory lists without a template: that of the group they are in, which its
    source alone tells; empty where the group has none. constants: that source. known: ids that have a template."""
    found = {}
    for node in ast.walk(ast.parse(constants)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "register_model_group":
            given = {word.arg: word.value for word in node.keywords}
            template = ast.literal_eval(given["template"]) if "template" in given else ""
            for hubs in given["models"].values:
                found.update({ast.literal_eval(path): template for path in hubs.values})
    return {path: template for path, template in found.items() if path not in known}


def write(path: Path, content: t.Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    print(path)


def version(package: str) -> str:
    """Of the distribution that brings a package: KTransformers has builds of its own, under names of their own."""
    (distribution,) = set(importlib.metadata.packages_distributions()[package])
    return importlib.metadata.version(distribution)


def main() -> None:
    versions = {name: version(name) for name in ("llamafactory", "transformers")}
    folder = Path(sys.argv[1]) / f"llamafactory-{versions['llamafactory']}"
    write(folder / "keys.json", {"versions": versions, "keys": keys()})
    from llamafactory.extras import constants

    known = models()
    groups = others(inspect.getsource(constants), known)
    write(folder / "templates.json", {"templates": templates(), "models": known, "others": groups})


if __name__ == "__main__":
    main()
