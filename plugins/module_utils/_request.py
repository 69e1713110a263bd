# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The request of a run in canonical form: its id, and the difference between two of them."""

from __future__ import annotations

import hashlib
import json
import re
import typing as t

Request = dict[str, t.Any]
"""name, recipe, args (what the author wrote, merged), model, datasets (by content digest), engine, batch. No hosts."""


def canonical(value: t.Any) -> t.Any:
    """The same value for the same meaning: 3.0 is 3, keys are text."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, t.Mapping):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [canonical(item) for item in value]
    return value


def run_id(request: Request) -> str:
    """`<name>-<8 hex>`; the name itself is not part of the digest."""
    content = {key: value for key, value in canonical(request).items() if key != "name"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"{request['name']}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def difference(old: Request, new: Request) -> list[str]:
    """One line per input that differs: `model.revision: main → v2`. Digests are cut to 12 digits."""
    before, after = _flat(canonical(old)), _flat(canonical(new))
    lines = []
    for key in sorted(before.keys() | after.keys()):
        if any(
            values.get(key) in ({}, []) and _has_below(others, key)
            for values, others in ((before, after), (after, before))
        ):
            continue  # nothing against something: the lines of the something say it
        was, now = _show(before, key), _show(after, key)
        if was != now:
            lines.append(f"{key}: {was} → {now}")
    if not lines and canonical(old) != canonical(new):
        lines.append("datasets: in another order")
    return lines


def arguments(old: dict[str, t.Any], new: dict[str, t.Any], origins: t.Mapping[str, str]) -> list[str]:
    """One line per LLaMA-Factory argument that differs, recipe included: `learning_rate: 0.001 → 1e-05 (train_set)`."""
    lines = []
    for line in difference(old, new):
        key = line.partition(":")[0].partition(".")[0]
        lines.append(line + (f" ({origins[key]})" if key in origins else ""))
    return lines


def _has_below(values: dict[str, t.Any], key: str) -> bool:
    return any(other.startswith(f"{key}.") for other in values)


def _show(values: dict[str, t.Any], key: str) -> str:
    text = str(values[key]) if key in values else "not set"
    return text[:12] if re.fullmatch(r"[0-9a-f]{40,}", text) else text


def _flat(value: t.Any, prefix: str = "") -> dict[str, t.Any]:
    """Nested dicts and lists as dotted keys; list items that have a name are keyed by it."""
    if isinstance(value, dict) and value:
        items: t.Iterable[tuple[str, t.Any]] = value.items()
    elif isinstance(value, list) and value:
        items = ((str(item.get("name", i)) if isinstance(item, dict) else str(i), item) for i, item in enumerate(value))
    else:
        return {prefix: value}
    flat: dict[str, t.Any] = {}
    for key, item in items:
        flat.update(_flat(item, f"{prefix}.{key}" if prefix else key))
    return flat
