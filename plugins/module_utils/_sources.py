# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's side of datasets and models: files found, digested and checked before a node is touched."""

from __future__ import annotations

import difflib
import json
import os
import typing as t
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from . import _dataset, _digests, _lookup, _profile, _recipe, _records, _schema, _sent_model, _split, _tables
from ._dataset import Source
from ._engine import files
from ._errors import FinetuneError
from ._formats import PAIRS
from ._media import Media
from ._ranks import Facts
from ._wish.wish import Wish

COLLECTION = Path(__file__).absolute().parents[2]
FILES = COLLECTION / "roles" / "train" / "files"
CORPUS = FILES / _dataset.DEMO["demo"]
"""The text that the embedded base model is made of."""
_OTHER_DATA = "name a set in train_datasets that holds what the stage learns from, such as a file of yours"
UNREAD = {"0.9.3": ("openai",)}
"""By version of LLaMA-Factory: forms of records that came later."""


def corpus_digest() -> str:
    return files.sha256(CORPUS)


def schemas() -> dict[str, _schema.Schema]:
    """By environment: the keys, templates and packages that it takes. Where there is no lock, packages are taken to be
    those of the main one."""
    found = {}
    for environment, version in _recipe.LLAMAFACTORY.items():
        folder = FILES / f"llamafactory-{version}"
        keys, templates = (json.loads((folder / f"{name}.json").read_text()) for name in ("keys", "templates"))
        own = FILES / environment / "keys.json"  # those of another trainer, which LLaMA-Factory's go over
        if own.is_file():
            keys["keys"] = {**json.loads(own.read_text())["keys"], **keys["keys"]}
        lock = _profile.lock_path("main" if environment in _recipe.UNLOCKED else environment)
        found[environment] = _schema.load(keys, templates, _profile.packages(lock.read_text(encoding="utf-8")))
    return found


def sources(
    wish: Wish,
    folders: t.Sequence[Path],
    facts: t.Mapping[str, Facts],
    fetched: t.Mapping[str, str] = MappingProxyType({}),
) -> list[Source]:
    """Every dataset of the wish with its digest. folders: where relative files are looked for, in order. fetched: files
    of this controller by the addresses that they were fetched from."""
    found = []
    for variable, datasets, evaluates in (
        ("train_datasets", wish.datasets, False),
        ("train_eval_datasets", wish.eval_datasets, True),
    ):
        for dataset in datasets:
            where = dataset.described or variable
            if dataset.source == "s3":
                where = f"{where}, {dataset.where}"
                dataset = replace(dataset, source="file", where=fetched[dataset.where])
            given = dataset.source == "registered"
            if given:
                dataset = _registered(dataset, where)
            _refuse_other_answers(dataset, where, wish.stage, given)
            _refuse_unknown_formatting(dataset, where, _recipe.LLAMAFACTORY[wish.environment])
            if dataset.source == "file":
                source = _on_controller(dataset, where, folders, evaluates, wish)
            elif dataset.source == "path":
                source = _on_nodes(dataset, where, facts, evaluates)
            else:
                source = Source(dataset, "", evaluates=evaluates)
            found.append(_part(source, where))
    return found


def _part(source: Source, where: str) -> Source:
    """With as many records as its split takes of those that it has."""
    split = source.dataset.options.get("split")
    if not split or source.records is None:
        return source
    records = _split.count(split, source.records)
    if not records:
        raise FinetuneError(
            f"Dataset {source.dataset.name!r}: split {split} takes none of its {source.records} records.",
            where=where,
            change="correct its `split`",
        )
    return replace(source, records=records)


def model(wish: Wish, folders: t.Sequence[Path]) -> _sent_model.Sent | None:
    """The model of the wish, where it is a folder of this controller. folders: as for datasets."""
    here = wish.model.startswith(_sent_model.PREFIX)
    return _sent_model.find(wish.model, folders, wish.model_place) if here else None


def _refuse_other_answers(dataset: _dataset.Dataset, where: str, stage: str, given: bool) -> None:
    """Pairs of answers where single ones are due, or the other way round: LLaMA-Factory refuses after it has loaded.
    given: the set is taken by its name, and its records are none of the author's."""
    if given and stage == "kto" and dataset.name in _dataset.DEMO:
        raise FinetuneError(
            f"Stage kto learns from answers that are marked as good or bad, those of dataset {dataset.name!r} are not.",
            where=where,
            change=_OTHER_DATA,
        )
    pairs = _OTHER_DATA if given else "add `ranking: true` to it, with `chosen` and `rejected` in its records"
    if dataset.ranking != (stage in PAIRS):
        raise FinetuneError(
            f"Stage {stage} learns from {'pairs of answers' if stage in PAIRS else 'single answers'}, "
            f"dataset {dataset.name!r} {'holds pairs' if dataset.ranking else 'has no `ranking: true`'}.",
            where=where,
            change=pairs if stage in PAIRS else "take recipe dpo or reward, or other data",
        )


def _refuse_unknown_formatting(dataset: _dataset.Dataset, where: str, version: str) -> None:
    """A form of records that a version of LLaMA-Factory does not read."""
    if dataset.formatting in UNREAD.get(version, ()):
        raise FinetuneError(
            f"Dataset {dataset.name!r}: LLaMA-Factory {version}, which this stage runs with, does not read records of "
            f"formatting {dataset.formatting}.",
            where=where,
            change="use `formatting: sharegpt` with `columns: {messages: messages}` and `tags: {role_tag: role, "
            "content_tag: content, user_tag: user, assistant_tag: assistant, system_tag: system}`",
        )


def _registered(dataset: _dataset.Dataset, where: str) -> _dataset.Dataset:
    """A set by name alone: one that comes with this collection, or one that LLaMA-Factory registers on a hub."""
    name = dataset.where
    if name in _dataset.DEMO:
        return replace(dataset, source="file", where=str(FILES / _dataset.DEMO[name]))
    known = registry()
    if name not in known:
        near = difflib.get_close_matches(name, [*known, *_dataset.DEMO], n=3)
        raise FinetuneError(
            f"There is no dataset {name!r} in this collection, nor one that LLaMA-Factory registers.",
            where=where,
            change=f"use {' or '.join(near or _dataset.DEMO)}, or describe yours with file, path or hub",
        )
    if known[name] is None:
        raise FinetuneError(
            f"Dataset {name!r} is a file of LLaMA-Factory's repository, which no package brings to a node.",
            where=where,
            change="get that file and name it with `file`",
        )
    if dataset != _dataset.Dataset(dataset.name, "registered", name, options=dataset.options):
        raise FinetuneError(
            f"Dataset {name!r} is as LLaMA-Factory registers it: formatting, ranking, columns and tags are not yours.",
            where=where,
            change="leave them out, or describe the set with `hub`",
        )
    return replace(dataset, registration=known[name], ranking=bool(known[name].get("ranking")))


def registry() -> dict[str, t.Any]:
    """The datasets that the pinned LLaMA-Factory registers; None for those that are files of its repository."""
    with open(FILES / f"llamafactory-{_recipe.LLAMAFACTORY['main']}" / "datasets.json", encoding="utf-8") as file:
        rows: dict[str, t.Any] = json.load(file)
    return rows


def _on_controller(
    dataset: _dataset.Dataset, where: str, folders: t.Sequence[Path], evaluates: bool, wish: Wish
) -> Source:
    if dataset.described:
        change = "correct file_name; a relative one begins in the folder of dataset_info.json"
    else:
        change = "correct `file`, or use `path` for a file on the node"
    path = _lookup.find(dataset.where, folders, f"Dataset {dataset.name!r}: there", where, change)
    if wrong := _tables.unreadable(path):
        raise FinetuneError(
            f"Dataset {dataset.name!r} cannot be read: {wrong[0]}.", where=f"{where}, {path}", change=wrong[1]
        )
    media = _media(path, folders, wish)
    report = _records.check(path, dataset, wish.stage, media=media)
    _records.refuse(dataset, where, str(path), report)
    return Source(
        dataset,
        files.sha256(path),
        path.suffix,
        tuple(sorted(report.columns)),
        str(path.absolute()),
        evaluates,
        _records.doubts(report.doubts),
        report.media,
        report.media_dir,
        _media_files(report.sent, where, path.absolute()),
        tuple(media.folders),
        records=report.records,
    )


def _media(path: Path, folders: t.Sequence[Path], wish: Wish) -> Media:
    """Where media of a file are looked for: in media_dir, where train_config has them, and beside the file.

    A media_dir that is no folder on this controller, and could be one on the nodes, is theirs.
    """
    given = [place for folder in wish.media.folders for place in _lookup.candidates(folder, folders)]
    if given and given[0].is_file():
        raise FinetuneError(
            f"{given[0]} is a file.",
            where=f"{wish.origins['media_dir']}, key media_dir",
            change="name the folder that images, videos and audios are in",
        )
    if any(os.path.isabs(folder) for folder in wish.media.folders) and not given[0].is_dir():
        return wish.media
    places = [*given, *map(Path, wish.media_folders), path.parent]
    return wish.media._replace(folders=tuple(dict.fromkeys(str(place.absolute()) for place in places)), sent=True)


def _media_files(found: t.Mapping[str, str], where: str, path: Path) -> dict[str, str]:
    """Digests of what the dataset in `path` brings along, by relative path."""
    try:
        return dict(zip(found, _digests.sha256(found.values(), _digests.of_account(str(path)))))
    except OSError as error:
        raise FinetuneError(
            f"{error.filename} cannot be read: {error.strerror}.",
            where=f"{where}, {path}",
            change="let this account read it",
        ) from None


def _on_nodes(dataset: _dataset.Dataset, where: str, facts: t.Mapping[str, Facts], evaluates: bool) -> Source:
    """A dataset that is on every node already: the same bytes everywhere, or the run is refused."""
    seen: dict[str, dict[str, t.Any]] = {}
    for host, node in facts.items():
        answer: dict[str, t.Any] = next(
            (source for source in node["sources"] if source["name"] == dataset.name), {"missing": True}
        )
        if answer["missing"]:
            raise FinetuneError(
                f"Dataset {dataset.name!r}: there is no file {dataset.where} on {host}.",
                where=where,
                change="put it there, or use `file`",
            )
        faults = [_records.Fault(*fault) for fault in answer.get("faults", ())]
        report = _records.Report(faults=faults, more=answer.get("more", 0))
        _records.refuse(dataset, where, f"{host}:{dataset.where}", report)
        seen[host] = answer
    digests = {answer["digest"] for answer in seen.values()}
    if len(digests) > 1:
        raise FinetuneError(
            f"Dataset {dataset.name!r} differs between nodes.",
            where=", ".join(f"{host}: {answer['digest'][:12]}" for host, answer in seen.items()),
            change="copy one file to all of them, or use `file`",
        )
    first = next(iter(seen.values()))
    return Source(
        replace(dataset, where=first["path"]),
        first["digest"],
        Path(dataset.where).suffix,
        tuple(first.get("fields", ())),
        "",
        evaluates,
        _records.doubts(first.get("doubts", {})),
        first.get("media", False),
        first.get("media_dir", False),
        unread=next((f"{host}: {answer['unread']}" for host, answer in seen.items() if answer.get("unread")), ""),
        records=first.get("records"),
    )
