# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An environment: its name, its place, and whether what is installed there is what its lock says. Writes nothing."""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import re
import typing as t
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from . import _lock
from ._engine.files import read_json, sha256

Content = t.Literal["all", "unsealed", "none"]
"""Which packages to read byte by byte: all, those whose seal is broken or unknown, none."""

MARK = "environment.json"
"""The completion mark inside an environment: written last, so a directory without it is not an environment."""
FORMAT = 1
"""Of the mark."""
RANKS_PATH = "/usr/local/bin:/usr/bin:/bin"
"""Where ranks look for programs after those of their environment."""


def environment_digest(lock_text: str) -> str:
    """The name of the environment that a lock describes: 16 hex digits; comments, order and layout do not count."""
    lines = sorted(requirement.canonical() for requirement in _lock.read_lock(lock_text))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def environment_path(root: str, digest: str) -> str:
    """Where an environment lives on a node; its Python is `<this>/bin/python`."""
    return f"{root.rstrip('/')}/envs/{digest}"


def site_packages(path: str, version: t.Sequence[int]) -> str:
    """Where the packages of the environment in `path` are. version: of its Python."""
    return f"{path}/lib/python{version[0]}.{version[1]}/site-packages"


@dataclass(frozen=True)
class Damage:
    """One difference between an environment and its lock. kind: missing, extra, version, files.

    poisoned: content differs, not only presence. uv's cache shares its files with the environment (hard links), so the
    cache must not be asked for this package.
    """

    kind: str
    name: str
    version: str
    detail: str
    poisoned: bool = False

    def sentence(self) -> str:
        return {
            "missing": f"{self.name} {self.version} is not installed",
            "extra": f"{self.name} {self.version} is installed but not in the lock",
            "version": f"{self.name}: {self.detail}",
            "files": f"{self.name} {self.version}: {self.detail}",
        }[self.kind]

    def change(self, path: str) -> dict[str, str]:
        action = {"missing": "create", "extra": "remove"}.get(self.kind, "update")
        return {"action": action, "path": f"{path}: {self.name} {self.version}"}


def sentence(damages: t.Iterable[Damage]) -> str:
    """All of them in one sentence, without its full stop."""
    return "; ".join(damage.sentence() for damage in damages)


@dataclass
class Built:
    """What a build left in an environment's place. wrong: why it cannot stay, "" where its packages decide."""

    wrong: str
    mark: dict[str, t.Any] = field(default_factory=dict)
    version: tuple[int, ...] = ()
    """Of its Python."""
    site: str = ""


def built(path: str, digest: str) -> Built:
    """All but the packages: the mark of a finished build of that lock, its Python, its settings."""
    if not os.path.lexists(path):
        return Built("it is not there")
    if not os.path.lexists(f"{path}/{MARK}"):
        return Built("its build was never finished")
    mark = read_json(Path(path) / MARK)
    try:
        if (mark["format"], mark["digest"]) != (FORMAT, digest):
            return Built("its completion mark is of another environment")
        version = tuple(int(part) for part in mark["python_version"].split("."))
        site = site_packages(path, version)
        base, config, _seals = mark["python"], mark["pyvenv"], mark["seals"]
    except (ValueError, LookupError, TypeError, AttributeError):
        return Built("its completion mark cannot be read")
    settings = Path(path) / "pyvenv.cfg"
    if not os.access(f"{path}/bin/python", os.X_OK) or not os.access(base, os.X_OK):
        return Built(f"its Python {base} is gone")
    if not settings.is_file() or sha256(settings) != config or not os.path.isdir(site):
        return Built("pyvenv.cfg or site-packages was changed")
    return Built("", mark, version, site)


def untouched(root: str, digest: str) -> bool:
    """Whether the environment of a lock is as its build sealed it, by presence, size and time of every file."""
    there = built(environment_path(root, digest), digest)
    if there.wrong:
        return False
    found = {
        name: _inspect_package(there.site, entries[0][1], name, entries[0][0], {})[1] if len(entries) == 1 else {}
        for name, entries in _installed(there.site).items()
    }
    return bool(found == there.mark["seals"])


@dataclass
class Inspection:
    """What a look at an environment found. seals: {name: seal of a package}, for the mark."""

    damages: list[Damage] = field(default_factory=list)
    packages: dict[str, str] = field(default_factory=dict)
    seals: dict[str, dict[str, str]] = field(default_factory=dict)


def inspect(
    site: str,
    lock: t.Mapping[str, str],
    seals: t.Mapping[str, t.Mapping[str, str]],
    content: Content = "unsealed",
) -> Inspection:
    """Compare site-packages with a lock (from parse_lock), package by package and file by file.

    Every file's presence and size are checked against the package's RECORD. A seal (size and time of every file) is
    taken of a package that is right; content is read again only where the seal is broken or unknown, or as asked.
    """
    result = Inspection()
    unread: list[tuple[str, str, list[tuple[str, str]]]] = []
    found = _installed(site)
    for name, version in lock.items():
        if name not in found:
            result.damages.append(Damage("missing", name, version, ""))
    for name, entries in sorted(found.items()):
        versions = " and ".join(entry[0] for entry in entries)
        if name not in lock:
            result.damages.append(Damage("extra", name, versions, ""))
            continue
        locked = lock[name]
        result.packages[name] = locked
        if len(entries) > 1 or not same_version(entries[0][0], locked):
            detail = f"{versions} is installed, the lock has {locked}"
            result.damages.append(Damage("version", name, locked, detail))
            continue
        known = seals.get(name, {})
        damage, seal, files = _inspect_package(site, entries[0][1], name, locked, known)
        if damage:
            result.damages.append(damage)
            continue
        result.seals[name] = seal
        if content == "all" or (content == "unsealed" and seal != known):
            unread.append((name, locked, files))
    for name, locked, changed in _read(site, unread):
        del result.seals[name]
        result.damages.append(Damage("files", name, locked, f"{changed} was changed", poisoned=True))
    return result


def _installed(site: str) -> dict[str, list[tuple[str, str]]]:
    """(version, its dist-info) of each installation of each distribution."""
    found: dict[str, list[tuple[str, str]]] = {}
    for entry in sorted(os.listdir(site)):
        stem, dot, suffix = entry.rpartition(".")
        if dot and suffix == "dist-info":
            name, version = _halves(stem, "-")
            found.setdefault(_lock.normalise(name), []).append((version, entry))
    return found


def _inspect_package(
    site: str, info: str, name: str, version: str, known: t.Mapping[str, str]
) -> tuple[Damage | None, dict[str, str], list[tuple[str, str]]]:
    """(damage or None, seal, [(path, hash)]) by presence and size."""

    def broken(detail: str, poisoned: bool) -> tuple[Damage, dict[str, str], list[tuple[str, str]]]:
        return Damage("files", name, version, detail, poisoned), {}, []

    try:
        raw = Path(f"{site}/{info}/RECORD").read_bytes()
        rows = [row for row in csv.reader(raw.decode().splitlines()) if row]
    except (OSError, UnicodeDecodeError, csv.Error):
        return broken(f"{info}/RECORD is missing or unreadable", True)
    record = hashlib.sha256(raw).hexdigest()
    if known and known["record"] != record:
        return broken(f"{info}/RECORD was changed", True)
    times = hashlib.sha256()
    files: list[tuple[str, str]] = []
    for row in rows:
        if len(row) != 3:
            return broken(f"{info}/RECORD was changed", True)
        path, digest, size = row
        if not size or path.endswith(".pyc"):
            continue
        try:
            stat = os.stat(f"{site}/{path}")
        except OSError:
            return broken(f"{path} is missing", False)
        if stat.st_size != int(size):
            return broken(f"{path} has {stat.st_size} bytes instead of {size}", True)
        times.update(f"{path}\0{size}\0{stat.st_mtime_ns}\n".encode())
        files.append((path, digest))
    return None, {"record": record, "files": times.hexdigest()}, files


def _read(site: str, packages: list[tuple[str, str, list[tuple[str, str]]]]) -> t.Iterator[tuple[str, str, str]]:
    """(name, version, path of the first wrong file) of each package whose content is not what its RECORD says."""

    def right(file: tuple[str, str]) -> bool:
        algorithm, expected = _halves(file[1], "=")
        return not algorithm or _file_hash(f"{site}/{file[0]}", algorithm) == expected

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for name, version, files in packages:
            wrong = [file[0] for file, good in zip(files, pool.map(right, files, chunksize=64)) if not good]
            if wrong:
                yield name, version, wrong[0]


def _file_hash(path: str, algorithm: str) -> str:
    """A file's hash as RECORD writes it: URL-safe base64 without padding."""
    digest = hashlib.new(algorithm)
    try:
        with Path(path).open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    except OSError:
        return ""
    return base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode()


def same_version(installed: str, locked: str) -> bool:
    """Whether two spellings are one version (1.0 and 1.0.0); a local part counts if the lock has one."""

    def key(version: str) -> tuple[str, ...]:
        public = re.sub(r"[-_]", ".", version.lower().strip()).removeprefix("v")
        parts = [str(int(part)) if part.isdigit() else part for part in re.split(r"\.|(?<=\d)(?=[a-z])", public)]
        release = next((i for i, part in enumerate(parts) if not part.isdigit()), len(parts))
        kept = parts[:release]
        while len(kept) > 1 and kept[-1] == "0":
            kept.pop()
        return (*kept, *parts[release:])

    public, local = _halves(installed, "+")
    locked_public, locked_local = _halves(locked, "+")
    return key(public) == key(locked_public) and (not locked_local or key(local) == key(locked_local))


def _halves(text: str, sign: str) -> tuple[str, str]:
    """What stands before and behind the first sign."""
    parts = text.partition(sign)
    return parts[0], parts[2]
