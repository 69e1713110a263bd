# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a machine lacks is named at once, before anything is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ..conftest import REPOSITORY

DOCTOR = REPOSITORY / "scripts" / "doctor.sh"


class Machine:
    """A PATH that has only what a test puts there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        for tool in ("sh", "uname", "df", "awk", "cut", "sed"):
            self.link(tool)

    def link(self, tool: str) -> None:
        real = shutil.which(tool)
        assert real, tool
        (self.path / tool).symlink_to(real)

    def stub(self, name: str, text: str) -> Path:
        path = self.path / name
        path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        path.chmod(0o755)
        return path

    def python(self, name: str, version: str, venv: bool = True) -> Path:
        """A stand-in that answers the questions of the doctor as a Python of this version would."""
        old = int(tuple(int(part) for part in version.split(".")[:2]) < (3, 11))
        return self.stub(
            name,
            f'case "$2" in *version_info*) exit {old} ;; *ensurepip*) exit {int(not venv)} ;; '
            f"*python_version*) echo {version} ;; esac",
        )

    def doctor(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.path / "sh"), str(DOCTOR), *arguments],
            cwd=self.path,
            env={"PATH": str(self.path), **environment},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "with a blank")


@pytest.fixture
def complete(machine: Machine) -> Machine:
    machine.stub("git", "exit 0")
    machine.stub("make", "exit 0")
    machine.python("python3", "3.11.2")
    return machine


def test_a_complete_machine_is_told_nothing(complete: Machine) -> None:
    done = complete.doctor()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_everything_is_named_at_once(machine: Machine) -> None:
    machine.python("python3", "3.10.12")
    done = machine.doctor("999999")
    assert done.returncode == 1
    for said in ("git:", "make:", "Python 3.11 or newer: python3 is version 3.10.12", "999999 GB of free disk"):
        assert said in done.stderr
    assert done.stderr.endswith("sudo apt install git make python3.11-venv\n")


@pytest.mark.parametrize("tool", ["git", "make"])
def test_a_missing_tool_is_named(complete: Machine, tool: str) -> None:
    (complete.path / tool).unlink()
    done = complete.doctor()
    assert done.returncode == 1
    assert done.stderr.endswith(f"sudo apt install {tool}\n")


def test_python_without_ensurepip_asks_for_its_own_package(complete: Machine) -> None:
    complete.python("python3", "3.12.3", venv=False)
    done = complete.doctor()
    assert done.returncode == 1
    assert f"{complete.path}/python3 has none" in done.stderr
    assert done.stderr.endswith("sudo apt install python3.12-venv\n")


def test_no_python_at_all(complete: Machine) -> None:
    (complete.path / "python3").unlink()
    done = complete.doctor()
    assert done.returncode == 1
    assert "Python 3.11 or newer: python3 is version none" in done.stderr


@pytest.mark.parametrize(
    ("pythons", "chosen"),
    [
        ({"python3": ("3.13.1", True), "python3.11": ("3.11.2", True)}, "python3"),
        ({"python3": ("3.10.12", True), "python3.11": ("3.11.2", True)}, "python3.11"),
        ({"python3": ("3.12.3", False), "python3.11": ("3.11.2", True)}, "python3.11"),
        ({"python3": ("3.10.12", True), "python3.13": ("3.13.0", False), "python3.12": ("3.12.1", True)}, "python3.12"),
    ],
)
def test_the_first_python_that_serves_is_chosen(
    machine: Machine, pythons: dict[str, tuple[str, bool]], chosen: str
) -> None:
    for name, (version, venv) in pythons.items():
        machine.python(name, version, venv)
    assert machine.doctor("--python").stdout == f"{machine.path}/{chosen}\n"


@pytest.mark.parametrize(
    ("version", "venv", "said"),
    [("3.9.1", True, "is version 3.9.1\n"), ("3.12.1", False, "is version 3.12.1 without them\n")],
)
def test_a_given_python_is_judged_alone(complete: Machine, version: str, venv: bool, said: str) -> None:
    given = complete.python("my python", version, venv)
    done = complete.doctor(PYTHON=str(given))
    assert done.returncode == 1
    assert f"PYTHON={given} {said}" in done.stderr


def test_a_given_python_that_serves_is_taken(complete: Machine) -> None:
    given = complete.python("my python", "3.13.0")
    assert complete.doctor(PYTHON=str(given)).returncode == 0
    assert complete.doctor("--python", PYTHON=str(given)).stdout == f"{given}\n"


def test_the_python_of_the_environment_comes_first(machine: Machine, tmp_path: Path) -> None:
    machine.python("python3", "3.11.2")
    (tmp_path / "elsewhere").mkdir()
    kept = machine.python("../elsewhere/python3.12", "3.12.3")
    (machine.path / ".venv").mkdir()
    (machine.path / ".venv" / "pyvenv.cfg").write_text(f"home = x\nexecutable = {kept}\n", encoding="utf-8")
    assert machine.doctor("--python").stdout == f"{kept}\n"
    kept.unlink()
    assert machine.doctor("--python").stdout == f"{machine.path}/python3\n"


def test_another_platform_is_refused(complete: Machine) -> None:
    (complete.path / "uname").unlink()
    complete.stub("uname", '[ "$1" = -s ] && echo Darwin || echo arm64')
    done = complete.doctor()
    assert done.returncode == 1
    assert "Linux on x86-64: the locks have no packages for Darwin arm64" in done.stderr
