# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The package managers of a node: what is installed, and a set installed as a whole or not at all."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import typing as t
from pathlib import Path

from .._errors import FinetuneError
from . import sets, table
from .facts import Package

_HELD_DNF = Path("/etc/dnf/plugins/versionlock.list")
_STREAM = Path("/etc/dnf/modules.d/nvidia-driver.module")
_SECONDS = 3600.0
"""DKMS builds modules for each kernel."""


class Manager(t.Protocol):
    def installed(self) -> t.Tuple[t.Dict[str, str], t.FrozenSet[str]]:
        """Versions by name, and the names that are held."""

    def stream(self) -> str:
        """The module stream of the driver; empty for none."""

    def sources(self, part: str) -> t.Tuple[str, ...]:
        """Files of sources, but for this role's, that name an address with such a part."""

    def archive(self, suite: str) -> str:
        """Where this host has the system's own packages from; empty for nowhere."""

    def refresh(self) -> None: ...

    def enable(self, stream: str) -> None: ...

    def install(self, wanted: t.Sequence[Package], change: str = "") -> None:
        """change: what helps where the repository does not have them."""

    def hold(self, names: t.Sequence[str]) -> None: ...


def of(release: t.Tuple[str, str]) -> Manager:
    known = table.system(*release)
    dnf = known.family == table.DNF if known else not os.path.exists("/usr/bin/dpkg-query")
    return Dnf() if dnf else Apt()


def run(*command: str, change: str = "", extra: t.Mapping[str, str] | None = None) -> str:
    """What a command says; refused where it fails, with its last lines."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", **(extra or {})}
    environment["PATH"] = f"{environment.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, timeout=_SECONDS, cwd="/"
        )
    except FileNotFoundError:
        raise FinetuneError(f"There is no {command[0]} on this host.", change="install it") from None
    except subprocess.TimeoutExpired:
        raise FinetuneError(
            f"{command[0]} was ended after {_SECONDS:.0f} s.", where=" ".join(command), change="run it by hand"
        ) from None
    if done.returncode != 0:
        said = [line for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
        raise FinetuneError(
            f"{command[0]} failed.",
            where="\n          ".join([" ".join(command), *said[-8:]]),
            change=change or "see what it says; the same apply goes on from here",
        )
    return done.stdout


def quiet(*command: str) -> str:
    """The same of a question, empty where nobody can be asked."""
    try:
        return run(*command)
    except FinetuneError:
        return ""


def _naming(place: Path, part: str) -> t.Tuple[str, ...]:
    found = []
    for path in sorted(place.iterdir()) if place.is_dir() else ():
        if path.is_file() and not path.name.startswith("llmops-"):
            text = path.read_text(encoding="utf-8", errors="replace")
            if any(part in line and not line.lstrip().startswith("#") for line in text.splitlines()):
                found.append(str(path))
    return tuple(found)


class Apt:
    def installed(self) -> t.Tuple[t.Dict[str, str], t.FrozenSet[str]]:
        return parse_dpkg(quiet("dpkg-query", "-W", "-f=${db:Status-Abbrev} ${Package} ${Version}\n"))

    def stream(self) -> str:
        return ""

    def sources(self, part: str) -> t.Tuple[str, ...]:
        return _naming(Path("/etc/apt/sources.list.d"), part)

    def archive(self, suite: str) -> str:
        form = ("--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages")
        return parse_targets(quiet("apt-get", "indextargets", *form), suite)

    def refresh(self) -> None:
        run(
            *_APT,
            "update",
            "-o",
            "APT::Update::Error-Mode=any",
            change="see whether this host reaches its repositories",
        )

    def enable(self, stream: str) -> None: ...

    def install(self, wanted: t.Sequence[Package], change: str = "") -> None:
        """Asks apt what it would do, first: nothing that is no driver may be removed for it."""
        names = [f"{one.name}={one.version}" if one.version else one.name for one in wanted]
        command = [*_APT, "install", "--no-install-recommends", "--allow-change-held-packages", "--allow-downgrades"]
        change = (
            change or "see whether the repository has these versions (apt-cache policy); cuda_version names another one"
        )
        told = run(*command, "--simulate", *names, change=change)
        gone, several = removed(told), versions(told)
        if len(several) > 1:
            raise FinetuneError(
                "The repository has no set of driver packages with one version.",
                where="; ".join(f"{version}: {', '.join(of)}" for version, of in several.items()),
                change="set cuda_source: nvidia, or cuda_branch to one whose packages agree",
            )
        if gone:
            raise FinetuneError(
                f"apt would remove {', '.join(gone)} for the driver.",
                where=" ".join(names),
                change="remove or update these packages first, then apply again",
            )
        run(*command, "--yes", *names, change=change, extra={"NEEDRESTART_MODE": "l"})

    def hold(self, names: t.Sequence[str]) -> None:
        run("apt-mark", "hold", *names)


_APT = ("apt-get", "-o", "DPkg::Lock::Timeout=600", "-q")
"""Unattended upgrades may hold the lock in a machine's first minutes."""


def parse_targets(text: str, suite: str) -> str:
    """The address of the first source that has the suite's main part: a mirror of this site, where it has one."""
    found = (line.split() for line in text.splitlines())
    return next((words[0] for words in found if words[1:] == [suite, "main"]), "")


def parse_dpkg(text: str) -> t.Tuple[t.Dict[str, str], t.FrozenSet[str]]:
    rows = [line.split() for line in text.splitlines()]
    there = [row for row in rows if len(row) == 3 and row[0][1:2] == "i"]
    return {name: version for _state, name, version in there}, frozenset(row[1] for row in there if row[0][0] == "h")


def removed(simulated: str) -> t.List[str]:
    """What apt would remove and is no part of a driver."""
    names = re.findall(r"^Remv (\S+)", simulated, re.MULTILINE)
    return [name for name in names if not sets.DRIVERS.fullmatch(name) and "nvidia" not in name]


_ONE_VERSION = re.compile(
    r"nvidia-(?:utils|headless|compute-utils|fabricmanager|imex|dkms|driver-cuda|smi)\b.*"
    r"|nvidia-(?:open-)?kernel-(?:open-)?dkms|libnvidia-compute\b.*|libcuda1"
)


def versions(simulated: str) -> t.Dict[str, t.List[str]]:
    """The driver's parts that apt would install, by their version. A name of one branch may be an empty package that
    depends on the next branch's."""
    found: t.Dict[str, t.List[str]] = {}
    for name, there in re.findall(r"^Inst (\S+) (?:\[\S+\] )?\((\S+)", simulated, re.MULTILINE):
        if _ONE_VERSION.fullmatch(name):
            found.setdefault(there.rpartition(":")[2].partition("-")[0], []).append(name)
    return found


class Dnf:
    def installed(self) -> t.Tuple[t.Dict[str, str], t.FrozenSet[str]]:
        form = "%{NAME} %{VERSION}-%{RELEASE} %{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}\n"
        there = parse_rpm(quiet("rpm", "-qa", "--qf", form))
        locked = _HELD_DNF.read_text(encoding="utf-8") if _HELD_DNF.exists() else ""
        return there, locks(locked, there)

    def stream(self) -> str:
        parser = configparser.ConfigParser()
        parser.read(_STREAM, encoding="utf-8")
        on = parser.get("nvidia-driver", "state", fallback="") == "enabled"
        return parser.get("nvidia-driver", "stream", fallback="") if on else ""

    def sources(self, part: str) -> t.Tuple[str, ...]:
        return _naming(Path("/etc/yum.repos.d"), part)

    def archive(self, suite: str) -> str:
        return ""

    def refresh(self) -> None: ...

    def enable(self, stream: str) -> None:
        run(*_DNF, "module", "reset", "nvidia-driver")
        run(*_DNF, "module", "enable", f"nvidia-driver:{stream}")

    def install(self, wanted: t.Sequence[Package], change: str = "") -> None:
        """Versions are named, so that it is all of them or none."""
        names = [one.place or (f"{one.name}-{one.version[:-2]}" if one.version else one.name) for one in wanted]
        change = (
            change
            or "see whether the repository has these versions (dnf list --showduplicates); cuda_version names another"
        )
        locked = [one.name for one in wanted if one.name in self.installed()[1]]
        if locked:
            run(*_DNF, "versionlock", "delete", *locked)
        run(*_DNF, "install", "--setopt=install_weak_deps=False", "--allowerasing", *names, change=change)

    def hold(self, names: t.Sequence[str]) -> None:
        run(*_DNF, "versionlock", "add", *names)


_DNF = ("dnf", "-y", "-q")


def parse_rpm(text: str) -> t.Dict[str, str]:
    """Also by full names: of a kernel's headers there are several versions."""
    rows = [line.split() for line in text.splitlines()]
    return {name: row[1] for row in rows if len(row) == 3 for name in (row[0], row[2])}


def locks(text: str, packages: t.Iterable[str]) -> t.FrozenSet[str]:
    """Installed packages that a line of versionlock's list is for: name-epoch:version-release.arch."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("#", "!"))]
    names = {re.sub(r"-(?:\d+:)?[^-]+-[^-]+$", "", line) for line in lines}
    return frozenset(name for name in packages if name in names)
