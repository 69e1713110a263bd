# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The datasets that a LLaMA-Factory file names, as entries of train_datasets."""

from __future__ import annotations

import difflib
import json
import typing as t
from pathlib import Path

from ..module_utils import _dataset, _sources
from ..module_utils._config import Imported
from ..module_utils._errors import FinetuneError

_KEPT = ("formatting", "ranking", "columns", "tags", "split", "subset", "num_samples")


def describe(found: Imported, config: Path) -> str:
    """Put entries in place of the names in `found`; the folder of the dataset_info.json that they are in, if any.

    One that cannot be taken is refused only where no variable stands in for it.
    """
    place = _place(config, found.dataset_dir)
    info = _read(place) if place else {}
    for names, variable in ((found.datasets, "train_datasets"), (found.eval_datasets, "train_eval_datasets")):
        try:
            names[:] = [_entry(name, info, place, found) for name in names]
        except FinetuneError as refusal:
            found.refused[variable] = FinetuneError(
                refusal.what, where=refusal.where, change=f"{refusal.change}, or set {variable}"
            )
    return str(place.parent) if place else ""


def _place(config: Path, dataset_dir: str) -> Path | None:
    """dataset_info.json, looked for from the file's folder upwards, as people start LLaMA-Factory above it."""
    places = (parent / dataset_dir / "dataset_info.json" for parent in config.absolute().parents)
    return next((place for place in places if place.is_file()), None)


def _read(place: Path) -> dict[str, t.Any]:
    try:
        info = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FinetuneError(f"{place} cannot be read: {error}.", where="train_config", change="correct it") from None
    if not isinstance(info, dict):
        raise FinetuneError(
            f"{place} is no dict.", where="train_config", change='write {"name": {"file_name": "data.json"}}'
        )
    return info


def _entry(name: str, info: t.Mapping[str, t.Any], place: Path | None, found: Imported) -> t.Any:
    """An entry of train_datasets for a name."""
    known = name in _dataset.DEMO or name in _sources.registry()
    if name not in info:
        if known:
            return name
        raise _unknown(name, info, place, found)
    entry = info[name]
    where = f"train_config, {place}, entry {name}"
    if not isinstance(entry, dict):
        raise FinetuneError(f"{name} is no dict.", where=where, change='write {"file_name": "data.json"}')
    sources = [key for key in ("file_name", "hf_hub_url") if entry.get(key)]
    if not sources:
        if known:
            return name
        raise FinetuneError(
            f"{name} has neither file_name nor hf_hub_url.", where=where, change="write one of them, as text"
        )
    if not isinstance(entry[sources[0]], str):
        raise FinetuneError(f"{sources[0]} is {entry[sources[0]]!r}.", where=where, change="write it as text")
    kept = {key: entry[key] for key in _KEPT if entry.get(key)}
    if sources[0] == "file_name":
        described = {"name": name, "file": f"{place.parent if place else ''}/{entry['file_name']}", **kept}
    else:
        described = {"name": name, "hub": entry["hf_hub_url"], **kept}
    try:
        _dataset.parse([described], "train_datasets")
    except FinetuneError as refusal:
        raise FinetuneError(refusal.what, where=where, change=refusal.change) from None
    return described


def _unknown(name: str, info: t.Mapping[str, t.Any], place: Path | None, found: Imported) -> FinetuneError:
    if place is None:
        return FinetuneError(
            f"There is no {found.dataset_dir}/dataset_info.json beside {found.file} or above it, and {name!r} is no "
            "dataset that LLaMA-Factory registers.",
            where=f"train_config, {found.file}, key dataset_dir",
            change="correct dataset_dir",
        )
    names = difflib.get_close_matches(name, info, n=3) or [*info][:8]
    return FinetuneError(
        f"There is no dataset {name!r} in {place}, nor one that LLaMA-Factory registers.",
        where=f"train_config, {found.file}, key dataset",
        change=f"use one of those in it, such as {', '.join(names)}" if names else "describe it there",
    )
