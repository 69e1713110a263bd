# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An instance type, as DescribeInstanceTypes tells of it, and whether a model can be trained on it. Pure."""

from __future__ import annotations

import typing as t

from .._errors import FinetuneError

MARKETS = ("on-demand", "spot", "capacity-block")


class Card(t.NamedTuple):
    number: int
    efa: bool


class GpuType(t.NamedTuple):
    """gpu_mib is what the API reports of one GPU; a process gets less."""

    name: str
    gpu: str
    gpus: int
    gpu_mib: int
    vcpus: int
    memory_mib: int
    nvme_gb: int
    architecture: str
    markets: tuple[str, ...]
    cards: tuple[Card, ...]
    efa: int
    cluster: bool
    """Whether it goes into a cluster placement group."""

    @property
    def family(self) -> str:
        return self.name.partition(".")[0]


def read(described: t.Mapping[str, t.Any]) -> GpuType:
    """Refuse what has no whole NVIDIA GPU: Trainium has no GpuInfo, AMD's have, slices count 0 GPUs."""
    name = str(described["InstanceType"])
    found = [gpu for gpu in described.get("GpuInfo", {}).get("Gpus", []) if gpu.get("Manufacturer") == "NVIDIA"]
    if not found:
        raise _refused(f"Instance type {name} has no NVIDIA GPU.")
    gpu = found[0]
    share = float(gpu.get("GpuPartitionSize") or 1)
    if share < 1:
        raise _refused(f"Instance type {name} has {share:g} of a GPU, and its drivers (GRID) do not train.")
    network = described.get("NetworkInfo", {})
    cards = tuple(
        Card(int(card["NetworkCardIndex"]), "efa-only" in card.get("InterfaceTypes", []))
        for card in network.get("NetworkCards", [])
    )
    return GpuType(
        name=name,
        gpu=str(gpu.get("Name") or "GPU"),
        gpus=int(gpu.get("LogicalGpuCount") or gpu.get("Count") or 0),
        gpu_mib=int(gpu["MemoryInfo"]["SizeInMiB"]),
        vcpus=int(described["VCpuInfo"]["DefaultVCpus"]),
        memory_mib=int(described["MemoryInfo"]["SizeInMiB"]),
        nvme_gb=int(described.get("InstanceStorageInfo", {}).get("TotalSizeInGB") or 0),
        architecture=str(described["ProcessorInfo"]["SupportedArchitectures"][0]),
        markets=tuple(described.get("SupportedUsageClasses") or ()),
        cards=cards or (Card(0, False),),
        efa=int(network.get("EfaInfo", {}).get("MaximumEfaInterfaces") or 0),
        cluster="cluster" in described.get("PlacementGroupInfo", {}).get("SupportedStrategies", []),
    )


def _refused(what: str) -> FinetuneError:
    return FinetuneError(
        what, where="ec2_instance_type", change="choose one of the families g5, g6, g6e, g7e, p4d, p4de, p5, p6"
    )


def described(kind: GpuType) -> str:
    """One line for people."""
    efa = f", {kind.efa} EFA" if kind.efa else ""
    return (
        f"{kind.name}: {kind.gpus} × {kind.gpu} of {kind.gpu_mib / 1024:.1f} GiB, {kind.vcpus} vCPUs, "
        f"{kind.memory_mib // 1024} GiB, {kind.nvme_gb} GB NVMe{efa}"
    )
