# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an environment is: its lock, its name, the Python it needs, and whether what is installed is what the lock says.

Runs on nodes too, also on ones whose Python is too old for training: standard library only, Python 3.9 and later.
"""

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

from ._errors import FinetuneError

Content = t.Literal["all", "unsealed", "none"]
"""Which packages to read byte by byte: all, those whose seal is broken or unknown, none."""

MARK = "environment.json"
"""The completion mark inside an environment: written last, so a directory without it is not an environment."""

PYTHON_MIN = (3, 11)
PYTHON_MAX = (3, 13)
PYTHON_NAMES = ("python3.11", "python3.12", "python3.13", "python3")

GIB = 1024**3
TORCH_BYTES = 9 * GIB
"""Free space that a first build of a lock with torch needs: 7.6 GiB on disk, and room to unpack."""
SMALL_BYTES = GIB // 2
"""The same for any other lock, and for a lock whose files the cache may already hold (hard links cost nothing)."""
TORCH_GLIBC = (2, 28)

_PYTHON_REMEDY = (
    "install one (Debian, Ubuntu: apt install python3.11 python3.11-venv) or name one with uv_env_python "
    "(versions 3.11 to 3.13)"
)


# --- the lock ---------------------------------------------------------------------------------------------------------


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
            holds(marker, target((3, 11, 0)), where=where)
        found.append(
            Requirement(normalise(match["name"]), match["version"], marker, hashes, f"[{extras}]" if extras else "")
        )
    if not found:
        raise FinetuneError("The lock is empty.", where=name, change="name a hashed requirements file with uv_env_lock")
    return found


def environment_digest(lock_text: str) -> str:
    """The name of the environment that a lock describes: 16 hex digits; comments, order and layout do not count."""
    lines = sorted(requirement.canonical() for requirement in read_lock(lock_text))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def environment_path(root: str, digest: str) -> str:
    """Where an environment lives on a node; its Python is `<this>/bin/python`."""
    return f"{root.rstrip('/')}/envs/{digest}"


def parse_lock(text: str, python_version: tuple[int, ...], name: str = "the lock") -> dict[str, str]:
    """What the lock installs for this Python on Linux x86-64: {name: version}."""
    wanted: dict[str, str] = {}
    marker_values = target(python_version)
    for requirement in read_lock(text, name):
        if requirement.marker and not holds(requirement.marker, marker_values, where=name):
            continue
        if wanted.setdefault(requirement.name, requirement.version) != requirement.version:
            raise FinetuneError(
                f"The lock asks for two versions of {requirement.name}: "
                f"{wanted[requirement.name]} and {requirement.version}.",
                where=name,
                change="make the lock with `uv pip compile --universal --generate-hashes`",
            )
    return wanted


def _logical_lines(text: str) -> t.Iterator[tuple[int, str]]:
    """(number of the first line, text) of each line after joining continuations and dropping comments."""
    start = 0
    parts: list[str] = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = re.sub(r"(^|\s)#.*$", "", raw).strip()
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


# --- environment markers (PEP 508) ------------------------------------------------------------------------------------


def target(python_version: tuple[int, ...]) -> dict[str, str]:
    """What markers see on a node: CPython of this version on Linux x86-64."""
    full = ".".join(str(part) for part in (*python_version, 0, 0)[:3])
    return {
        "python_version": ".".join(full.split(".")[:2]),
        "python_full_version": full,
        "implementation_version": full,
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }


_TOKEN = re.compile(
    r"\s*(?:(?P<string>'[^']*'|\"[^\"]*\")|(?P<op>===|[<>=!~]=|[<>()])|(?P<word>[A-Za-z_][A-Za-z0-9_.]*))"
)
_VERSIONED = ("python_version", "python_full_version", "implementation_version")


def holds(marker: str, values: t.Mapping[str, str], *, where: str = "") -> bool:
    """Whether an environment marker is true for these values. A marker that we cannot read is an error."""
    tokens: list[str] = []
    at = 0
    while at < len(marker.rstrip()):
        match = _TOKEN.match(marker, at)
        if match is None:
            raise _bad_marker(marker, where)
        tokens.append(match.group().strip())
        at = match.end()
    reader = _MarkerReader(tokens, values)
    try:
        result = reader.either()
    except (IndexError, KeyError, ValueError):
        raise _bad_marker(marker, where) from None
    if reader.at != len(tokens):
        raise _bad_marker(marker, where)
    return result


def _bad_marker(marker: str, where: str) -> FinetuneError:
    return FinetuneError(
        f"The environment marker {marker!r} cannot be read.",
        where=where,
        change="make the lock with `uv pip compile --universal --generate-hashes`",
    )


class _MarkerReader:
    """Recursive descent over the tokens of one marker; both sides are always read, so that all of it is checked."""

    def __init__(self, tokens: list[str], values: t.Mapping[str, str]) -> None:
        self.tokens, self.values, self.at = tokens, values, 0

    def next(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1]

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def either(self) -> bool:
        result = self.both()
        while self.peek() == "or":
            self.next()
            right = self.both()
            result = result or right
        return result

    def both(self) -> bool:
        result = self.single()
        while self.peek() == "and":
            self.next()
            right = self.single()
            result = result and right
        return result

    def single(self) -> bool:
        if self.peek() == "(":
            self.next()
            result = self.either()
            if self.next() != ")":
                raise ValueError
            return result
        left, operator = self.next(), self.next()
        if operator == "not":
            if self.next() != "in":
                raise ValueError
            operator = "not in"
        right = self.next()
        versioned = left in _VERSIONED or right in _VERSIONED
        return _compare(self.value(left), operator, self.value(right), versioned)

    def value(self, token: str) -> str:
        return token[1:-1] if token[0] in "'\"" else self.values[token]


def _compare(left: str, operator: str, right: str, versioned: bool) -> bool:
    if operator == "in":
        return left in right
    if operator == "not in":
        return left not in right
    if not versioned:
        if operator not in ("==", "!=", "==="):
            raise ValueError
        return (left == right) != (operator == "!=")
    if right.endswith(".*"):
        prefix = _release(right[:-2])
        if operator not in ("==", "!="):
            raise ValueError
        return (_release(left)[: len(prefix)] == prefix) != (operator == "!=")
    if operator == "===":
        return left == right
    if operator == "~=":
        return _padded(left) >= _padded(right) and _release(left)[: len(_release(right)) - 1] == _release(right)[:-1]
    a, b = _padded(left), _padded(right)
    return {"==": a == b, "!=": a != b, "<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b}[operator]


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    if match is None:
        raise ValueError(version)
    return tuple(int(part) for part in match.group().split("."))


def _padded(version: str) -> tuple[int, ...]:
    return (*_release(version), 0, 0, 0, 0)[:4]


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

    public, _, local = installed.partition("+")
    locked_public, _, locked_local = locked.partition("+")
    return key(public) == key(locked_public) and (not locked_local or key(local) == key(locked_local))


# --- the Python -------------------------------------------------------------------------------------------------------

PYTHON_PROBE = """
import json, os, platform, sys, sysconfig
print(json.dumps({
    "version": list(sys.version_info[:3]), "implementation": platform.python_implementation(),
    "in_venv": sys.prefix != sys.base_prefix, "base": getattr(sys, "_base_executable", "") or sys.executable,
    "platform": sysconfig.get_platform(), "include": sysconfig.get_paths()["include"],
    "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    "libc": os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else "",
}))
"""
"""Asked of a candidate interpreter; answers the facts that `judge_python` wants."""


def python_candidates(path: str, home: str) -> list[str]:
    """Where a Python may be, best first: by version, then /usr/bin, /usr/local/bin, the PATH, the user's own."""
    folders = ["/usr/bin", "/usr/local/bin", *path.split(os.pathsep), f"{home}/.local/bin"]
    folders = list(dict.fromkeys(folder.rstrip("/") for folder in folders if folder.startswith("/")))
    return [f"{folder}/{name}" for name in PYTHON_NAMES for folder in folders]


def judge_python(facts: t.Mapping[str, t.Any]) -> str:
    """Why this interpreter cannot carry an environment; "" when it can."""
    version = ".".join(str(part) for part in facts["version"])
    if facts["implementation"] != "CPython":
        return f"{facts['implementation']}, not CPython"
    if not PYTHON_MIN <= tuple(facts["version"][:2]) <= PYTHON_MAX:
        return f"Python {version}"
    if facts["free_threaded"]:
        return f"Python {version} without the GIL"
    if facts["platform"] != "linux-x86_64":
        return f"built for {facts['platform']}"
    return ""


def no_python(tried: t.Mapping[str, str], asked: str, user: str) -> FinetuneError:
    """The refusal when no Python fits. tried: {path: why not}."""
    seen = "; ".join(f"{path}: {why}" for path, why in tried.items()) or "none was found"
    what = (
        f"{asked} cannot carry the environment." if asked else "This node has no Python that can carry the environment."
    )
    return FinetuneError(what, where=f"tried as {user}: {seen}", change=_PYTHON_REMEDY)


def check_platform(system: str, machine: str, libc: str, lock: t.Mapping[str, str]) -> None:
    """Refuse a node whose wheels do not exist. libc: as from confstr, `glibc 2.36`, "" when it is not glibc."""
    if (system, machine) != ("Linux", "x86_64"):
        raise FinetuneError(
            f"The lock is made for Linux on x86-64; this node is {system} on {machine}.",
            where="uv_env_lock",
            change="take this host out of the group trainers, or name a lock made for it with uv_env_lock",
        )
    match = re.fullmatch(r"glibc (\d+)\.(\d+).*", libc or "")
    if match is None:
        raise FinetuneError(
            "This node's C library is not glibc; the wheels need glibc.",
            change="use a distribution with glibc (Debian, Ubuntu, RHEL and their like)",
        )
    if "torch" in lock and (int(match[1]), int(match[2])) < TORCH_GLIBC:
        raise FinetuneError(
            f"This node has {libc}; the wheels of torch need glibc {TORCH_GLIBC[0]}.{TORCH_GLIBC[1]} or later.",
            change="use Debian 10, Ubuntu 20.04, RHEL 8 or later",
        )


def check_space(free: int, lock: t.Mapping[str, str], warm: bool, root: str) -> None:
    """Refuse a build that cannot fit. free: bytes; warm: the cache holds files, which cost nothing again."""
    needed = TORCH_BYTES if "torch" in lock and not warm else SMALL_BYTES
    if free < needed:
        raise FinetuneError(
            f"The environment needs {needed / GIB:.1f} GiB of free disk space; {free / GIB:.1f} GiB are free.",
            where=root,
            change="free some space, or put uv_env_root (train_root) on a larger file system",
        )


# --- what is installed ------------------------------------------------------------------------------------------------


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
    found: dict[str, list[tuple[str, str]]] = {}
    for entry in sorted(os.listdir(site)):
        stem, dot, suffix = entry.rpartition(".")
        if dot and suffix == "dist-info":
            name, _, version = stem.partition("-")
            found.setdefault(normalise(name), []).append((version, entry))
    for name, version in lock.items():
        if name not in found:
            result.damages.append(Damage("missing", name, version, ""))
    for name, entries in sorted(found.items()):
        versions = " and ".join(version for version, _ in entries)
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
        algorithm, _, expected = file[1].partition("=")
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


# --- uv ---------------------------------------------------------------------------------------------------------------

_KEPT = ("PATH", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "NETRC", "UV_HTTP_TIMEOUT", "CC", "CXX")


def uv_environ(environ: t.Mapping[str, str], root: str, home: str, index_url: str = "") -> dict[str, str]:
    """The whole environment that uv runs in: proxies and certificates pass, nobody's uv or pip settings do."""
    kept = {key: value for key, value in environ.items() if key in _KEPT or key.lower().endswith("_proxy")}
    kept.setdefault("PATH", "/usr/local/bin:/usr/bin:/bin")
    kept.update(
        HOME=home,
        TMPDIR=f"{root}/cache/tmp",
        UV_CACHE_DIR=f"{root}/cache/uv",
        UV_NO_CONFIG="1",
        UV_NO_PROGRESS="1",
        UV_PYTHON_DOWNLOADS="never",
    )
    if index_url:
        kept["UV_DEFAULT_INDEX"] = index_url
    return kept


def venv_args(uv: str, path: str, python: str) -> list[str]:
    """The command that makes an empty environment. No pip in it: what a lock describes is not changed by hand."""
    return [uv, "venv", "--quiet", "--no-project", "--python", python, "--prompt", "llmops", path]


def sync_args(
    uv: str, path: str, lock_file: str, *, reinstall: t.Sequence[str] = (), find_links: str = "", offline: bool = False
) -> list[str]:
    """The command that makes an environment what its lock says."""
    args = [uv, "pip", "sync", "--require-hashes", "--python", f"{path}/bin/python"]
    for name in reinstall:
        args += ["--reinstall-package", name]
    if find_links:
        args += ["--find-links", find_links]
    if offline:
        args += ["--offline", *(["--no-index"] if find_links else [])]
    return [*args, lock_file]


@dataclass(frozen=True)
class Trouble:
    """A kind of failure of uv: how it is recognised, what it means, what to change."""

    pattern: str
    meaning: str
    remedy: str


_TROUBLES = (
    Trouble(
        r"hash mismatch|hashes? (are|is) required|no hash",
        "A package does not have the hash that the lock says.",
        "check what uv_env_index_url and uv_env_find_links serve; if the lock is old, make it again",
    ),
    Trouble(
        r"no space left|disk quota exceeded|os error 28|os error 122",
        "The disk is full.",
        "free some space, or put uv_env_root (train_root) on a larger file system",
    ),
    Trouble(
        r"permission denied|os error 13",
        "Some files of the environment belong to somebody else.",
        "give them to the environment's user (chown -R below uv_env_root), or remove the environment and apply again",
    ),
    Trouble(
        r"network (connectivity )?(was|is) disabled|not found in the cache|packages were unavailable because index|"
        r"not found in the provided package locations",
        "A package is not in the wheel folder or the cache, and the network may not be used.",
        "put it into the folder of uv_env_find_links (for an sdist also setuptools), or set uv_env_offline=false",
    ),
    Trouble(
        r"dns error|error sending request|tcp connect|connection (refused|reset|closed)|timed out|unreachable|"
        r"http status (client|server) error|certificate|not found in the package registry|there is no version",
        "The package index cannot be reached, or does not have a package.",
        "name an index that this node reaches with uv_env_index_url, or a folder of wheels with uv_env_find_links; "
        "a proxy is set with the task's environment (HTTPS_PROXY)",
    ),
    Trouble(
        r"failed to build|build backend",
        "A source package could not be built.",
        "read uv's words below; it may need a compiler",
    ),
    Trouble(
        r"no (compatible |matching |usable )?(wheels?|source distribution)|platform tag|abi tag|python tag",
        "A package has no wheel for this node's Python or platform.",
        "name another Python with uv_env_python, or a lock made for this platform with uv_env_lock",
    ),
)


def explain_uv(stderr: str, lock_name: str) -> FinetuneError:
    """What uv's failure means for the person who set the variables; uv's own last lines are kept."""
    tail = "\n".join(line for line in stderr.strip().splitlines() if line.strip())[-1500:]
    what, change = "uv failed.", "read uv's words below"
    for trouble in _TROUBLES:
        if re.search(trouble.pattern, stderr, re.IGNORECASE):
            what, change = trouble.meaning, trouble.remedy
            break
    return FinetuneError(what, where=lock_name, change=f"{change}\n  uv:     " + tail.replace("\n", "\n          "))


def strip_credentials(text: str) -> str:
    """URLs without what stands before the @."""
    return re.sub(r"(?<=://)[^/@\s]+@", "***@", text)
