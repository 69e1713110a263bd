# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Host keys, as cloud-init prints them on a node's console, and the file that ssh compares with. Pure.

So nobody is taken for a node who only answers at its address. A line names the instance that it was learned from: a
replacement has the name of what it replaces, and another key.
"""

from __future__ import annotations

import base64
import binascii
import re
import typing as t

_BLOCK = re.compile(r"-----BEGIN SSH HOST KEY KEYS-----(.*?)-----END SSH HOST KEY KEYS-----", re.DOTALL)
_KEY = re.compile(r"\b(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521)) (AAAA[A-Za-z0-9+/]+=*)")


def printed(console: str) -> list[str]:
    """Keys in the last whole block; lines may have a prefix of the kernel's or of cloud-init."""
    blocks = _BLOCK.findall(console)
    found = [f"{kind} {key}" for kind, key in _KEY.findall(blocks[-1])] if blocks else []
    return [line for line in found if _whole(line)]


def _whole(line: str) -> bool:
    """Whether a key says of itself what kind it is; one that was cut does not decode."""
    kind, _space, key = line.partition(" ")
    try:
        return base64.b64decode(key, validate=True)[4 : 4 + len(kind)] == kind.encode()
    except binascii.Error:
        return False


def known(text: str) -> dict[tuple[str, str], list[str]]:
    """By name and instance, the keys in a file that `written` made."""
    found: dict[tuple[str, str], list[str]] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 4:
            found.setdefault((words[0], words[3]), []).append(" ".join(words[1:3]))
    return found


def of(text: str, nodes: t.Collection[tuple[str, str]]) -> dict[tuple[str, str], list[str]]:
    """Of these nodes by name and instance, the keys in a file."""
    return {node: keys for node, keys in known(text).items() if node in nodes}


def complete(text: str, nodes: t.Collection[tuple[str, str]]) -> bool:
    """Whether a file has keys of all these nodes, and of nobody else."""
    there = of(text, nodes)
    return set(there) == set(nodes) and written(there) == text


def written(keys: t.Mapping[tuple[str, str], t.Sequence[str]]) -> str:
    return "".join(f"{name} {key} {instance}\n" for (name, instance), those in sorted(keys.items()) for key in those)
