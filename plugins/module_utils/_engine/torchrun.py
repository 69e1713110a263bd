# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""torchrun with a static rendezvous: its command line, and the port at which its nodes meet."""

from __future__ import annotations

import socket
import time
import typing as t


def command(
    launch: dict[str, t.Any], port: int, module: str = "engine.rank", *arguments: str, join_seconds: float = 0
) -> list[str]:
    """torchrun with static rendezvous: ranks are the inventory's order, restarts are ours.

    join_seconds: how long a node waits for the others; 0 for as long as torchrun does by itself.
    """
    return [
        launch["python"],
        "-m",
        "torch.distributed.run",
        f"--nnodes={launch['nnodes']}",
        f"--node-rank={launch['node_rank']}",
        f"--nproc-per-node={launch['nproc_per_node']}",
        f"--master-addr={launch['master_addr']}",
        f"--master-port={port}",
        *([f"--rdzv-conf=timeout={join_seconds:.0f}"] if join_seconds else []),
        "--max-restarts=0",
        "-m",
        module,
        *arguments,
    ]


def free_port() -> int:
    """A port for the rendezvous of a single node."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_closed(address: str, port: int, patience: float = 30.0) -> None:
    """Until rank 0's node has given up the rendezvous of an earlier attempt: who meets there would meet nobody."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            socket.create_connection((address, port), timeout=2).close()
        except TimeoutError:
            continue  # silent: once it is heard again, a new connection is quicker than one that waits for an answer
        except OSError:
            return
        time.sleep(0.1)


def place_is_held(address: str, port: int) -> bool:
    """Whether a listener answers there (engine.listener), which speaks first; a rendezvous waits to be spoken to."""
    try:
        with socket.create_connection((address, port), timeout=2) as line:
            line.settimeout(1)
            return bool(line.recv(1))
    except OSError:
        return False
