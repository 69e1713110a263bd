# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What decisions are made from, and what they are. Pure."""

from __future__ import annotations

import fnmatch
import typing as t
from dataclasses import dataclass, field

from .._gpu.card import Problem
from .._gpu.pci import Card


@dataclass(frozen=True)
class Facts:
    """A node as it is. cards: NVIDIA's GPUs on its bus. kernels: those installed, oldest first. product: what the
    hypervisor calls the machine. packages: versions by name. loaded: version of the kernel module. driver: what
    nvidia-smi tells; empty where it does not answer. problems: of the GPUs. sources: files of package sources that name
    NVIDIA's repository. archive: where Debian's own packages come from; empty where that is not asked. record: what
    this role did here. held: packages that are not upgraded."""

    system: str
    version: str
    machine: str = "x86_64"
    kernel: str = ""
    kernels: t.Tuple[str, ...] = ()
    compiler: str = ""
    cards: t.Tuple[Card, ...] = ()
    switches: int = 0
    product: str = ""
    secure_boot: bool = False
    container: bool = False
    packages: t.Mapping[str, str] = field(default_factory=dict)
    held: t.FrozenSet[str] = frozenset()
    stream: str = ""
    loaded: str = ""
    driver: str = ""
    problems: t.Tuple[Problem, ...] = ()
    sources: t.Tuple[str, ...] = ()
    archive: str = ""
    efa: int = 0
    efa_installed: str = ""
    uuids: t.Tuple[str, ...] = ()
    boot: str = ""
    month: str = ""
    record: t.Mapping[str, t.Any] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """Of the instance type: g5 of g5.xlarge."""
        return self.product.partition(".")[0]

    @property
    def newer_kernel(self) -> str:
        """That which the next boot would take instead of the running one; empty for none."""
        return self.kernels[-1] if self.kernels and self.kernel in self.kernels[:-1] else ""


@dataclass(frozen=True)
class Wish:
    """What was asked for; empty and 0 leave it open."""

    branch: int = 0
    version: str = ""
    source: str = ""
    flavour: str = ""
    gsp: bool = True
    hold: str = "driver_and_kernel"
    toolkit: str = ""
    container_toolkit: bool = False
    efa: bool = False
    efa_version: str = ""
    efa_digest: str = ""
    gdrcopy: bool = False
    key_enrolled: bool = False
    install: bool = True
    repository: str = ""
    container_repository: str = ""
    pin: str = ""


class Package(t.NamedTuple):
    """version: a pattern of the version without its epoch; empty for any. place: an address to install it from."""

    name: str
    version: str = ""
    place: str = ""

    def is_in(self, packages: t.Mapping[str, str]) -> bool:
        there = packages.get(self.name)
        return there is not None and fits(there, self.version)

    def __str__(self) -> str:
        return f"{self.name} {self.version}".rstrip().rstrip("-*").rstrip(".")


def fits(there: str, pattern: str) -> bool:
    return not pattern or fnmatch.fnmatchcase(there.partition(":")[2] or there, pattern)


class Repository(t.NamedTuple):
    """path: its file on the node, with `text`. key: where the key is fetched from, `key_path` where it is put."""

    path: str
    text: str
    key: str
    key_path: str
    pin: str


@dataclass
class Plan:
    """state: `none` without GPUs, `kept` for a driver that is left alone, `managed` for one of this role's.

    tools: packages that come first. packages: one set. files: contents by path, of which `early` are in the image that
    boots. efa: version of the installer that is to run, with its address and digest. services: to be enabled, and to
    run once the driver is loaded."""

    state: str
    lines: t.List[str] = field(default_factory=list)
    driver: str = ""
    branch: int = 0
    flavour: str = ""
    source: str = ""
    repositories: t.List[Repository] = field(default_factory=list)
    stream: str = ""
    tools: t.List[Package] = field(default_factory=list)
    packages: t.List[Package] = field(default_factory=list)
    extras: t.List[Package] = field(default_factory=list)
    hold: t.List[str] = field(default_factory=list)
    files: t.Dict[str, str] = field(default_factory=dict)
    early: t.List[str] = field(default_factory=list)
    services: t.List[str] = field(default_factory=list)
    efa: str = ""
    efa_source: t.Tuple[str, str] = ("", "")
    notes: t.List[str] = field(default_factory=list)
