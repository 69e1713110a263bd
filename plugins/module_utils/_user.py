# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who the files and processes of a run belong to."""

from __future__ import annotations

import json
import os
import pwd
import traceback
import typing as t
from pathlib import Path

from ._errors import FinetuneError

DEFAULT_ACCOUNT = "llmops"
"""The account that root gives its runs to: ranks never run as root unless train_user says so."""

DEFAULT_HOME = "/var/lib/llmops"
"""Home of the default account; known before the account is there, so that check mode can name paths below it."""


def run_user(asked: str, login: str) -> str:
    """The user that ranks run as: the one asked for, else the login user, else (for root) the default account."""
    if asked:
        return asked
    return DEFAULT_ACCOUNT if login == "root" else login


def login() -> str:
    """The user that this process is."""
    return pwd.getpwuid(os.geteuid()).pw_name


def account(asked: str) -> str:
    """`run_user` on this node."""
    return run_user(asked, login())


def exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def lookup(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise FinetuneError(
            f"There is no user {name!r} on this node.",
            where="train_user",
            change="create the account or name another one",
        ) from None


def drop_to(name: str) -> None:
    """Become user `name` for the rest of this process; nothing to do when we already are that user.

    Only root can; anybody else gets a FinetuneError that says so.
    """
    account = lookup(name)
    if os.geteuid() == account.pw_uid:
        return
    if os.geteuid() != 0:
        raise FinetuneError(
            f"{login()!r} cannot act as user {name!r}.",
            where="train_user",
            change="let the login user become root (ansible_become=true), or set train_user to the login user",
        )
    os.setgroups(os.getgrouplist(name, account.pw_gid))
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    os.umask(0o022)
    os.environ.update(HOME=account.pw_dir, USER=name, LOGNAME=name)
    try:
        os.getcwd()
        os.stat(".")
    except OSError:
        os.chdir("/")


def as_user(name: str, work: t.Callable[[], dict[str, t.Any]], *, dry: bool = False) -> dict[str, t.Any]:
    """Do `work` as user `name` and return its result, which must be plain JSON.

    dry: it writes nothing, as in check mode, where the account may not be there yet; then it is done as who we are.

    Root does it in a child process: Ansible's own files, which only root can read, are needed again afterwards.
    """
    if (dry and not exists(name)) or os.geteuid() == lookup(name).pw_uid:
        return work()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # and never comes back: there must not be a second module
        code = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "w", encoding="utf-8") as pipe:
                pipe.write(_answer(name, work))
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        text = pipe.read()
    if os.waitpid(child, 0)[1] != 0:
        raise FinetuneError(
            f"The process that did the work as user {name!r} was killed.",
            change="see whether the node is out of memory; apply again",
        )
    answer = json.loads(text)
    if "refused" in answer:
        what, where, change = answer["refused"]
        raise FinetuneError(what, where=where, change=change)
    if "crash" in answer:
        raise RuntimeError(answer["crash"])
    return t.cast("dict[str, t.Any]", answer["result"])


def _answer(name: str, work: t.Callable[[], dict[str, t.Any]]) -> str:
    """JSON of what came of the work: result, refused or crash."""
    try:
        drop_to(name)
        return json.dumps({"result": work()})
    except FinetuneError as error:
        return json.dumps({"refused": [error.what, error.where, error.change]})
    except BaseException:
        return json.dumps({"crash": traceback.format_exc()})


def home(user: str) -> str:
    """The user's home; that of the default account is known before the account is there."""
    return DEFAULT_HOME if user == DEFAULT_ACCOUNT and not exists(user) else lookup(user).pw_dir


def expand(path: str, user: str) -> str:
    """`~` at the start of a path on the node means the home of the run's user."""
    return home(user) + path[1:] if path == "~" or path.startswith("~/") else path


def refuse_unusable(root: Path) -> None:
    """A root that is a file or in one, or that the account may not look into."""
    try:
        there = next(path for path in (root, *root.parents) if path.exists())
        if not there.is_dir():
            raise FinetuneError(f"{there} is no folder.", where="train_root", change="name a folder")
        next((root / "runs").glob("*"), None)
        (root / "runs").exists()
    except PermissionError as error:
        raise FinetuneError(
            f"{login()} may not look into {error.filename}.",
            where="train_root",
            change="choose a folder that the account may use, or let it in",
        ) from None
