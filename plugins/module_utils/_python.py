# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Python on a node that carries an environment: where it may be, what it says of itself, whether it fits."""

from __future__ import annotations

import json
import os
import subprocess
import typing as t

from . import _lock
from ._errors import FinetuneError

MIN, MAX = _lock.PYTHONS[0], _lock.PYTHONS[-1]
NAMES = ("python3.11", "python3.12", "python3.13", "python3")

_REMEDY = (
    "install one (Debian, Ubuntu: apt install python3.11 python3.11-venv) or name one with uv_env_python "
    "(versions 3.11 to 3.13)"
)

PROBE = """
import json, os, platform, sys, sysconfig
print(json.dumps({
    "version": list(sys.version_info[:3]), "implementation": platform.python_implementation(),
    "in_venv": sys.prefix != sys.base_prefix, "base": getattr(sys, "_base_executable", "") or sys.executable,
    "platform": sysconfig.get_platform(), "include": sysconfig.get_paths()["include"],
    "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    "libc": os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else "",
}))
"""
"""Asked of a candidate interpreter; answers the facts that `judge` wants."""


def find(asked: str, user: str, home: str) -> tuple[str, dict[str, t.Any]]:
    """(real path, facts) of the Python to build on; a Python inside a venv stands for the one under it."""
    tried: dict[str, str] = {}
    for candidate in [asked] if asked else candidates(os.environ.get("PATH", ""), home):
        path = candidate
        if not os.path.isfile(path):
            if asked:
                tried[path] = "no file that this user can reach"
            continue
        facts = _ask(path)
        if facts and facts["in_venv"]:
            path = facts["base"]
            facts = _ask(path)
        why = judge(facts) if facts else "cannot be run"
        if not why:
            return os.path.realpath(path), facts
        tried[candidate] = why
    raise refusal(tried, asked, user)


def candidates(path: str, home: str) -> list[str]:
    """Where a Python may be, best first: by version, then /usr/bin, /usr/local/bin, the PATH, the user's own."""
    folders = ["/usr/bin", "/usr/local/bin", *path.split(os.pathsep), f"{home}/.local/bin"]
    folders = list(dict.fromkeys(folder.rstrip("/") for folder in folders if folder.startswith("/")))
    return [f"{folder}/{name}" for name in NAMES for folder in folders]


def judge(facts: t.Mapping[str, t.Any]) -> str:
    """Why this interpreter cannot carry an environment; "" when it can."""
    version = ".".join(str(part) for part in facts["version"])
    if facts["implementation"] != "CPython":
        return f"{facts['implementation']}, not CPython"
    if not MIN <= tuple(facts["version"][:2]) <= MAX:
        return f"Python {version}"
    if facts["free_threaded"]:
        return f"Python {version} without the GIL"
    if facts["platform"] != "linux-x86_64":
        return f"built for {facts['platform']}"
    return ""


def refusal(tried: t.Mapping[str, str], asked: str, user: str) -> FinetuneError:
    """The refusal when no Python fits. tried: {path: why not}."""
    seen = "; ".join(f"{path}: {why}" for path, why in tried.items()) or "none was found"
    what = (
        f"{asked} cannot carry the environment." if asked else "This node has no Python that can carry the environment."
    )
    return FinetuneError(what, where=f"tried as {user}: {seen}", change=_REMEDY)


def _ask(path: str) -> dict[str, t.Any]:
    """What an interpreter says of itself; empty when it cannot be run."""
    try:
        done = subprocess.run(
            [path, "-I", "-B", "-c", PROBE], capture_output=True, text=True, check=False, timeout=30, cwd="/"
        )
        return dict(json.loads(done.stdout)) if done.returncode == 0 else {}
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return {}
