# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node of a Ray cluster on its host: a systemd unit where root may make one, else a detached process.

With `changes.dry` nothing is written and the same list comes out.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
import typing as t
from pathlib import Path

from . import _ray, _unit, _user
from ._changes import Changes
from ._engine import files, logs
from ._errors import FinetuneError

LOG, LOCK, LEADER = "node.log", "node.lock", "leader.json"
STARTED = "Ray runtime started"
START_SECONDS = 120.0
END_SECONDS = 45.0
"""Ray gives work that runs on a node 30 s to end."""

Spec = dict[str, t.Any]
Answer = dict[str, t.Any]


def present(spec: Spec, token: str, changes: Changes) -> str:
    """Be the node that `spec` describes; returns its token. token: of the cluster; a head without one makes it."""
    folder = Path(spec["folder"])
    if spec["systemd"]:
        _refuse_other(folder)
    seen = _user.as_user(spec["user"], lambda: _look(folder, spec, token), dry=changes.dry)
    unit = spec["systemd"] and _unit.read(_ray.NAME) != spec["unit"]
    alive = _unit.running(_ray.NAME) if spec["systemd"] else seen["running"]
    for path in seen["stale"]:
        changes.add("update" if seen["there"] else "create", folder / path)
    if unit:
        changes.add("update" if _unit.path(_ray.NAME).exists() else "create", _unit.path(_ray.NAME))
    if not alive or changes.made:
        changes.add("restart" if alive else "start", folder)
    if changes.made and not changes.dry:
        seen = _user.as_user(spec["user"], lambda: _write(folder, spec, token))
        _start(spec, folder)
    return str(seen["token"])


def absent(spec: Spec, changes: Changes) -> None:
    """No process, no unit, no folder."""
    folder = Path(spec["folder"])
    unit = os.geteuid() == 0 and _unit.installed(_ray.NAME, str(folder))
    if unit and changes.add("remove", _unit.path(_ray.NAME)):
        _unit.remove(_ray.NAME, str(folder))

    def remove() -> Answer:
        if folder.exists() and changes.add("remove", folder):
            _end(folder)
            shutil.rmtree(folder)
        return {"made": changes.made}

    if _user.exists(spec["user"]):
        changes.made = _user.as_user(spec["user"], remove, dry=changes.dry)["made"]


def _look(folder: Path, spec: Spec, token: str) -> Answer:
    """What of the node is there. stale: files that are not as wanted."""
    known = _token(folder)
    running = files.locked(folder / LOCK)
    had = _text(folder / _ray.LAUNCH)
    ours = (running or (spec["systemd"] and _unit.running(_ray.NAME))) and f'"--port={spec["port"]}"' in had
    if spec["head"] and not ours:
        _refuse_port(spec["address"], spec["port"])
    stale = [name for name, text in spec["files"].items() if _text(folder / name) != text]
    if not known or (known != token and not spec["head"]):
        stale.append(_ray.TOKEN)
    return {"token": known, "running": running, "stale": stale, "there": folder.exists()}


def _write(folder: Path, spec: Spec, token: str) -> Answer:
    """Put the files in place; only the account may read the token."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    known = _token(folder)
    wanted = (known or secrets.token_hex(32)) if spec["head"] else token
    if known != wanted:
        _replace(folder / _ray.TOKEN, wanted, 0o600)
    for name, text in spec["files"].items():
        _replace(folder / name, text, 0o644)
    return {"token": wanted}


def _token(folder: Path) -> str:
    """The token of the node; empty where there is none that is whole."""
    text = _text(folder / _ray.TOKEN)
    return text if re.fullmatch(r"[0-9a-f]{64}", text) else ""


def _replace(path: Path, text: str, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _start(spec: Spec, folder: Path) -> None:
    """Start or restart, and wait until Ray says that it began; what does not begin is taken down again."""

    def end() -> Answer:
        _end(folder)
        (folder / LOG).unlink(missing_ok=True)
        return {}

    if spec["systemd"]:
        _unit.stop(_ray.NAME)
    _user.as_user(spec["user"], end)
    if spec["systemd"]:
        _unit.start(_ray.NAME, spec["unit"], str(folder))
    else:
        _user.as_user(spec["user"], lambda: _spawn(spec, folder))
    deadline = time.monotonic() + START_SECONDS
    while STARTED not in _text(folder / LOG):
        alive = _unit.running(_ray.NAME) if spec["systemd"] else files.locked(folder / LOCK)
        if alive and time.monotonic() < deadline:
            time.sleep(0.2)
            continue
        last = [line[:200] for line in logs.ending(folder / LOG)]
        if spec["systemd"]:
            _unit.remove(_ray.NAME, str(folder))
        _user.as_user(spec["user"], lambda: {"ended": _end(folder)})
        raise FinetuneError(
            "Ray did not start." if not alive else f"Ray did not start within {START_SECONDS:.0f} s.",
            where="\n          ".join([str(folder / LOG), *last]),
            change="read that log; other nodes must reach the head on all ports",
        )


def _spawn(spec: Spec, folder: Path) -> Answer:
    """A session of its own, which outlives this module. It holds the lock as long as it lives."""
    lock = files.lock(folder / LOCK)
    if lock is None:
        raise FinetuneError("Another apply starts this node.", where=str(folder), change="wait for it")
    with open(folder / LOG, "ab") as log:
        child = subprocess.Popen(
            spec["command"],
            cwd=folder,
            env={"HOME": os.environ.get("HOME", "/"), **spec["environment"]},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=(lock,),
        )
    os.close(lock)
    files.write_json(folder / LEADER, {"pid": child.pid})
    return {}


def _end(folder: Path) -> int:
    """End the detached node: its leader, which ends the others, then what is left of its session."""
    leader = int(files.read_json(folder / LEADER).get("pid") or 0)
    ours = files.locked(folder / LOCK)
    if not leader or (not ours and Path(f"/proc/{leader}").exists()):  # the number is another process's by now
        return 0
    deadline = time.monotonic() + END_SECONDS
    if ours:
        with contextlib.suppress(ProcessLookupError):
            os.kill(leader, signal.SIGTERM)
    while files.locked(folder / LOCK) and time.monotonic() < deadline:
        time.sleep(0.1)
    while left := _session(leader):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline + 10:
            raise FinetuneError(
                f"Processes of Ray did not end: {', '.join(map(str, left))}.",
                where=str(folder),
                change="end them, and apply again",
            )
        time.sleep(0.1)
    (folder / LEADER).unlink(missing_ok=True)
    return leader


def _session(leader: int) -> list[int]:
    """Living processes of the session."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            state, _parent, _group, session = (
                [*_text(Path(f"/proc/{entry}/stat")).rpartition(")")[2].split(), *"Z000"]
            )[:4]
            if session == str(leader) and state != "Z":
                found.append(int(entry))
    return found


def _refuse_port(address: str, port: int) -> None:
    """A head on another cluster's port would talk to that one."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, port))
        except OSError as error:
            raise FinetuneError(
                f"Port {port} of this node cannot be used: {error.strerror}.",
                where="ray_port",
                change="end what listens there (another Ray: ray stop), or set another ray_port",
            ) from None


def _refuse_other(folder: Path) -> None:
    if _unit.path(_ray.NAME).exists() and not _unit.installed(_ray.NAME, str(folder)):
        raise FinetuneError(
            "This host is a Ray node of another folder already.",
            where=str(_unit.path(_ray.NAME)),
            change="remove that one with ray_state=absent and its ray_root, or set ray_root to it",
        )
