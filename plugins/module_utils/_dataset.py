# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Datasets: what `train_datasets` may hold, and what of it LLaMA-Factory and the run's identity are told."""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from . import _config, _split, _tables
from ._errors import FinetuneError

ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "history": "history", "system": "system"}
SHAREGPT = {"messages": "conversations", "system": "system", "tools": "tools"}
TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
OPENAI_TAGS = {
    **TAGS,
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
}
MEDIA = {"images": "images", "videos": "videos", "audios": "audios"}
MORE = {"tools": "tools", "chosen": "chosen", "rejected": "rejected", "kto_tag": "kto_tag", **MEDIA}
"""Fields of any form that a record may have; upstream knows them only where they are written out, as ours are."""
COLUMNS = {
    "alpaca": {**ALPACA, **MORE},
    "sharegpt": {**SHAREGPT, **MORE},
    "openai": {**SHAREGPT, **MORE, "messages": "messages"},
}
TAGS_OF = {"alpaca": TAGS, "sharegpt": TAGS, "openai": OPENAI_TAGS}
SUFFIXES = (".json", ".jsonl", ".csv", ".txt", *_tables.SUFFIXES)
"""Endings of files that LLaMA-Factory reads."""

Origin = t.Literal["file", "s3", "path", "hub", "registered"]
_SOURCES: tuple[Origin, ...] = ("file", "s3", "path", "hub", "registered")
_FILES = ("file", "s3", "path")
"""Sources that are one file each."""
S3 = "s3://"
_OBJECT = re.compile(S3 + r"(?P<bucket>[^/]*)/[^/].*")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_KEYS = {*_SOURCES, "name", "formatting", "ranking", "columns", "tags", "split", "subset", "num_samples"}
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
"""A name, or owner/name, of a dataset or model."""
_TRAIN = "train"
"""The only split that there is of files."""
DEMO = {"demo": "demo.jsonl", "demo_heldout": "demo_heldout.jsonl"}
"""Names of the sets that come with this collection, and their files in roles/train/files."""


@dataclass(frozen=True)
class Dataset:
    """One entry of train_datasets or train_eval_datasets."""

    name: str
    source: Origin
    where: str
    formatting: str = "alpaca"
    columns: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    ranking: bool = False
    """Its records hold a chosen and a rejected answer."""
    options: dict[str, t.Any] = field(default_factory=dict)
    """split, subset, num_samples as written."""
    registration: dict[str, t.Any] = field(default_factory=dict)
    """LLaMA-Factory's own entry of a set that it registers, kept word for word."""
    described: str = field(default="", compare=False)
    """Where it is described, when that is not the variable."""

    @property
    def field_names(self) -> dict[str, str]:
        """LLaMA-Factory's word for a field, and its name in the records."""
        return self.columns or COLUMNS[self.formatting]

    def columns_for(self, stage: str) -> dict[str, str]:
        """The same for one stage: of a kto_tag that nobody asked for, other stages would make a second answer.

        A line of a .txt file is called `text`.
        """
        if stage == "pt" and not self.columns and self.where.endswith(".txt"):
            return {"prompt": "text"}
        unasked = "" if self.columns or stage == "kto" else "kto_tag"
        return {role: name for role, name in self.field_names.items() if role != unasked}


@dataclass(frozen=True)
class Source:
    """A dataset as found: digest of its content ("" where only its hub knows), and the fields in its records."""

    dataset: Dataset
    digest: str
    suffix: str = ""
    fields: tuple[str, ...] = ()
    local: str = ""
    """Where it lies on the controller."""
    evaluates: bool = False
    doubts: tuple[str, ...] = ()
    """What a person should know of its records, though they are trained on."""
    media: bool = False
    """Its records hold images, videos or audios."""
    media_dir: bool = False
    """Some of them are in the media_dir of the nodes."""
    media_files: t.Mapping[str, str] = field(default_factory=dict)
    """Those that it brings along: digests by relative path."""
    media_folders: tuple[str, ...] = ()
    """Where on the controller these lie."""
    unread: str = ""
    """Why its records could not be read yet; the environment, once it is there, can."""
    records: int | None = None
    """None where only its hub knows."""

    def folder(self, root: str) -> str:
        return f"{root}/datasets/{self.digest[:16]}"

    def file_name(self, root: str) -> str:
        return self.dataset.where if self.dataset.source == "path" else f"{self.folder(root)}/data{self.suffix}"


def parse(entries: t.Any, variable: str, described: t.Mapping[str, str] = MappingProxyType({})) -> list[Dataset]:
    """The entries of `variable`; a FinetuneError names the entry that is wrong. described: see Dataset, by name."""
    if isinstance(entries, str):
        entries = [name.strip() for name in entries.split(",")]
    if isinstance(entries, t.Mapping):
        entries = [entries]
    if not isinstance(entries, (list, tuple)):
        raise FinetuneError(
            f"{variable} is no list.", where=variable, change="write `- name: mydata` and `file: data.jsonl` below it"
        )
    parsed = [_entry(entry, f"{variable}[{i}]") for i, entry in enumerate(entries)]
    parsed = [replace(dataset, described=described.get(dataset.name, "")) for dataset in parsed]
    names = [dataset.name for dataset in parsed]
    for name in names:
        if names.count(name) > 1:
            raise FinetuneError(f"Two datasets are named {name!r}.", where=variable, change="give each its own `name`")
    return parsed


def _entry(entry: t.Any, where: str) -> Dataset:
    if isinstance(entry, str):
        if Path(entry).suffix in SUFFIXES or ("/" in entry and HUB_ID.fullmatch(entry)):
            source = "s3" if entry.startswith(S3) else "file" if Path(entry).suffix in SUFFIXES else "hub"
            raise FinetuneError(f"{entry!r} is no name.", where=where, change=f"write {{{source}: {entry}}}")
        entry = {"name": entry, "registered": entry}
    if not isinstance(entry, t.Mapping):
        raise FinetuneError(
            f"{entry!r} is no dataset.",
            where=where,
            change="write a name, or a dict with `file`, `s3`, `path` or `hub`",
        )
    unknown = sorted(set(entry) - _KEYS, key=str)
    if unknown:
        raise FinetuneError(f"Unknown key {unknown[0]!r}.", where=where, change="use " + ", ".join(sorted(_KEYS)))
    sources = [source for source in _SOURCES if entry.get(source)]
    if len(sources) != 1:
        raise FinetuneError(
            "A dataset comes from exactly one of file (on this controller), s3, path (on the node), hub, registered.",
            where=where,
            change=f"keep one of {', '.join(sources)}" if sources else "add one of them",
        )
    source = sources[0]
    place = entry[source]
    if not isinstance(place, str):
        raise FinetuneError(f"{source} is {place!r}.", where=f"{where}.{source}", change="write one name, as text")
    if source == "hub" and not HUB_ID.fullmatch(place):
        raise FinetuneError(
            f"{place!r} is no hub id.", where=f"{where}.hub", change="write owner/name, with `subset` apart from it"
        )
    name = str(entry.get("name") or re.sub(r"\W+", "_", Path(place).stem))
    if not _NAME.fullmatch(name):
        raise FinetuneError(
            f"{name!r} is no dataset name.",
            where=f"{where}.name" if entry.get("name") else f"{where}.{source}",
            change=("use" if entry.get("name") else "give it a `name` of") + " letters, digits, _ . and -",
        )
    formatting = str(entry.get("formatting", "alpaca"))
    if formatting not in COLUMNS:
        raise FinetuneError(
            f"Unknown formatting {formatting!r}.", where=f"{where}.formatting", change="use " + ", ".join(COLUMNS)
        )
    columns = _names(entry.get("columns"), COLUMNS[formatting], f"{where}.columns")
    tags = _names(entry.get("tags"), TAGS, f"{where}.tags")
    ranking = _config.scalar(entry.get("ranking", False))
    if not isinstance(ranking, bool):
        raise FinetuneError(f"ranking is {ranking!r}.", where=f"{where}.ranking", change="use true or false")
    if formatting != "alpaca" and columns and "messages" not in columns:
        raise FinetuneError(
            "columns does not say which field holds the messages: LLaMA-Factory forgets its defaults.",
            where=f"{where}.columns",
            change="add `messages: conversations`, or the field's name in your file",
        )
    _refuse_address(source, place, where)
    if source in _FILES and (place.endswith("/") or Path(place).suffix not in SUFFIXES):
        raise FinetuneError(
            f"{place} has no ending of a file with records.",
            where=f"{where}.{source}",
            change=f"name one file, no folder, that ends in one of {' '.join(SUFFIXES)}",
        )
    if source == "path" and not place.startswith(("/", "~/")):
        raise FinetuneError(
            f"{place} is relative.",
            where=f"{where}.path",
            change="give the full path on the node, or `file` for one on this controller",
        )
    options = {key: entry[key] for key in ("split", "subset", "num_samples") if key in entry}
    for key in ("split", "subset"):
        if not isinstance(options.get(key) or "", str):
            raise FinetuneError(f"{key} is {options[key]!r}.", where=f"{where}.{key}", change="write its name, as text")
    if options.get("split"):
        _refuse_split(options["split"], source in _FILES, f"{where}.split")
    if source in _FILES and options.get("subset"):
        raise FinetuneError(
            f"subset is {options['subset']!r}, and a file has none.",
            where=f"{where}.subset",
            change="remove it, or name the file of that subset",
        )
    if "num_samples" in options:
        number = options["num_samples"] = _config.scalar(options["num_samples"])
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise FinetuneError(
                f"num_samples is {number!r}.", where=f"{where}.num_samples", change="use a whole number from 1"
            )
    return Dataset(name, source, place, formatting, columns, tags, ranking, options)


def _refuse_address(source: str, place: str, where: str) -> None:
    """Addresses where there can be none, and such as lead to no object in S3."""
    if source in ("file", "path") and "://" in place:
        change = f"write {{s3: {place}}}" if place.startswith(S3) else "fetch it, and name the file that it came to"
        raise FinetuneError(f"{place} is an address, and no file.", where=f"{where}.{source}", change=change)
    if source != "s3":
        return
    found = _OBJECT.fullmatch(place)
    if not found:
        raise FinetuneError(
            f"{place!r} is no object in S3.", where=f"{where}.s3", change="write s3://bucket/key, with all of the key"
        )
    if not _BUCKET.fullmatch(found["bucket"]):
        raise FinetuneError(
            f"{found['bucket']!r} is no name of a bucket.",
            where=f"{where}.s3",
            change="use its own name: 3 to 63 of small letters, digits, . and -",
        )


def _refuse_split(split: str, of_file: bool, where: str) -> None:
    parts = _split.parse(split)
    if not parts:
        raise FinetuneError(
            f"split is {split!r}, which datasets does not read.",
            where=where,
            change="write train, or a part of it such as train[:100] or train[10%:20%]",
        )
    if of_file and any(part.name != _TRAIN for part in parts):
        raise FinetuneError(
            f"split is {split!r}, and a file has no split but train.",
            where=where,
            change="remove it, or name the file of that split",
        )


def on_nodes(datasets: t.Iterable[Dataset]) -> list[dict[str, t.Any]]:
    """Entries of those that lie on the nodes, each once, also where one is trained and evaluated on."""
    kept = {dataset.name: dataset for dataset in datasets if dataset.source == "path"}
    written = ("name", "formatting", "columns", "tags", "ranking")
    return [{"path": one.where, **{key: getattr(one, key) for key in written}, **one.options} for one in kept.values()]


def _names(given: t.Any, known: t.Iterable[str], where: str) -> dict[str, str]:
    """`columns` or `tags`: LLaMA-Factory's word for a field, and the name it has in the file."""
    if not isinstance(given or {}, t.Mapping):
        raise FinetuneError(f"{given!r} is no dict.", where=where, change="write `key: name` with " + ", ".join(known))
    for key, name in (given or {}).items():
        if key not in known:
            raise FinetuneError(f"Unknown key {key!r}.", where=where, change="use " + ", ".join(known))
        if not isinstance(name, str) or not name:
            raise FinetuneError(f"{name!r} is no name.", where=f"{where}.{key}", change="write the name as text")
    return dict(given or {})


def info(dataset: Dataset, file_name: str, present: t.Container[str] = (), stage: str = "sft") -> dict[str, t.Any]:
    """The entry in dataset_info.json.

    Columns are always written out: LLaMA-Factory dies on a default column that the file does not have, and forgets
    every default once one column or tag is given. `present` are the fields of the file, where they are known.
    """
    if dataset.registration:
        return {**dataset.registration, **dataset.options}
    entry: dict[str, t.Any] = {"formatting": dataset.formatting, **({"ranking": True} if dataset.ranking else {})}
    if dataset.source == "hub":
        entry["hf_hub_url"] = dataset.where
    else:
        entry["file_name"] = file_name
    known = dataset.columns_for(stage)
    if dataset.columns:
        entry["columns"] = known
    elif present:
        entry["columns"] = {role: name for role, name in known.items() if name in present}
    if dataset.tags or dataset.formatting == "openai":
        entry["tags"] = {**TAGS_OF[dataset.formatting], **dataset.tags}
    return {**entry, **dataset.options}


def identity(dataset: Dataset, digest: str, media: str = "") -> dict[str, t.Any]:
    """What of a dataset is part of the run's identity: its content where there is a file, else the reference.

    media: digest of the images, videos and audios that it brings along.
    """
    content = {"digest": digest} if digest else {"reference": dataset.where}
    more = {
        key: value
        for key, value in (
            ("ranking", dataset.ranking),
            ("columns", dataset.columns),
            ("tags", dataset.tags),
            ("options", dataset.options),
            ("media", media),
        )
        if value
    }
    return {"name": dataset.name, "formatting": dataset.formatting, **content, **more}
