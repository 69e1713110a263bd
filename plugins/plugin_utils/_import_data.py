# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The datasets that a LLaMA-Factory file names, as entries of train_datasets."""

from __future__ import annotations

import difflib
import typing as t
from pathlib import Path

from ..module_utils import _dataset, _sources
from ..module_utils._errors import FinetuneError
from ..module_utils._wish.imported import Imported
from . import _import_json

_KEPT = ("formatting", "ranking", "columns", "tags", "split", "subset", "num_samples")
_SOURCES = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "file_name")
"""Where LLaMA-Factory may have a set from, the one before the other (data/parser.py). The first and the last are taken,
and that of a cloud where it is in S3."""
_ONLINE, _REMOTE = "ONLINE", "REMOTE:"
"""A dataset_dir that makes names of a hub of all, and one that has dataset_info.json on a hub."""


def describe(found: Imported, config: Path) -> str:
    """Put entries in place of the names in `found`; the folder of the dataset_info.json that they are in, if any.

    One that cannot be taken is refused only where no variable stands in for it.
    """
    place = _place(config, found.dataset_dir)
    info = _read(place) if place else {}
    for key, names in (("dataset", found.datasets), ("eval_dataset", found.eval_datasets)):
        try:
            names[:] = [_entry(name, info, place, found, key) for name in names]
        except FinetuneError as refusal:
            variable = f"train_{key}s"
            found.refused[variable] = FinetuneError(
                refusal.what, where=refusal.where, change=f"{refusal.change}, or set {variable}"
            )
    return str(place.parent) if place else ""


def _place(config: Path, dataset_dir: str) -> Path | None:
    """dataset_info.json, looked for from the file's folder upwards, as people start LLaMA-Factory above it."""
    folder = Path(dataset_dir).expanduser()
    places = (parent / folder / "dataset_info.json" for parent in config.absolute().parents)
    return next((place for place in places if place.is_file()), None)


def _read(place: Path) -> dict[str, t.Any]:
    info, fault = _import_json.read(place)
    if fault:
        raise FinetuneError(f"{place} cannot be read: {fault}.", where="train_config", change="correct that file")
    if not isinstance(info, dict):
        raise FinetuneError(
            f"{place} is no dict.", where="train_config", change='write {"name": {"file_name": "data.json"}}'
        )
    return info


def _entry(name: str, info: t.Mapping[str, t.Any], place: Path | None, found: Imported, key: str) -> t.Any:
    """An entry of train_datasets for a name. key: the one of the file that names it."""
    where = f"train_config, {found.file}, key {key}"
    if found.dataset_dir == _ONLINE:
        return _checked({"name": name.replace("/", "_"), "hub": name}, where, found)
    known = name in _dataset.DEMO or bool(_sources.registry().get(name))  # not as a file of LLaMA-Factory's repository
    found.described[name] = where
    if name not in info:
        if known:
            return name
        raise _unknown(name, info, place, found, key)
    entry = info[name]
    where = f"train_config, {place}, entry {name}"
    if not isinstance(entry, dict):
        raise FinetuneError(f"{name} is no dict.", where=where, change='write {"file_name": "data.json"}')
    in_s3 = str(entry.get("cloud_file_name") or "").startswith(_dataset.S3)
    taken = ("hf_hub_url", *(["cloud_file_name"] if in_s3 else []), "file_name")
    sources = [source for source in taken if entry.get(source)]
    if not sources:
        if known:
            return name
        raise FinetuneError(
            f"{name} has neither file_name nor hf_hub_url.", where=where, change="write one of them, as text"
        )
    source = entry[sources[0]]
    if not isinstance(source, str):
        raise FinetuneError(f"{sources[0]} is {source!r}.", where=where, change="write it as text")
    words = [word for word in _KEPT if word != "subset" or sources[0] == "hf_hub_url"]
    kept = {word: entry[word] for word in words if entry.get(word)}
    if sources[0] == "file_name":
        described = {"name": name, "file": str(place.parent / source if place else source), **kept}
    else:
        described = {"name": name, "hub" if sources[0] == "hf_hub_url" else "s3": source, **kept}
    before = _SOURCES[: _SOURCES.index(sources[0])]
    found.notices += [
        f"{place}, entry {name}: {sources[0]} is taken, where LLaMA-Factory takes {other}."
        for other in before
        if entry.get(other)
    ]
    others = [other for other in entry if other not in (*words, *_SOURCES)]
    found.notices += [f"{place}, entry {name}: {other} is not taken over." for other in others]
    return _checked(described, where, found)


def _checked(described: dict[str, t.Any], where: str, found: Imported) -> dict[str, t.Any]:
    """An entry, refused with the place that it is described in."""
    try:
        _dataset.parse([described], "train_datasets")
    except FinetuneError as refusal:
        raise FinetuneError(refusal.what, where=where, change=refusal.change) from None
    found.described[described["name"]] = where
    return described


def _unknown(name: str, info: t.Mapping[str, t.Any], place: Path | None, found: Imported, key: str) -> FinetuneError:
    if found.dataset_dir.startswith(_REMOTE):
        return FinetuneError(
            f"dataset_dir {found.dataset_dir} is on a hub, and what it describes is not known here.",
            where=f"train_config, {found.file}, key dataset_dir",
            change=f"describe {name!r} in a dataset_info.json of yours",
        )
    if place is None:
        given = found.dataset_dir
        full = Path(given).expanduser().is_absolute()
        return FinetuneError(
            f"There is no {given}/dataset_info.json{'' if full else f' beside {found.file} or above it'}, and {name!r} "
            "is no dataset on a hub that LLaMA-Factory registers.",
            where=f"train_config, {found.file}, key dataset_dir",
            change="correct dataset_dir",
        )
    names = difflib.get_close_matches(name, info, n=3) or [*info][:8]
    return FinetuneError(
        f"There is no dataset {name!r} in {place}, nor one on a hub that LLaMA-Factory registers.",
        where=f"train_config, {found.file}, key {key}",
        change=f"use one of those in it, such as {', '.join(names)}" if names else "describe it there",
    )
