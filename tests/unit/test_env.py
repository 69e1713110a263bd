# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where an environment lies, and what damage looks like."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import typing as t
from dataclasses import dataclass
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _env
from ansible_collections.llmops.finetune.plugins.module_utils._engine import files


def test_path() -> None:
    assert _env.environment_path("/srv/llmops/", "0123") == "/srv/llmops/envs/0123"


@pytest.mark.parametrize(
    ("installed", "locked", "same"),
    [
        ("1.0", "1.0", True),
        ("1.0.0", "1", True),
        ("2024.1.2", "2024.01.02", True),
        ("1.0rc1", "1.0.rc1", True),
        ("2.8.0+cu128", "2.8.0", True),
        ("2.8.0", "2.8.0+cu128", False),
        ("2.8.0+cu126", "2.8.0+cu128", False),
        ("1.10", "1.1", False),
        ("1.0.post1", "1.0", False),
        ("1.0rc1", "1.0", False),
    ],
)
def test_same_version(installed: str, locked: str, same: bool) -> None:
    assert _env.same_version(installed, locked) is same


def install(site: Path, name: str, version: str, files: dict[str, bytes]) -> None:
    """Lay a package out as an installer does."""
    info = f"{name}-{version}.dist-info"
    contents = {**files, f"{info}/METADATA": b"Name: x\n"}
    rows = []
    for path, content in contents.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.append(
            f'"{path}",sha256={digest},{len(content)}' if "," in path else f"{path},sha256={digest},{len(content)}"
        )
    rows += [f"{name}/__pycache__/x.cpython-311.pyc,,", f"{info}/RECORD,,"]
    (site / info / "RECORD").write_text("\n".join(rows) + "\n")


WANTED = {"one-two": "1.0", "three": "3.0"}


def install_all(place: Path) -> None:
    install(
        place, "one_two", "1.0", {"one_two/a.py": b"a = 1\n", "one_two/b,c.py": b"b = 1\n", "../../bin/one": b"#!x\n"}
    )
    install(place, "three", "3.0", {"three.py": b"three = 3\n"})


@pytest.fixture
def site(tmp_path: Path) -> Path:
    place = tmp_path / "lib" / "site-packages"
    install_all(place)
    return place


def test_intact(site: Path) -> None:
    found = _env.inspect(str(site), WANTED, {})
    assert (found.damages, found.packages, sorted(found.seals)) == ([], WANTED, ["one-two", "three"])


def remove_info(site: Path) -> None:
    for path in (site / "three-3.0.dist-info").iterdir():
        path.unlink()
    (site / "three-3.0.dist-info").rmdir()


def other_version(site: Path) -> None:
    (site / "three-3.0.dist-info").rename(site / "three-3.1.dist-info")


DAMAGES: list[tuple[t.Callable[[Path], object], str, str, bool]] = [
    (remove_info, "missing", "three 3.0 is not installed", False),
    (other_version, "version", "3.1 is installed, the lock has 3.0", False),
    (lambda s: install(s, "three", "2.0", {}), "version", "2.0 and 3.0 is installed", False),
    (lambda s: install(s, "four", "4.0", {}), "extra", "four 4.0 is installed but not in the lock", False),
    (lambda s: (s / "one_two" / "b,c.py").unlink(), "files", "one_two/b,c.py is missing", False),
    (lambda s: (s / "../../bin/one").unlink(), "files", "../../bin/one is missing", False),
    (lambda s: os.truncate(s / "three.py", 3), "files", "three.py has 3 bytes instead of 10", True),
    (lambda s: (s / "three.py").write_bytes(b"three = 4\n"), "files", "three.py was changed", True),
    (lambda s: (s / "three-3.0.dist-info/RECORD").write_text("three.py,,\n"), "files", "RECORD was changed", True),
    (lambda s: (s / "three-3.0.dist-info/RECORD").unlink(), "files", "RECORD is missing", True),
]


@pytest.mark.parametrize(("break_it", "kind", "says", "poisoned"), DAMAGES)
def test_damage_is_seen_and_named(
    site: Path, break_it: t.Callable[[Path], object], kind: str, says: str, poisoned: bool
) -> None:
    seals = _env.inspect(str(site), WANTED, {}).seals
    break_it(site)
    contents: tuple[_env.Content, ...] = ("unsealed", "all")
    for content in contents:
        damages = _env.inspect(str(site), WANTED, seals, content).damages
        assert [(damage.kind, damage.poisoned) for damage in damages] == [(kind, poisoned)]
        assert says in damages[0].sentence()


def test_damage_becomes_a_change() -> None:
    changes = [_env.Damage(kind, "x", "1", "").change("/e") for kind in ("missing", "extra", "version", "files")]
    assert [change["action"] for change in changes] == ["create", "remove", "update", "update"]
    assert changes[0]["path"] == "/e: x 1"


def test_a_touched_file_is_read_and_found_right(site: Path) -> None:
    seals = _env.inspect(str(site), WANTED, {}).seals
    os.utime(site / "three.py", (1, 1))
    found = _env.inspect(str(site), WANTED, seals)
    assert found.damages == []
    assert found.seals["three"] != seals["three"]


def test_content_is_read_only_when_the_seal_is_broken(site: Path) -> None:
    """A change that keeps size and time is what reading everything is for."""
    seals = _env.inspect(str(site), WANTED, {}).seals
    stat = (site / "three.py").stat()
    (site / "three.py").write_bytes(b"three = 4\n")
    os.utime(site / "three.py", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert _env.inspect(str(site), WANTED, seals).damages == []
    assert _env.inspect(str(site), WANTED, {}, "none").damages == []
    readings: tuple[tuple[dict[str, dict[str, str]], _env.Content], ...] = ((seals, "all"), ({}, "unsealed"))
    for known, content in readings:
        found = _env.inspect(str(site), WANTED, known, content)
        assert [damage.sentence() for damage in found.damages] == ["three 3.0: three.py was changed"]
        assert "three" not in found.seals


@dataclass
class Environment:
    root: Path
    site: Path

    @property
    def path(self) -> Path:
        return Path(_env.environment_path(str(self.root), "d1"))

    @property
    def untouched(self) -> bool:
        return _env.untouched(str(self.root), "d1")

    def mark(self, **changed: t.Any) -> None:
        mark = {
            "format": _env.FORMAT,
            "digest": "d1",
            "python": str(self.root / "python"),
            "python_version": "3.11.2",
            "pyvenv": files.sha256(self.path / "pyvenv.cfg"),
            "seals": _env.inspect(str(self.site), WANTED, {}).seals,
        }
        files.write_json(self.path / _env.MARK, {**mark, **changed})


@pytest.fixture
def built(tmp_path: Path) -> Environment:
    """As a build leaves it."""
    path = Path(_env.environment_path(str(tmp_path), "d1"))
    environment = Environment(tmp_path, Path(_env.site_packages(str(path), (3, 11))))
    install_all(environment.site)
    (path / "bin").mkdir()
    for python in (tmp_path / "python", path / "bin" / "python"):
        python.touch(0o755)
    (path / "pyvenv.cfg").write_text("home = /usr/bin\n")
    environment.mark()
    return environment


def test_an_environment_is_untouched_as_its_build_left_it(built: Environment) -> None:
    assert built.untouched
    (built.site / "one_two" / "__pycache__").mkdir()
    (built.site / "one_two" / "__pycache__" / "a.cpython-311.pyc").touch()
    assert built.untouched, "Python writes these when ranks run"


@pytest.mark.parametrize("break_it", [damage[0] for damage in DAMAGES])
def test_it_is_not_with_any_damage(built: Environment, break_it: t.Callable[[Path], object]) -> None:
    break_it(built.site)
    assert not built.untouched


@pytest.mark.parametrize(
    "break_it",
    [
        lambda e: shutil.rmtree(e.path),
        lambda e: (e.path / _env.MARK).unlink(),
        lambda e: (e.path / _env.MARK).write_text("{}"),
        lambda e: e.mark(format=0),
        lambda e: e.mark(digest="d2"),
        lambda e: e.mark(python_version="x"),
        lambda e: e.mark(seals={}),
        lambda e: (e.root / "python").unlink(),
        lambda e: (e.path / "bin/python").chmod(0o644),
        lambda e: (e.path / "pyvenv.cfg").write_text("home = /elsewhere\n"),
        lambda e: (e.path / "pyvenv.cfg").unlink(),
        lambda e: e.site.rename(e.site.with_name("moved")),
        lambda e: os.utime(e.site / "three.py", (1, 1)),
    ],
)
def test_nor_where_its_build_would_not_be_trusted(
    built: Environment, break_it: t.Callable[[Environment], object]
) -> None:
    break_it(built)
    assert not built.untouched
