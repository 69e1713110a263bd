# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From one node: which of the others it gets through to, and how far their clocks are off."""

from __future__ import annotations

import json
import socket
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor

PATIENCE_SECONDS = 3.0
"""For one connection; a packet that was dropped is sent again after one second."""

Peer = dict[str, t.Any]
"""host, address, ports, run, node_rank."""
Finding = dict[str, t.Any]
"""host; why it cannot be reached, or empty; clock: seconds that its clock is ahead of ours."""


def probe(peers: t.Sequence[Peer]) -> list[Finding]:
    """All of them at once."""
    if not peers:
        return []
    with ThreadPoolExecutor(min(64, len(peers))) as pool:
        return list(pool.map(_reach, peers))


def _reach(peer: Peer) -> Finding:
    """Every port of its; the first one that is not open says why. The last is of the kernel's choice."""
    address, ahead = peer["address"], 0.0
    for port in peer["ports"]:
        try:
            sent = time.time()
            words = _call(address, port)
            ahead = float(words["time"]) - (sent + time.time()) / 2
        except OSError as error:
            chosen = ", a port of the kernel's choice as NCCL and gloo use them" if port == peer["ports"][-1] else ""
            return {"host": peer["host"], "why": f"{address}:{port} {_reason(error)}{chosen}", "clock": ahead}
        except (ValueError, KeyError):
            return {"host": peer["host"], "why": f"something else listens on {address}:{port}", "clock": ahead}
        if (words.get("run"), words.get("node_rank")) != (peer["run"], peer["node_rank"]):
            who = f"run {words.get('run')}, node {words.get('node_rank')}"
            return {"host": peer["host"], "why": f"{address}:{port} answers for {who}", "clock": 0.0}
    return {"host": peer["host"], "why": "", "clock": ahead}


def _call(address: str, port: int) -> dict[str, t.Any]:
    with socket.create_connection((address, port), timeout=PATIENCE_SECONDS) as line, line.makefile("rb") as file:
        words = json.loads(file.readline(10_000))
    if not isinstance(words, dict):
        raise ValueError("no object")
    return words


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"does not answer within {PATIENCE_SECONDS:.0f} s"
    if isinstance(error, ConnectionRefusedError):
        return "refuses the connection"
    return f"cannot be reached ({getattr(error, 'strerror', None) or error})"
