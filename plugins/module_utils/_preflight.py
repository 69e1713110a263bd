# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What would stop a build, found before anything is written."""

from __future__ import annotations

import os
import platform
import re
import typing as t

from ._errors import FinetuneError

GIB = 1024**3
TORCH_BYTES = 9 * GIB
"""Free space that a first build of a lock with torch needs: 7.6 GiB on disk, and room to unpack."""
SMALL_BYTES = GIB // 2
"""The same for any other lock, and for a lock whose files the cache may already hold (hard links cost nothing)."""
TORCH_GLIBC = (2, 28)


def check(root: str, user: str, lock: t.Mapping[str, str], find_links: str, warm: bool) -> None:
    """Refuse a build below `root` by `user`, who we are. warm: as in `check_space`."""
    libc = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else ""
    check_platform(platform.system(), platform.machine(), libc or "", lock)
    if find_links and not os.path.isdir(find_links):
        raise FinetuneError(
            f"There is no folder {find_links} on this node.",
            where="uv_env_find_links",
            change="name a folder of wheels that exists on the node, or leave it empty",
        )
    standing = root
    while not os.path.exists(standing):
        standing = os.path.dirname(standing) or "/"
    if not os.access(standing, os.W_OK | os.X_OK):
        raise FinetuneError(
            f"{user} may not write in {standing}.",
            where="uv_env_root (train_root)",
            change=f"give {user} a folder {root}, or name another one",
        )
    space = os.statvfs(standing)
    check_space(space.f_bavail * space.f_frsize, lock, warm, standing)


def check_platform(system: str, machine: str, libc: str, lock: t.Mapping[str, str]) -> None:
    """Refuse a node whose wheels do not exist. libc: as from confstr, `glibc 2.36`, "" when it is not glibc."""
    if (system, machine) != ("Linux", "x86_64"):
        raise FinetuneError(
            f"The lock is made for Linux on x86-64; this node is {system} on {machine}.",
            where="uv_env_lock",
            change="take this host out of the group trainers, or name a lock made for it with uv_env_lock",
        )
    match = re.fullmatch(r"glibc (\d+)\.(\d+).*", libc or "")
    if match is None:
        raise FinetuneError(
            "This node's C library is not glibc; the wheels need glibc.",
            change="use a distribution with glibc (Debian, Ubuntu, RHEL and their like)",
        )
    if "torch" in lock and (int(match[1]), int(match[2])) < TORCH_GLIBC:
        raise FinetuneError(
            f"This node has {libc}; the wheels of torch need glibc {TORCH_GLIBC[0]}.{TORCH_GLIBC[1]} or later.",
            change="use Debian 10, Ubuntu 20.04, RHEL 8 or later",
        )


def check_space(free: int, lock: t.Mapping[str, str], warm: bool, root: str) -> None:
    """Refuse a build that cannot fit. free: bytes; warm: the cache holds files, which cost nothing again."""
    needed = TORCH_BYTES if "torch" in lock and not warm else SMALL_BYTES
    if free < needed:
        raise FinetuneError(
            f"The environment needs {needed / GIB:.1f} GiB of free disk space; {free / GIB:.1f} GiB are free.",
            where=root,
            change="free some space, or put uv_env_root (train_root) on a larger file system",
        )
