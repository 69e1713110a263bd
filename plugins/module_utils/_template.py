# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The chat template of a model by its name, from the registry of the LLaMA-Factory that trains it.

The registry goes by hub id. A name that it does not list is held against those it lists: the same model elsewhere or
quantized, one of another size, a later one of the same line. All that fit must have one template, or none is chosen.
"""

from __future__ import annotations

import re
import typing as t
from collections import defaultdict

from ._schema import Schema

_DERIVED = re.compile(
    r"[-.](?:gguf|ggml|awq|gptq|exl[23]|mlx|onnx|bnb|hf|ms|unsloth|dynamic|(?:un)?quantized|autoround|inc|imatrix|i1|qat|"
    r"nf4|hqq|aqlm|marlin|fp4|fp8|fp16|bf16|nvfp4|mxfp4|dwq|block|abliterated|int[248]|[2-8]-?bits?|w\d+a\d+|g\d+|\d+x\d+|"
    r"q[2-8](?:[-.][0-9a-z]+)*)$"
)
"""How a copy of a model says, at the end of its name, in which form its weights are."""
_SIZE = re.compile(r"[ae]?\d+(?:\.\d+)?[bm]|\d+x\d+(?:\.\d+)?b|\d+e")
"""Parameters, those that are active, experts: 8b, a3b, e4b, 8x7b, 128e."""
_GRADES = frozenset(["h", "micro", "tiny", "small", "nano", "flash", "air", "preview"])
"""Words for sizes, in the names of versions that have a template of their name."""
_TALKS = frozenset(["instruct", "chat", "it", "thinking", "distill"])
"""Words by which a hub id says that the model answers. LLaMA-Factory looks for them in its own names alone."""


class Choice(t.NamedTuple):
    template: str
    """Empty for a base model, which has none."""
    exact: bool
    """The registry lists this very model."""
    why: str


def choose(model: str, schema: Schema) -> Choice | None:
    """The template for a hub id, or for a path whose last part is the name; None where nothing is known."""
    known = _known(schema)
    model = model.rpartition(":")[2]  # modelscope:, file:
    if model in known:
        return Choice(known[model], True, "LLaMA-Factory's registry")
    wanted = _plain(model, known)
    for key in (_name, _without_size):
        near = [listed for listed in known if key(_plain(listed, known)) == key(wanted)]
        if near:
            return _agreed(near, known)
    if named := _named(wanted, schema):
        return Choice(named, False, "the template of that name")
    return _of_its_line(wanted, known)


def mismatch(given: t.Any, model: str, choice: Choice | None, thinking: t.Any) -> str:
    """The right template where the registry has another one than is given for this very model; else empty.

    A model that may think is also trained not to, with the twin that ends in _nothink. thinking: enable_thinking, at
    whose null a template with thoughts does as its twin.
    """
    if choice is None or not choice.exact or given in (None, "", choice.template):
        return ""
    same_without = choice.template == f"{given}_nothink" and thinking is None
    return "" if same_without or twin(given, choice.template, model) else choice.template


def twin(given: t.Any, template: str, model: str) -> bool:
    """Another name for the template of a model: without thoughts, unless it is made to think, or that of its chats."""
    may_not_think = given == f"{template}_nothink" and "thinking" not in model.lower()
    return may_not_think or given == f"{template}_chat"


def _known(schema: Schema) -> dict[str, str]:
    """Template by hub id of all models that are listed; empty for base models.

    One that is listed without a template answers where its id says so, and where no model of its group has one either
    and it is not called base.
    """
    known = dict(schema.models)
    spoken_for = frozenset(known.values())
    for model, group in schema.others.items():
        words = set(re.split(r"[^a-z0-9]+", model.lower()))
        answers = words & _TALKS or (group not in spoken_for and "base" not in words)
        known[model] = group if answers else ""
    return known


def _plain(model: str, known: t.Mapping[str, str]) -> str:
    """The name alone in one spelling, without what it says of owner and form of the weights."""
    stored = re.search(r"models--([^/]+)/snapshots/", model)  # a folder of a hub's cache
    name = (stored[1] if stored else model.rstrip("/").rpartition("/")[2]).partition("@")[0].lower()
    name = name.rpartition("--")[2]
    owner, sign, rest = name.partition("_")  # as in Qwen_Qwen3-8B-GGUF
    if sign and any(listed.lower().startswith(f"{owner}/") for listed in known):
        name = rest
    name = re.sub(r"(?<=\d)_(?=\d)", ".", name).replace("_", "-").removeprefix("meta-")
    while (shorter := _DERIVED.sub("", name)) != name:
        name = shorter
    return name


def _name(plain: str) -> str:
    return plain


def _without_size(plain: str) -> str:
    return "-".join(word for word in plain.split("-") if not _SIZE.fullmatch(word))


def _agreed(near: t.Sequence[str], known: t.Mapping[str, str]) -> Choice | None:
    """What they have in common; nothing where they differ."""
    templates = {known[listed] for listed in near}
    return Choice(templates.pop(), False, f"as {near[0]} has it") if len(templates) == 1 else None


def _named(plain: str, schema: Schema) -> str:
    """A template that has the name and the version of the model: glm4_7 of GLM-4.7."""
    words = [word for word in _without_size(plain).split("-") if word not in ("instruct", "it", "chat", "thinking")]
    for kept in (words, [word for word in words if word not in _GRADES]):
        name = re.sub(r"[-.]", "", re.sub(r"(?<=\d)\.0\b", "", "-".join(kept)))
        found = next((template for template in schema.templates if template.replace("_", "") == name), "")
        if re.search(r"\d", found):
            quiet = f"{found}_nothink"
            if "instruct" not in plain or not schema.templates[found]["reasoning"]:
                return found
            return quiet if quiet in schema.templates else ""
    return ""


def _of_its_line(plain: str, known: t.Mapping[str, str]) -> Choice | None:
    """A later version or date than all listed ones of a line that has kept its template over several."""
    line, number = _line(plain)
    listed = defaultdict(list)
    for model in known:
        other, version = _line(_plain(model, known))
        if other == line:
            listed[version].append(model)
    if len(listed) < 2 or number <= max(listed):
        return None
    return _agreed([model for version in sorted(listed, reverse=True) for model in listed[version]], known)


def _line(plain: str) -> tuple[str, tuple[int, ...]]:
    """The name without size, minor versions and date, and these as numbers."""
    numbers: list[int] = []

    def major(found: re.Match[str]) -> str:
        date = len(found[1]) >= 4 and not found[2]
        numbers.append(int(found[1] if date else found[2] or 0))
        return "#" if date else found[1]

    return re.sub(r"(\d+)(?:\.(\d+))?", major, _without_size(plain)), tuple(numbers)
