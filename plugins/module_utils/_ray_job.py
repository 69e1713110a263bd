# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The job that proves a Ray cluster, run by the cluster's environment on its head: one worker on each node, at least
two, sum a tensor with gloo. Workers take no CPU of the cluster, so that a busy one is proved too.

The question comes on standard input, the answer goes to standard output, both JSON.
"""

from __future__ import annotations

import json
import socket
import sys
import time
import typing as t

ELEMENTS = 1_000_000


class Worker:
    """One rank, in a process of Ray's."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    def meeting(self) -> str:
        import ray

        address = str(ray.util.get_node_ip_address())
        with socket.socket() as listener:
            listener.bind((address, 0))
            return f"tcp://{address}:{listener.getsockname()[1]}"

    def reduce(self, meeting: str, seconds: float) -> dict[str, t.Any]:
        import datetime

        import ray
        import torch
        from torch import distributed

        patience = datetime.timedelta(seconds=seconds)
        distributed.init_process_group("gloo", meeting, patience, world_size=self.world, rank=self.rank)
        try:
            tensor = torch.full((ELEMENTS,), float(self.rank + 1))
            distributed.all_reduce(tensor)
            return {
                "address": ray.util.get_node_ip_address(),
                "least": tensor.min().item(),
                "most": tensor.max().item(),
            }
        finally:
            distributed.destroy_process_group()


def arrive(addresses: list[str], deadline: float) -> dict[str, str]:
    """Ids of the living nodes by address, once all that are meant are there or the time is over."""
    import ray

    while True:
        there = {node["NodeManagerAddress"]: str(node["NodeID"]) for node in ray.nodes() if node["Alive"]}
        if set(addresses) <= set(there) or time.monotonic() > deadline:
            return there
        time.sleep(0.5)


def prove(address: str, nodes: list[str], seconds: float) -> dict[str, t.Any]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    begun = time.monotonic()
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    there = arrive(nodes, begun + seconds)
    missing = [node for node in nodes if node not in there]
    if missing:
        return {"missing": missing, "seconds": time.monotonic() - begun}
    places = nodes if len(nodes) > 1 else nodes * 2
    actor = ray.remote(num_cpus=0)(Worker)
    workers = [
        actor.options(scheduling_strategy=NodeAffinitySchedulingStrategy(there[node], soft=False)).remote(
            rank, len(places)
        )
        for rank, node in enumerate(places)
    ]
    meeting = ray.get(workers[0].meeting.remote(), timeout=seconds)
    done = ray.get([worker.reduce.remote(meeting, seconds) for worker in workers], timeout=2 * seconds)
    total = ray.cluster_resources()
    return {
        "missing": [],
        "workers": done,
        "cpus": total.get("CPU", 0),
        "gpus": total.get("GPU", 0),
        "seconds": time.monotonic() - begun,
    }


if __name__ == "__main__":
    json.dump(prove(**json.load(sys.stdin)), sys.stdout)
