# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A row of the tables, and what its condition sees."""

from __future__ import annotations

import typing as t
from types import MappingProxyType

from .._model import Model
from .._parallel import Engine
from .._schema import Schema, as_words
from .._template import Choice, mismatch
from .._tools import Use


class Situation(t.NamedTuple):
    """What besides arguments a rule may look at."""

    world_size: int = 1
    gpus: bool = False
    bf16: bool = False
    """Every GPU has compute capability 8.0 or more."""
    datasets: int = 1
    eval_datasets: int = 0
    records: int | None = None
    """To train on; None where that is not known."""
    sliced: bool = False
    """A part is taken of a split of a hub's dataset."""
    media: bool = False
    """A dataset has images, videos or audios."""
    tools: t.Mapping[Use, str] = MappingProxyType({})
    """What of tools in the datasets only some templates take, and which records have it."""
    model: str = ""
    template: Choice | None = None
    """What the registry has for the model; None where the author insists on his own."""
    folders: t.Mapping[str, t.Container[str]] = MappingProxyType({})
    """By the full path of an adapter or a reward model, those of its files that are there on every node."""
    scored_on: t.Sequence[str] | None = None
    """Adapters that were merged into the model which the adapter of the reward model was trained on; None where the
    reward model is not known, or is no adapter."""
    weights: Model = Model()
    """What is known of the model itself."""
    engine: Engine = Engine()
    variables: t.Mapping[str, str] = MappingProxyType({})
    """Names in train_secrets; of a tracker's mode also the value."""


class View:
    """Arguments with the defaults of the version behind them."""

    def __init__(self, arguments: t.Mapping[str, t.Any], schema: Schema, situation: Situation) -> None:
        self._arguments = arguments
        self.schema = schema
        self.now = situation

    def __getitem__(self, key: str) -> t.Any:
        if key in self._arguments:
            return self._arguments[key]
        known = self.schema.keys.get(key)
        return known.default if known else None

    def __contains__(self, key: str) -> bool:
        """The author or the recipe wrote it."""
        return key in self._arguments

    def words(self, key: str) -> list[str]:
        """A list, or text with commas, as a list of words."""
        return as_words(self[key])

    @property
    def zero3(self) -> bool:
        return self.now.engine.zero_stage == 3

    @property
    def deepspeed(self) -> bool:
        return self.now.engine.zero_stage is not None

    @property
    def megatron(self) -> bool:
        return self.now.engine.environment == "megatron"

    @property
    def ktransformers(self) -> bool:
        return self.now.engine.environment == "ktransformers"

    @property
    def quantized(self) -> bool:
        return self["quantization_bit"] is not None

    @property
    def lora(self) -> bool:
        return bool(self["finetuning_type"] == "lora")

    @property
    def with_reference(self) -> bool:
        return bool(self["stage"] == "dpo" and self["pref_loss"] not in ("orpo", "simpo"))

    @property
    def template(self) -> t.Mapping[str, t.Any]:
        return self.schema.templates.get(str(self["template"]), {})

    @property
    def right_template(self) -> str:
        """The one of the registry, where this very model has another one than the author gave."""
        return mismatch(self["template"], self.now.model, self.now.template, self["enable_thinking"])

    @property
    def tools(self) -> str:
        """The format of tools; empty where no template is known, or it has none."""
        return str(self["tool_format"] or self.template.get("tools") or "")


def relative(key: str) -> t.Callable[[View], bool]:
    """A path that is not looked for where its author thinks; `~` is no home to LLaMA-Factory."""
    return lambda c: bool(c[key]) and not str(c[key]).startswith("/")


class Remedy(t.NamedTuple):
    text: str
    removes: t.Tuple[str, ...] = ()
    """Keys that are to go, which a recipe or another run may have brought."""

    def __str__(self) -> str:
        return self.text


def remove(*keys: str, either: bool = False, before: str = "", after: str = "") -> Remedy:
    """Remove these keys, all or either; with what else helps before or after that."""
    *most, last = keys
    listed = f"{', '.join(most)} {'or' if either else 'and'} {last}" if most else last
    return Remedy(f"{before}remove {listed}{after}", keys)


class Rule(t.NamedTuple):
    keys: t.Tuple[str, ...]
    broken: t.Callable[[View], t.Any]
    what: str
    change: t.Union[str, Remedy, t.Callable[[View], t.Union[str, Remedy]]]
    source: str

    def remedy(self, view: View) -> Remedy:
        told = self.change(view) if callable(self.change) else self.change
        return Remedy(told) if isinstance(told, str) else told
