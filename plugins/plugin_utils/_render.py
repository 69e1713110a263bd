# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What lands on a node, from templates/."""

from __future__ import annotations

import typing as t

import jinja2

from ..module_utils import _sources, _unit

TEMPLATES = _sources.COLLECTION / "templates"


def render(name: str, **values: t.Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters.update(escaped=_unit.escaped, quoted=_unit.quoted)
    return environment.get_template(name).render(**values)
