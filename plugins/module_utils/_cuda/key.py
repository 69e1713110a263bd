# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A repository's key, held against its pin before a package manager trusts it. Pure: no gpg is needed on the node."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import typing as t

_ARMOR = re.compile(r"-----BEGIN PGP PUBLIC KEY BLOCK-----\r?\n(.*?)-----END", re.DOTALL)
_PUBLIC = 6


def matches(text: str, pin: str) -> bool:
    """Whether the file holds the pinned key and no other one. pin: a fingerprint, or `sha256:` and the digest of the
    text without lines of `Version`, which tools write as they like."""
    if pin.startswith("sha256:"):
        lines = [line for line in text.splitlines(keepends=True) if not line.startswith("Version")]
        return hashlib.sha256("".join(lines).encode()).hexdigest() == pin.partition(":")[2]
    return fingerprints(text) == [pin.upper()]


def fingerprints(text: str) -> t.List[str]:
    """Those of the primary keys in an armored file; empty where it is none."""
    found: t.List[str] = []
    for block in _ARMOR.findall(text):
        lines = block.replace("\r", "").split("\n\n", 1)[-1].splitlines()
        try:
            raw = base64.b64decode("".join(line for line in lines if not line.startswith("=")), validate=True)
            found += [
                hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body).hexdigest().upper()  # noqa: S324 - OpenPGP's
                for tag, body in _packets(raw)
                if tag == _PUBLIC
            ]
        except (binascii.Error, IndexError):
            return []
    return found


def _packets(raw: bytes) -> t.Iterator[t.Tuple[int, bytes]]:
    """OpenPGP packets, in the old and the new form of their headers (RFC 4880, 4.2)."""
    at = 0
    while at < len(raw):
        head = raw[at]
        at += 1
        if head & 0x40:
            tag, first = head & 0x3F, raw[at]
            if first < 192:
                size, at = first, at + 1
            elif first < 224:
                size, at = ((first - 192) << 8) + raw[at + 1] + 192, at + 2
            else:
                size, at = int.from_bytes(raw[at + 1 : at + 5], "big"), at + 5
        else:
            tag, width = (head & 0x3C) >> 2, 1 << (head & 3)
            size, at = int.from_bytes(raw[at : at + width], "big"), at + width
        yield tag, raw[at : at + size]
        at += size
