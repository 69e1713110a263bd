# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lock: a hashed requirements file, and what it installs on one Python."""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass

from . import _markers
from ._errors import FinetuneError

PYTHONS = ((3, 11), (3, 12), (3, 13))
"""Versions that environments are built on; a lock may be for fewer, which the markers of its lines say."""


@dataclass(frozen=True)
class Requirement:
    """One line of a lock: normalised name, exact version, marker ("" = always), sorted hashes."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]
    extras: str = ""

    def canonical(self) -> str:
        marker = f" ; {self.marker}" if self.marker else ""
        return f"{self.name}{self.extras}=={self.version}{marker} {' '.join(self.hashes)}"


_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)\s*(?P<extras>\[[^\]]*\])?\s*==\s*(?P<version>[A-Za-z0-9.!+_-]+)"
    r"\s*(?:;\s*(?P<marker>.*?))?\s*"
)
_HASH = re.compile(r"\s--hash[= ](\S+)")


def normalise(name: str) -> str:
    """The one spelling of a distribution's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(text: str, name: str = "the lock") -> list[Requirement]:
    """The requirements of a hashed lock, in file order; what is not `name==version … --hash=…` is refused."""
    found = []
    for number, line in _logical_lines(text):
        where = f"{name}, line {number}: {line[:80]}"
        hashes = tuple(sorted(set(_HASH.findall(line))))
        spec = _HASH.split(line, maxsplit=1)[0].strip()
        if spec.startswith("-"):
            raise FinetuneError(
                "A lock holds requirements only, no options.",
                where=where,
                change="remove it; an index is named with uv_env_index_url, a wheel folder with uv_env_find_links",
            )
        match = _REQUIREMENT.fullmatch(spec)
        if match is None or not hashes:
            raise FinetuneError(
                "Every line of a lock must be an exact version with its hashes: name==version --hash=sha256:….",
                where=where,
                change="make the lock with `uv pip compile --universal --generate-hashes`",
            )
        marker = " ".join((match["marker"] or "").split())
        extras = ",".join(sorted(normalise(extra.strip()) for extra in (match["extras"] or "[]")[1:-1].split(",")))
        if marker:
            _markers.holds(marker, _markers.target((3, 11, 0)), where=where)
        found.append(
            Requirement(normalise(match["name"]), match["version"], marker, hashes, f"[{extras}]" if extras else "")
        )
    if not found:
        raise FinetuneError("The lock is empty.", where=name, change="name a hashed requirements file with uv_env_lock")
    return found


def parse_lock(text: str, python_version: tuple[int, ...], name: str = "the lock") -> dict[str, str]:
    """What the lock installs for this Python on Linux x86-64: {name: version}."""
    wanted: dict[str, str] = {}
    requirements = read_lock(text, name)
    for requirement in _for(python_version, requirements, name):
        if wanted.setdefault(requirement.name, requirement.version) != requirement.version:
            raise FinetuneError(
                f"The lock asks for two versions of {requirement.name}: "
                f"{wanted[requirement.name]} and {requirement.version}.",
                where=name,
                change="make the lock with `uv pip compile --universal --generate-hashes`",
            )
    if not wanted:
        served = [f"{major}.{minor}" for major, minor in PYTHONS if _for((major, minor, 0), requirements, name)]
        raise FinetuneError(
            f"This lock has nothing for Python {'.'.join(map(str, python_version))}.",
            where=name,
            change=f"install Python {' or '.join(served)} on the node, or name one with uv_env_python",
        )
    return wanted


def _for(python_version: tuple[int, ...], requirements: list[Requirement], name: str) -> list[Requirement]:
    """The lines whose markers hold."""
    values = _markers.target(python_version)
    return [line for line in requirements if not line.marker or _markers.holds(line.marker, values, where=name)]


def _logical_lines(text: str) -> t.Iterator[tuple[int, str]]:
    """(number of the first line, text) of each line after joining continuations and dropping comments."""
    start = 0
    parts: list[str] = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = (re.sub(r"(^|\s)#.*$", "", raw) if "#" in raw else raw).strip()
        if not parts:
            start = number
        more = line.endswith("\\")
        line = line.rstrip("\\").strip()
        if line:
            parts.append(line)
        if not more and parts:
            yield start, " ".join(parts)
            parts = []
    if parts:
        yield start, " ".join(parts)
