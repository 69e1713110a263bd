# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of recipes, which only the controller reads."""

from __future__ import annotations

import typing as t

import yaml

from ..module_utils import _sources
from ..module_utils._recipe import Recipe

FOLDER = _sources.FILES / "recipes"
_BASE = "base"
"""The file of what every recipe has, unless it says otherwise."""


def read() -> dict[str, Recipe]:
    """Every recipe by its name, in the order of names."""
    files: dict[str, dict[str, t.Any]] = {
        path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.yml"))
    }
    base = files.pop(_BASE)["arguments"]
    return {name: Recipe(**{**file, "arguments": {**base, **file["arguments"]}}) for name, file in files.items()}
