# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ansible-test sanity on a copy of the tree, in a folder that is named as a collection's."""

from __future__ import annotations

import re
import subprocess
import sys
import typing as t
from dataclasses import dataclass
from pathlib import Path

import ansible_test

from ..conftest import REPOSITORY

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

# ansible-test downloads a script that brings pip into its environments. This one does the same from a wheel beside it.
BOOTSTRAP = """\
import os, sys
wheel = os.path.join(os.path.dirname(os.path.abspath(os.environ["GET_PIP"])), "{wheel}")
sys.path.insert(0, wheel)
from pip._internal.cli.main import main
options = [a for a in sys.argv[1:] if a not in ("--no-setuptools", "--no-wheel")]
sys.exit(main(["install", *[wheel if a.startswith("pip==") else a for a in options]]))
"""


@dataclass
class Report:
    """What ansible-test said."""

    rc: int
    text: str

    @property
    def ran(self) -> set[str]:
        """Names of the sanity tests that were run."""
        return set(re.findall(r'^Running sanity test "([^"]+)"', self.text, re.MULTILINE))

    @property
    def errors(self) -> list[str]:
        return re.findall(r"^(?:ERROR|FATAL): (.+)", self.text, re.MULTILINE)

    @property
    def warnings(self) -> list[str]:
        return [line for line in re.findall(r"^WARNING: (.+)", self.text, re.MULTILINE) if "locale" not in line]


def prepare(home: Path) -> None:
    """Put pip, and the script that installs it, where ansible-test looks before it downloads."""
    source = Path(ansible_test.__file__).parent / "_internal" / "python_requirements.py"
    version = re.findall(r"\bpip='([\d.]+)'", source.read_text())[0]
    cache = home / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    wheel = cache / f"pip-{version}-py3-none-any.whl"
    if not wheel.exists():
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache)]
        subprocess.run([*download, f"pip=={version}"], check=True)
    (cache / f"get_pip_{version.replace('.', '_')}.py").write_text(BOOTSTRAP.format(wheel=wheel.name))
    settings = Path.home() / ".config" / "pip"  # a site's own index
    if settings.is_dir() and not (home / ".config" / "pip").exists():
        (home / ".config").mkdir(exist_ok=True)
        (home / ".config" / "pip").symlink_to(settings)


def run(copy_tree: t.Callable[[Path], Path], folder: Path, *, without: t.Sequence[str] = ()) -> Report:
    """without: folders whose files are not looked at."""
    tree = copy_tree(folder / "ansible_collections" / "llmops" / "finetune")
    subprocess.run(["git", "init", "--quiet"], cwd=tree, check=True)
    subprocess.run(["git", "add", "--all"], cwd=tree, check=True)
    home = REPOSITORY / ".cache" / "sanity"
    prepare(home)
    done = subprocess.run(
        [
            sys.executable,
            str(Path(sys.executable).parent / "ansible-test"),
            "sanity",
            "--local",
            "--python",
            PYTHON,
            "--color",
            "no",
            *(f"--exclude={name}/" for name in without),
        ],
        cwd=tree,
        env={
            "HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "LC_ALL": "C.UTF-8",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return Report(done.returncode, done.stdout)
