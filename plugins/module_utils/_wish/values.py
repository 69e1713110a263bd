# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values of the role's variables as what they mean; FinetuneError names the variable that is wrong."""

from __future__ import annotations

import re
import typing as t

from .. import _config
from .._errors import FinetuneError

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def name(name: str) -> str:
    """The name of a run."""
    if not _NAME.fullmatch(name):
        raise FinetuneError(
            f"{name!r} is no name for a run.",
            where="train_name",
            change="use at most 63 small letters, digits, . _ and -, a letter or digit first",
        )
    return name


def run(variables: t.Mapping[str, t.Any], variable: str) -> str:
    """The name or id of an earlier run; empty where none is meant."""
    value = variables.get(variable)
    if isinstance(value, (list, tuple, t.Mapping)):
        raise FinetuneError(f"{variable} is {value!r}.", where=variable, change="write the name of one run, as text")
    return str(value or "")


def root(root: str) -> str:
    if not root.startswith(("/", "~/")):
        raise FinetuneError(
            f"{root!r} is not a full path on the node.", where="train_root", change="begin it with / or ~/"
        )
    if not root.strip("/"):
        raise FinetuneError("/ is no folder for runs alone.", where="train_root", change="name one such as /srv/llmops")
    return root.rstrip("/")


def output_root(root: str) -> str:
    """Empty, or a folder that is the same for every account: no ~."""
    if root and (not root.startswith("/") or not root.strip("/")):
        raise FinetuneError(
            f"{root!r} is no folder for results.",
            where="train_output_root",
            change="write a full path that is the same on all hosts, such as /mnt/team/runs, or leave it empty",
        )
    return root.rstrip("/")


def gpus(value: t.Any) -> str:
    """A list is one of indices or UUIDs: with a comma at the end, which tells the index 1 from the count 1."""
    if isinstance(value, (list, tuple)):
        value = "".join(f"{word}," for word in value)
    if not str(value or "").strip(" ,") and value != 0:
        raise FinetuneError(
            "train_gpus is empty.", where="train_gpus", change="use all, a number, or indices or UUIDs with commas"
        )
    return str(value)


def one_of(
    variables: t.Mapping[str, t.Any], name: str, choices: t.Sequence[str], told: t.Sequence[str] | None = None
) -> str:
    """told: the choices to name in a refusal, where these are fewer."""
    value = str(variables.get(name))
    if value not in choices:
        raise FinetuneError(f"{name} is {value!r}.", where=name, change="use one of " + ", ".join(told or choices))
    return value


def some_of(variables: t.Mapping[str, t.Any], name: str, choices: t.Sequence[str]) -> list[str]:
    """A list, or text with commas, as the command line has it."""
    value = variables.get(name) or []
    words = [word.strip() for word in value.split(",")] if isinstance(value, str) else value
    wrong = [word for word in words if word not in choices] if isinstance(words, (list, tuple)) else [words]
    if wrong:
        raise FinetuneError(f"{name} has {wrong[0]!r}.", where=name, change="use " + ", ".join(choices))
    return list(words)


def number(variables: t.Mapping[str, t.Any], name: str) -> int:
    value = _config.scalar(variables.get(name))
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise FinetuneError(f"{name} is {value!r}.", where=name, change="use a whole number, 0 or more")
    if value >= _config.LARGEST:
        raise FinetuneError(f"{name} is {value}.", where=name, change="use a whole number of at most 18 digits")
    return value


def seconds(variables: t.Mapping[str, t.Any], name: str) -> float:
    value = _config.scalar(variables.get(name))
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 86400:
        raise FinetuneError(f"{name} is {value!r}.", where=name, change="use a number of seconds")
    return value


def port(variables: t.Mapping[str, t.Any], name: str) -> int:
    value = number(variables, name)
    if not 1 <= value <= 65535:
        raise FinetuneError(f"{name} is {value}.", where=name, change="use a number from 1 to 65535")
    return value


def count(variables: t.Mapping[str, t.Any], name: str) -> int | None:
    if variables.get(name) in (None, "", "auto"):
        return None
    value = number(variables, name)
    if value < 1:
        raise FinetuneError(f"{name} is {value}.", where=name, change="use auto or a whole number from 1")
    return value


def switch(variables: t.Mapping[str, t.Any], name: str) -> bool:
    value = _config.scalar(variables.get(name))
    words = {"yes": True, "no": False, "on": True, "off": False}
    if isinstance(value, str):
        value = words.get(value.lower(), value)
    if not isinstance(value, bool):
        raise FinetuneError(f"{name} is {value!r}.", where=name, change="use true or false")
    return value
