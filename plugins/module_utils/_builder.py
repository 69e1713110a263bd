# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes and repairs one environment. Whoever calls holds its lock and is its owner."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import typing as t
from dataclasses import dataclass, replace
from pathlib import Path

from . import _env, _lock, _uv
from ._engine import files
from ._errors import FinetuneError

IMPORT_PROBE = """\
import importlib, os, sys
os.environ["TORCH_WARM_POOL"] = "0"  # else torch starts processes that compile
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


@dataclass(frozen=True)
class Wanted:
    """An environment that is asked for. lock, constraints: the text of each; constraints is empty for none."""

    path: str
    digest: str
    name: str
    lock: str
    constraints: str
    imports: tuple[str, ...]
    find_links: str
    offline: bool


class Builder:
    def __init__(self, wanted: Wanted, uv: _uv.Uv) -> None:
        self.wanted, self.uv, self.path = wanted, uv, wanted.path

    def clear(self) -> None:
        """Remove what is at the path, the mark first."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(f"{self.path}/{_env.MARK}")
        if os.path.islink(self.path) or os.path.isfile(self.path):
            os.unlink(self.path)
        elif os.path.isdir(self.path):
            shutil.rmtree(self.path)

    def build(self, python: str, facts: t.Mapping[str, t.Any], packages: dict[str, str]) -> dict[str, t.Any]:
        """Make the environment from nothing, in its final path; returns its mark, which comes last."""
        started = time.monotonic()
        self.clear()
        self.uv.run(_uv.venv_arguments(self.path, python), self.wanted.name)
        mark = {
            "format": _env.FORMAT,
            "lock": self.wanted.name,
            "digest": self.wanted.digest,
            "python": python,
            "python_version": ".".join(str(part) for part in facts["version"]),
            "include": facts["include"],
            "uv": self.uv.shipped["version"],
            "pyvenv": files.sha256(Path(f"{self.path}/pyvenv.cfg")),
            "packages": packages,
            "seals": {},
        }
        self._sync(mark, [])
        mark["seconds"] = round(time.monotonic() - started, 1)
        self.seal(mark)
        return mark

    def repair(self, mark: dict[str, t.Any], damages: list[_env.Damage]) -> dict[str, t.Any]:
        """Install only what is damaged again. The mark stays: what a killed repair leaves is seen by the next look."""
        self._sync(mark, damages)
        self.seal(mark)
        return mark

    def seal(self, mark: dict[str, t.Any]) -> None:
        """Write the mark."""
        files.write_json(Path(self.path) / _env.MARK, mark)

    def _sync(self, mark: dict[str, t.Any], damages: list[_env.Damage]) -> None:
        """Bring site-packages to the lock and prove it by content and by imports; sets the mark's seals.

        A file that was damaged in one environment is damaged in the cache too, as both are one file. So a package that
        is still wrong after its installation is taken out of the cache and fetched again, once. What is fetched now,
        into an empty cache, uv has just compared with the lock's hashes: it is not read a second time.
        """
        site = _env.site_packages(self.path, mark["python_version"].split("."))
        lock, constraints = self._write("lock.txt", self.wanted.lock), self._write("build.txt", self.wanted.constraints)
        for _attempt in range(2):
            content: _env.Content = "unsealed" if self.uv.warm else "none"
            self._forget(site, mark, damages)
            arguments = _uv.sync_arguments(
                self.path,
                lock,
                constraints=constraints,
                reinstall=[damage.name for damage in damages if damage.kind == "version"],
                find_links=self.wanted.find_links,
                offline=self.wanted.offline,
            )
            self.uv.run(arguments, self.wanted.name)
            found = _env.inspect(site, mark["packages"], mark["seals"], content)
            damages = [replace(damage, poisoned=True) for damage in found.damages]
            if not damages:
                break
        else:
            raise FinetuneError(
                f"What uv installed is not what the lock says: {_env.sentence(damages)}.",
                where=self.path,
                change="check the disk and what the index serves (uv_env_index_url, uv_env_find_links)",
            )
        self._import()
        mark["seals"] = found.seals

    def _write(self, name: str, text: str) -> str:
        """The path of a file in the environment that holds the text; "" for no text."""
        path = Path(self.path) / name
        if text:
            path.write_text(text, encoding="utf-8")
        return str(path) if text else ""

    def _forget(self, site: str, mark: dict[str, t.Any], damages: list[_env.Damage]) -> None:
        """Let uv see damaged packages as missing, and its cache not know them."""
        poisoned = [damage.name for damage in damages if damage.poisoned and damage.kind != "extra"]
        if poisoned:
            self.uv.run(["cache", "clean", "--force", *poisoned], self.wanted.name)
        names = {damage.name for damage in damages}
        mark["seals"] = {name: seal for name, seal in mark["seals"].items() if name not in names}
        broken = {damage.name for damage in damages if damage.kind == "files" or damage.poisoned}
        for entry in os.listdir(site):
            if entry.endswith(".dist-info") and _lock.normalise(entry.partition("-")[0]) in broken:
                shutil.rmtree(f"{site}/{entry}")

    def _import(self) -> None:
        """Prove that the asked modules import."""
        if not self.wanted.imports:
            return
        done = self.uv.process([f"{self.path}/bin/python", "-I", "-c", IMPORT_PROBE, *self.wanted.imports], self.path)
        if done.returncode != 0:
            tail = " | ".join(done.stderr.strip().splitlines()[-3:]) or f"exit status {done.returncode}"
            raise FinetuneError(
                f"The environment is installed but does not import {', '.join(self.wanted.imports)}: {tail}",
                where=self.path,
                change="correct uv_env_imports, or name another lock with uv_env_lock",
            )
