# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a host cannot be worked on, from what ssh, sudo and the shell say: in words, and with what to change."""

from __future__ import annotations

import re
import stat
import typing as t
from pathlib import Path

from ..module_utils._errors import FinetuneError


class _Row(t.NamedTuple):
    pattern: str
    what: str
    where: str
    change: str
    ssh: bool = False
    """Said by ssh alone: the same words of a module mean something else."""


_CATALOGUE = (
    _Row(
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key verification failed",
        "{host} shows another host key than the one that is known, or one that is not known.",
        "known_hosts of this controller",
        "if the host was made anew: ssh-keygen -R {address}; else find out who answers there",
        ssh=True,
    ),
    _Row(
        r"Permission denied|Too many authentication failures|no mutual signature",
        "{host} does not let {user} in with this key.",
        "ansible_user and ansible_ssh_private_key_file of {host}",
        "use the login of the image (ubuntu, admin, ec2-user, …), and the key that was put there",
        ssh=True,
    ),
    _Row(
        r"Could not resolve hostname|Name or service not known|nodename nor servname",
        "{address} is no name that this controller can resolve.",
        "ansible_host of {host}",
        "correct it, or write the address",
        ssh=True,
    ),
    _Row(
        r"Connection refused",
        "On {address} nothing listens for ssh.",
        "ansible_host and ansible_port of {host}",
        "see that sshd runs there; a host that has just been started needs a moment",
        ssh=True,
    ),
    _Row(
        r"timed out|No route to host|Network is unreachable|Connection closed by|Connection reset",
        "{host} does not answer at {address}.",
        "ansible_host of {host}",
        "see that it is on and that the firewall (security group) lets ssh in from here",
        ssh=True,
    ),
    _Row(
        r"[Pp]assword is required|Missing \w+ password|Incorrect \w+ password|not in the sudoers file|"
        r"may not run sudo|not allowed to (run|execute)|Duplicate or incorrect become",
        "{user} may not become root on {host} without a password.",
        "train_become, train_user",
        "give the password with --ask-become-pass, let {user} use sudo without one, or set train_become: false and a "
        "train_root below the home of {user}",
    ),
    _Row(
        r"python[\d.]*: (command )?not found|No (usable )?[Pp]ython|interpreter.*(was )?not found|"
        r"No such file or directory.*python|python.*No such file or directory",
        "There is no Python on {host}.",
        "ansible_python_interpreter of {host}",
        "install it (apt install python3), or name the one there is",
    ),
    _Row(
        r"No space left on device",
        "The disk of {host} is full.",
        "the home and the temp folder of {user} on {host}",
        "free some space",
    ),
)


def refuse_key(path: str, host: str) -> None:
    """ssh passes over a key that it cannot use, and then says that permission is denied."""
    if not path:
        return
    key, where = Path(path).expanduser(), f"ansible_ssh_private_key_file of {host}"
    try:
        mode = key.stat().st_mode
        key.open("rb").close()
    except FileNotFoundError:
        raise FinetuneError(
            f"There is no key {key} on this controller.", where=where, change="correct the path"
        ) from None
    except OSError as error:
        raise FinetuneError(
            f"The key {key} cannot be read: {error.strerror}.", where=where, change="see whose it is"
        ) from None
    if stat.S_IMODE(mode) & 0o077:
        raise FinetuneError(
            f"The key {key} may be read by others (mode {stat.S_IMODE(mode):04o}); ssh does not use it.",
            where=where,
            change=f"chmod 600 {key}",
        )


def explain(said: str, *, host: str, address: str, user: str, ssh: bool = True) -> FinetuneError | None:
    """The first row whose pattern occurs in what was said; None where none does. ssh: False where a module spoke."""
    words = {"host": host, "address": address or host, "user": user or "the login user"}
    for row in _CATALOGUE:
        if re.search(row.pattern, said) and (ssh or not row.ssh):
            what, where, change = (text.format(**words) for text in (row.what, row.where, row.change))
            return FinetuneError(what, where=where, change=change)
    return None
