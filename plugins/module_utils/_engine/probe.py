# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which nodes get through to which, and how far their clocks are off.

One node looks for itself, and asks the others, of which each has a listener, what they see.
"""

from __future__ import annotations

import json
import socket
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor

PATIENCE_SECONDS = 3.0
"""For one connection; a packet that was dropped is sent again after one second."""
AT_ONCE = 64
"""Nodes that are tried or asked side by side."""
LINE_BYTES = 1 << 20
"""No question and no answer is longer: a thousand nodes take 200 kB."""

Peer = dict[str, t.Any]
"""host, address, ports, run, node_rank; and a token that its listener answers questions to."""
Finding = dict[str, t.Any]
"""host; why it cannot be reached, or empty; clock: seconds that its clock is ahead of ours."""


def survey(here: str, nodes: t.Sequence[Peer]) -> dict[str, list[Finding]]:
    """What each node sees of all others, by host, all at once. here: the host that we are on."""
    if not nodes:
        return {}

    def seen(node: Peer) -> list[Finding] | None:
        others = [other for other in nodes if other is not node]
        return probe(others) if node["host"] == here else _ask(node, others)

    with ThreadPoolExecutor(min(AT_ONCE, len(nodes))) as pool:
        asked = {node["host"]: pool.submit(seen, node) for node in nodes}
    found = {host: future.result() for host, future in asked.items()}
    for finding in found[here] or ():
        if not finding["why"] and found[finding["host"]] is None:
            finding["why"] = "does not say which nodes it gets through to"
    return {host: findings or [] for host, findings in found.items()}


def _ask(node: Peer, peers: t.Sequence[Peer]) -> list[Finding] | None:
    """What the listener of another node sees of its peers; None where it cannot be asked, also at a second try."""
    asked = [{key: value for key, value in peer.items() if key != "token"} for peer in peers]
    question = json.dumps({"token": node["token"], "peers": asked}).encode() + b"\n"
    for _time in range(2):
        try:
            found = json.loads(_told(node, question, len(peers)))
            return [{"host": str(one["host"]), "why": str(one["why"]), "clock": float(one["clock"])} for one in found]
        except (OSError, ValueError, LookupError, TypeError):
            continue
    return None


def _told(node: Peer, question: bytes, peers: int) -> bytes:
    with socket.create_connection((node["address"], node["ports"][-1]), timeout=PATIENCE_SECONDS) as line:
        line.settimeout(2 * PATIENCE_SECONDS * (2 + peers // AT_ONCE))  # it may have to wait for each port of theirs
        with line.makefile("rwb") as file:
            file.readline(LINE_BYTES)  # who it is, which `probe` looks at
            file.write(question)
            file.flush()
            return file.readline(LINE_BYTES)


def answer(question: bytes, token: str) -> bytes:
    """To what another node asks a listener; nothing to one that does not know its token."""
    asked = json.loads(question or b"{}")
    if not isinstance(asked, dict) or asked.get("token") != token:
        return b""
    return json.dumps(probe(asked["peers"])).encode() + b"\n"


def probe(peers: t.Sequence[Peer]) -> list[Finding]:
    """All of them at once."""
    if not peers:
        return []
    with ThreadPoolExecutor(min(AT_ONCE, len(peers))) as pool:
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
