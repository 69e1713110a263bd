# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of a host's GPUs, in lines for people. Pure."""

from __future__ import annotations

import typing as t

from .card import Gpu, Peer
from .detect import Report


def lines(report: Report, holders: t.Mapping[str, dict[str, t.Any]]) -> list[str]:
    """holders: who has the lease of a GPU or slice, by its UUID."""
    told = [_driver(report)] if report.driver else []
    for gpu in report.gpus:
        told.append(f"GPU {gpu.index}  {gpu.name or '?'}, {_size(gpu.memory, gpu.memory_free)}{_rest(report, gpu)}")
        told[-1] += _held(holders.get(gpu.uuid))
        for one in gpu.slices if gpu.mig else ():
            size = _size(one.memory, one.memory_free)
            told.append(f"  {gpu.index}:{one.index}  MIG {one.profile or '?'}, {size}{_held(holders.get(one.uuid))}")
    told += [f"{one.vendor} {one.index}  {one.name}, {_size(one.memory, None)}" for one in report.others]
    if not told:
        told.append("no GPU")
    for problem in report.problems:
        told += [f"! {problem.what}", f"  {problem.change}"]
    return told


def _driver(report: Report) -> str:
    return f"driver {report.driver}" + (f", CUDA up to {report.cuda}" if report.cuda else "")


def _size(total: int | None, free: int | None) -> str:
    told = f"{total / 2**30:.1f} GiB" if total else "memory unknown"
    return f"{told}, {free / 2**30:.1f} free" if total and free is not None else told


def _rest(report: Report, gpu: Gpu) -> str:
    told = f", compute capability {gpu.compute_capability:g}" if gpu.compute_capability else ""
    mine = [peer for peer in report.peers if gpu.index in (peer.one, peer.two)]
    return f"{told}, {ways(mine)}" if mine else told


def ways(peers: t.Sequence[Peer]) -> str:
    """`NV18 to 7 others`, or several such."""
    counts: dict[str, int] = {}
    for peer in peers:
        counts[peer.way] = counts.get(peer.way, 0) + 1
    return ", ".join(f"{way} to {count} other{'s' * (count > 1)}" for way, count in counts.items())


def _held(holder: dict[str, t.Any] | None) -> str:
    return f", held by run {holder.get('run', '?')}" if holder is not None else ""
