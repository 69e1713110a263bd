# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One of two nodes of the preflight's exchange, in the folder of a run: node, and port of node 0. Node 0 has sent its
part for two seconds when it begins to receive."""

from __future__ import annotations

import datetime
import sys
import time
import typing as t

import torch.distributed as dist
from engine import allreduce_rank, peers  # type: ignore[import-not-found]

node, port = int(sys.argv[1]), int(sys.argv[2])
allreduce_rank.PAIR_BYTES = 32 << 20  # more than the kernel takes off a sender's hands
patience = datetime.timedelta(seconds=30)
store = dist.TCPStore("127.0.0.1", port, 2, node == 0, timeout=patience)
dist.init_process_group("gloo", store=store, rank=node, world_size=2, timeout=patience)
receive = dist.irecv


class Late(t.NamedTuple):
    arguments: tuple[t.Any, ...]

    def wait(self, patience: datetime.timedelta) -> None:
        time.sleep(2)
        receive(*self.arguments).wait(patience)


if node == 0:
    dist.irecv = lambda *arguments: Late(arguments)  # type: ignore[assignment,return-value]
under_way = allreduce_rank._exchange(peers.Node(node, 0, node, 2, 2), [0, 1])
store.set(f"exchanged/{node}", "1")
store.wait([f"exchanged/{1 - node}"], patience)
del under_way
print("exchanged")
