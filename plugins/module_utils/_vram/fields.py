# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fields of a config.json, which is anybody's: what is there has to be of its kind and size, or is refused."""

from __future__ import annotations

import typing as t

from .._errors import FinetuneError

Config = t.Mapping[str, t.Any]

LARGEST = 10_000_000
"""Of any size; the largest vocabularies have some 300 000 words."""
DEEPEST = 1000
"""Layers; the deepest models have some 130."""


class Fields:
    """where: what a refusal is about."""

    def __init__(self, config: Config, where: str) -> None:
        self.config, self.where = config, where

    def size(self, *words: str, most: int = LARGEST) -> int:
        """A number that must be there, under the first of these words that is."""
        found = self.maybe(*words, most=most)
        if not found:
            raise FinetuneError(
                f"The model's config has no {words[0]}.",
                where=self.where,
                change="give the config.json of a decoder as transformers saves it; adapters and GGUF files have "
                "another one",
            )
        return found

    def maybe(self, *words: str, default: int = 0, most: int = LARGEST) -> int:
        """Null and 0 are as if it were not there. Of a list, one for each layer, the largest decides."""
        for word in words:
            value = self.config.get(word)
            if isinstance(value, (list, tuple)) and value:
                value = max((one for one in value if _whole(one)), default=value)
            if value is None or (_whole(value) and value == 0):
                continue
            if not _whole(value) or not 0 < value <= most:
                raise self.wrong(word, value, f"a whole number from 1 to {most}")
            return int(value)
        return default

    def number(self, *words: str, default: float = 1.0, most: float = 1.0) -> float:
        """Above 0."""
        for word in words:
            value = self.config.get(word)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
                raise self.wrong(word, value, f"a number above 0, and at most {most:g}")
            return float(value)
        return default

    def wrong(self, word: str, value: t.Any, due: str) -> FinetuneError:
        return FinetuneError(
            f"{word} of the model's config is {repr(value)[:60]}, and {due} is due.",
            where=self.where,
            change="give the config.json as the model's makers have it",
        )


def _whole(value: t.Any) -> t.TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
