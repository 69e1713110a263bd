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
"""host, address, port (of the rendezvous), run, node_rank."""
Finding = dict[str, t.Any]
"""host; why it cannot be reached, or empty; clock: seconds that its clock is ahead of ours."""


def probe(peers: t.Sequence[Peer]) -> list[Finding]:
    """All of them at once."""
    if not peers:
        return []
    with ThreadPoolExecutor(min(64, len(peers))) as pool:
        return list(pool.map(_reach, peers))


def _reach(peer: Peer) -> Finding:
    address, port = peer["address"], peer["port"]
    try:
        sent = time.time()
        words = _call(address, port)
        received = time.time()
    except OSError as error:
        return {"host": peer["host"], "why": f"{address}:{port} {_reason(error)}", "clock": 0.0}
    except ValueError:
        return {"host": peer["host"], "why": f"something else listens on {address}:{port}", "clock": 0.0}
    if (words.get("run"), words.get("node_rank")) != (peer["run"], peer["node_rank"]):
        who = f"run {words.get('run')}, node {words.get('node_rank')}"
        return {"host": peer["host"], "why": f"{address}:{port} answers for {who}", "clock": 0.0}
    ahead = float(words["time"]) - (sent + received) / 2
    other = int(words["ports"][1])
    try:
        _call(address, other)
    except (OSError, ValueError) as error:
        why = f"port {port} is open, {address}:{other} {_reason(error)}: NCCL and gloo use ports of the kernel's choice"
        return {"host": peer["host"], "why": why, "clock": ahead}
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
