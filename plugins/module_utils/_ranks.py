# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ranks: which GPUs of a node are used, how many processes that makes, where they meet."""

from __future__ import annotations

import typing as t

from ._cuda import table, torch
from ._errors import FinetuneError
from ._gpu.card import label
from ._wish.wish import Wish

Facts = dict[str, t.Any]
"""What node_info returned for a host."""


def local(wish: Wish, host: str, node: Facts) -> int:
    """Processes on a node: one per GPU that is used, else as asked, else one."""
    used = gpus(wish.gpus, node["gpus"], host)
    if used and wish.processes_per_node not in (None, len(used)):
        raise FinetuneError(
            f"{wish.processes_per_node} processes on {len(used)} GPUs of {host}: each rank drives one GPU.",
            where="train_processes_per_node",
            change="leave it at auto, or choose as many GPUs with train_gpus",
        )
    return len(used) or wish.processes_per_node or 1


def by_host(wish: Wish, facts: t.Mapping[str, Facts]) -> dict[str, int]:
    """Processes on each node, where all of them can be ranks of one run."""
    _refuse_mixed(wish, facts)
    _refuse_shared_root(facts)
    return {host: local(wish, host, node) for host, node in facts.items()}


def refuse_incomplete(expected: t.Mapping[str, t.Any]) -> None:
    """expected: train_nodes by host. A run on fewer nodes would begin, or go on, without a word."""
    for host, number in expected.items():
        if str(number or 0) not in ("0", str(len(expected))):
            raise FinetuneError(
                f"{number} hosts have to take part, and {len(expected)} do: {', '.join(expected)}.",
                where=f"train_nodes of {host}",
                change="bring the others back (on EC2: llmops.finetune.provision), or go without: -e train_nodes=0",
            )


def _refuse_mixed(wish: Wish, facts: t.Mapping[str, Facts]) -> None:
    """Ranks on GPUs talk through NCCL and ranks on CPUs through gloo: they cannot meet."""
    used = {host: bool(gpus(wish.gpus, node["gpus"], host)) for host, node in facts.items()}
    without = [host for host, has in used.items() if not has]
    if without and len(without) < len(used):
        has = next(host for host in used if used[host])
        raise FinetuneError(
            f"{', '.join(without)} has no GPU, {has} has.",
            where="inventory, group trainers",
            change="leave hosts without GPUs out (--limit), or see that nvidia-smi works there; train_gpus: 0 takes "
            "the CPUs of all",
        )


def refuse_slices(wish: Wish, facts: t.Mapping[str, Facts]) -> None:
    """A process of CUDA sees one MIG slice, whatever it is given, so that a second rank has no device."""
    for host, node in facts.items():
        used = gpus(wish.gpus, node["gpus"], host)
        slices = [gpu for gpu in used if "slice" in gpu]
        if slices and len(used) > 1:
            raise FinetuneError(
                f"{host} would have {len(used)} ranks, with MIG slices: of those CUDA gives the ranks of a host one.",
                where="train_gpus",
                change="choose one: " + ", ".join(f"{gpu['uuid']} ({gpu['name']})" for gpu in slices),
            )


def refuse_unequal(wish: Wish, facts: t.Mapping[str, Facts]) -> None:
    """GPUs of several kinds wait for the slowest, and what fits is what fits the smallest: only where that is meant."""
    kinds = _kinds(wish, facts)
    if len(kinds) > 1 and not wish.mixes:
        raise FinetuneError(
            "The run would have GPUs of several kinds, of which the smallest would decide what fits.",
            where="\n          ".join(f"{name}: {', '.join(hosts)}" for name, hosts in kinds.items()),
            change="choose those of one kind with train_gpus or --limit, or set train_insist: [mixed_gpus] where you "
            "mean it",
        )


def _kinds(wish: Wish, facts: t.Mapping[str, Facts]) -> dict[str, list[str]]:
    """The hosts that have them, by the names of the GPUs that are used."""
    kinds: dict[str, list[str]] = {}
    for host, node in facts.items():
        for name in dict.fromkeys(gpu["name"] for gpu in gpus(wish.gpus, node["gpus"], host)):
            kinds.setdefault(name, []).append(host)
    return kinds


def notices(wish: Wish, facts: t.Mapping[str, Facts]) -> list[str]:
    """What is wrong with GPUs, and that unequal ones are used together."""
    told = [
        f"{host}: {problem['what']} Remedy: {problem['change']}."
        for host, node in facts.items()
        for problem in (node.get("gpu_problems") or () if wish.gpus != "0" else ())
    ]
    told += _builds(wish, facts)
    if len(_kinds(wish, facts)) > 1:
        used = [(gpu, host) for host, node in facts.items() for gpu in gpus(wish.gpus, node["gpus"], host)]
        least, host = min(used, key=lambda pair: pair[0].get("memory") or 0)
        told.append(f"GPUs of several kinds: the smallest decides, {least['name']} of {host}.")
    return told


def _builds(wish: Wish, facts: t.Mapping[str, Facts]) -> list[str]:
    """GPUs and drivers that torch of the collection's locks does not run on."""
    told = []
    for host, node in facts.items() if not wish.lock else ():
        used = gpus(wish.gpus, node["gpus"], host)
        machine = node.get("machine", table.LOCKED_MACHINE)
        if used and machine != table.LOCKED_MACHINE:
            told.append(
                f"{host}: torch of the environment has no CUDA on {machine}, so ranks see no GPU. Remedy: name a lock "
                "with a build that has in train_lock."
            )
        capabilities = [gpu["compute_capability"] for gpu in used if gpu.get("compute_capability")]
        driver = used[0].get("driver", "") if used else ""
        what, change = torch.why_not(table.torch(table.LOCKED_TORCH), driver, capabilities, machine)
        if what:
            told.append(f"{host}: torch of the environment is {table.LOCKED_TORCH}: {what}. Remedy: {change}.")
    return told


def devices(used: t.Iterable[dict[str, t.Any]]) -> str:
    """`8 × NVIDIA H200`, with commas between unequal ones."""
    names = [gpu["name"] for gpu in used]
    return ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names))


def _refuse_shared_root(facts: t.Mapping[str, Facts]) -> None:
    """Each host keeps the state of its own ranks under the root; two in one folder would take each other's."""
    seen: dict[str, str] = {}
    for host, node in facts.items():
        place = node.get("storage") or ""
        if place in seen:
            raise FinetuneError(
                f"{seen[place]} and {host} have the same train_root: {place}.",
                where="train_root",
                change="choose a folder on a disk of each host's own; what hosts may share is train_output_root",
            )
        if place:
            seen[place] = host


def gpus(wanted: str, present: t.Sequence[dict[str, t.Any]], host: str) -> list[dict[str, t.Any]]:
    """train_gpus: `all`, a number of GPUs, or indices and UUIDs separated by commas. `0:1` is slice 1 of GPU 0."""
    if wanted == "all":
        return list(present)
    if not present and wanted != "0":
        raise FinetuneError(
            f"{host} has no GPU, train_gpus is {wanted}.",
            where="train_gpus",
            change="leave it at all to train on what there is; where there is a GPU, nvidia-smi must list it",
        )
    if wanted.isdigit():
        if int(wanted) > len(present):
            raise FinetuneError(
                f"{host} has {len(present)} GPUs, {wanted} are asked for.",
                where="train_gpus",
                change=f"use at most {len(present)}",
            )
        return list(present[: int(wanted)])
    names = {label(gpu): gpu for gpu in present} | {gpu["uuid"]: gpu for gpu in present}
    chosen = []
    for word in filter(None, (part.strip() for part in wanted.rstrip(",").split(","))):
        if word not in names:
            raise FinetuneError(
                f"{host} has no GPU {word}.", where="train_gpus", change="use one of " + ", ".join(names)
            )
        if names[word] not in chosen:
            chosen.append(names[word])
    return chosen
