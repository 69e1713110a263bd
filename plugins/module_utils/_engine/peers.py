# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The nodes of one attempt, as its ranks see each other through torchrun's own store on rank 0's node.

Neither rendezvous nor collectives notice a node that falls silent before a timeout of half an hour: nothing is reset
on the wire. Here the first rank of every node beats, and all of them leave when one stops.
"""

from __future__ import annotations

import json
import os
import threading
import time
import typing as t

BEAT_SECONDS = 2.0
SILENCE_SECONDS = 12.0
"""Six beats: a node that is silent for so long is lost."""
ERRORS_SECONDS = 2.0
"""How long a failing rank looks for the errors of others: its own may only follow from theirs."""
LOST = 75
"""Exit status of a rank that left because another node was lost."""


class PeerLost(Exception):
    """Another node of the attempt is gone."""


class Store(t.Protocol):
    """What is used of torch.distributed's Store."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...


class Node(t.NamedTuple):
    rank: int
    local_rank: int
    node: int
    nodes: int
    world_size: int

    @property
    def leads(self) -> bool:
        """Acts for its node."""
        return self.local_rank == 0


def here() -> Node:
    """This rank, from what torchrun sets."""
    names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "GROUP_WORLD_SIZE", "WORLD_SIZE")
    rank, local_rank, node, nodes, world_size = (int(os.environ.get(name) or name.endswith("SIZE")) for name in names)
    return Node(rank, local_rank, node, nodes, world_size)


def connect() -> Store:
    """A client of the store that torchrun holds open for this attempt."""
    import datetime

    import torch.distributed as dist

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    hour = datetime.timedelta(hours=1)
    client = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=hour)
    return t.cast(Store, dist.PrefixStore("llmops", client))


def silent(beats: t.Mapping[int, float], nodes: t.Collection[int], now: float) -> list[int]:
    """Nodes that are lost. beats: when each was last heard; the clock runs once all of them were heard."""
    if any(node not in beats for node in nodes):
        return []
    return [node for node in sorted(nodes) if now - beats[node] > SILENCE_SECONDS]


class Liveness:
    """Beats for this node and listens for the others, in threads: a rank in a long computation beats as well.

    connect: for a client of its own. One that waits in `get` lets nobody else in meanwhile, and the beat would stop.
    """

    why = ""
    """Why this node is about to leave."""

    def __init__(self, connect: t.Callable[[], Store], here: Node, lost: t.Callable[[str], None]) -> None:
        self.store, self.here, self._lost = connect(), here, lost
        self.over = threading.Event()
        self.turn = time.monotonic()
        for work in (self._beat, self._watch_store):
            threading.Thread(target=work, daemon=True).start()

    def _beat(self) -> None:
        heard: dict[int, tuple[bytes, float]] = {}
        others = [node for node in range(self.here.nodes) if node != self.here.node]
        count = 0
        while not self.over.wait(BEAT_SECONDS):
            count += 1
            try:
                self.store.set(f"beat/{self.here.node}", str(count))
                waiting = [node for node in others if not self.store.check([f"done/{node}"])]
                for node in waiting:
                    if self.store.check([f"beat/{node}"]):
                        beat, before = self.store.get(f"beat/{node}"), heard.get(node, (b"", 0.0))
                        heard[node] = before if beat == before[0] else (beat, time.monotonic())
                self.turn = time.monotonic()
                gone = silent({node: beat[1] for node, beat in heard.items()}, waiting, self.turn)
                if gone and not self.store.check(["lost"]):
                    self.store.set("lost", f"Node {', '.join(map(str, gone))} fell silent.")
                why = self.store.get("lost").decode() if self.store.check(["lost"]) else ""
            except Exception:
                return self.lose("Node 0, where ranks meet, is gone.")
            if why:
                return self.lose(why, after=2 * BEAT_SECONDS)
        return None

    def _watch_store(self) -> None:
        """A store whose host fell silent answers nothing, not even with an error."""
        while not self.over.wait(BEAT_SECONDS):
            if time.monotonic() - self.turn > SILENCE_SECONDS:
                return self.lose("Node 0, where ranks meet, fell silent.", after=2 * BEAT_SECONDS)
        return None

    def lose(self, why: str, after: float = 0) -> None:
        """after: until the others know it too, who would see no more of it than that this node closes connections."""
        self.why = why
        if not self.over.wait(after):
            self._lost(why)

    def farewell(self) -> None:
        """This node is done, and stays until all are: one that is lost meanwhile lacks what the others have."""
        self.store.set(f"done/{self.here.node}", "1")
        keys = [f"done/{node}" for node in range(self.here.nodes)]
        while not self.store.check(keys):
            time.sleep(0.2)
        self.over.set()


def ends_at(store: Store, rank: int, step: int, wanted: bool) -> bool:
    """Whether all ranks leave after this step. wanted: the supervisor of this node asks for it.

    Rank 0 fixes the next step before it takes part in it, so no other rank can have passed it yet.
    """
    if wanted:
        store.set("end/wanted", "1")
    if rank == 0 and not store.check(["end/at"]) and store.check(["end/wanted"]):
        store.set("end/at", str(step + 1))
    return store.check(["end/at"]) and step >= int(store.get("end/at"))


def share_error(store: Store, rank: int, world_size: int, error: dict[str, t.Any]) -> dict[int, dict[str, t.Any]]:
    """Tell the others why this rank fails, and hear why they do; by rank."""
    store.set(f"error/{rank}", json.dumps(error))
    deadline = time.monotonic() + ERRORS_SECONDS
    found: dict[int, dict[str, t.Any]] = {}
    while time.monotonic() < deadline and len(found) < world_size:
        for other in set(range(world_size)) - found.keys():
            if store.check([f"error/{other}"]):
                found[other] = json.loads(store.get(f"error/{other}"))
        time.sleep(0.2)
    return found
