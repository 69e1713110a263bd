# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node is: its user and root, its processors and GPUs, and what lies under the root. Reads, never writes."""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import typing as t
from dataclasses import astuple
from pathlib import Path
from types import MappingProxyType

from . import _env, _host, _model, _model_place, _output, _sealed, _user
from ._engine import files, lease, state
from ._media import UNKNOWN, Media

if t.TYPE_CHECKING:
    from ._dataset import Dataset

NOTHING: dict[str, t.Any] = {
    "runs": {},
    "environment_whole": False,
    "datasets": [],
    "media": [],
    "models": [],
    "output_root": {"why": "", "runs": []},
    "before": {},
    "peaks": {},
}
"""What lies under the root of an account that is still to be made."""
_EARLIER = re.compile(rf"\b{state.EARLIER}([a-z0-9._-]+)")
"""A run in what another one was resolved to."""


def facts(
    user: str,
    root: str,
    name: str,
    here: t.Sequence[Dataset],
    stage: str = "sft",
    lease_dir: str = "",
    model: str = "",
    media: Media = UNKNOWN,
    folders: t.Sequence[str] = (),
    output_root: str = "",
    before: t.Sequence[str] = (),
    hub: t.Mapping[str, t.Any] = MappingProxyType({}),
    environment: str = "",
) -> dict[str, t.Any]:
    """The facts the plan needs.

    name: only runs of this name are read. here: datasets that lie on the node, to digest and check for the stage.
    lease_dir: where the leases are, empty for the host's one place. model: of the run, looked into where it is a path.
    hub: model and revision of a hub, which is asked for the commit by its endpoint and token, unless it is
    told.
    folders: where adapters and reward models are. media: what is known of them besides that they are here.
    output_root: where all nodes are to have their results. before: names or ids of runs that this one begins with.
    environment: digest of the lock that the run would be started in.
    """
    from ._gpu import detect  # most module calls want to know what is whole, and ask no GPU

    if here:  # now, as the account of runs may not read what Ansible brought
        from . import _checker

    cards = detect.look()
    present = cards.devices()
    login = _user.login()
    account = _user.run_user(user, login)
    there = _user.exists(account)
    if not there and account != _user.DEFAULT_ACCOUNT:
        _user.lookup(account)
    place = _user.expand(root, account)
    parts = _checker.sources() if here else {}

    def source(dataset: Dataset) -> dict[str, t.Any]:
        path = Path(dataset.where).expanduser()
        if not os.path.isfile(path):
            return {"name": dataset.name, "missing": True}
        answer = _checker.check(path, dataset, stage, media._replace(here=True), Path(place), parts)
        return {"name": dataset.name, "missing": False, "path": str(path), "digest": files.sha256(path), **answer}

    def elsewhere() -> dict[str, t.Any]:
        """What need not lie under the root."""
        found = model.startswith("/") and os.path.isfile(f"{model}/config.json")
        return {
            "folders": {folder: trained_files(Path(folder)) for folder in folders},
            "model_missing": model.startswith("/") and not found,
            "model": _model.facts(Path(model)) if found else {},
            "sources": [source(dataset) for dataset in here],
        }

    def read() -> dict[str, t.Any]:
        _user.refuse_unusable(Path(place))
        return {
            "runs": runs(Path(place), name),
            "environment_whole": bool(environment) and _env.untouched(place, environment),
            "before": earlier(Path(place), before),
            "peaks": peaks(Path(place)),
            "datasets": datasets(Path(place)),
            "media": media_sets(Path(place)),
            "models": models(Path(place)),
            **elsewhere(),
            "output_root": _output.facts(output_root, name),
        }

    # Before its account is made, all else is looked at by who makes it.
    here_now = _user.as_user(account, read) if there else {**NOTHING, **elsewhere()}
    return {
        "login": login,
        "user": account,
        "account_exists": there,
        "root": place,
        "hostname": socket.gethostname(),
        "interfaces": _host.interfaces(),
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "disk_free": _host.disk_free(place),
        "storage": _host.storage(place, _host.lines("/proc/self/mounts")),
        "gpus": present,
        "gpu_links": [list(peer) for peer in map(astuple, cards.peers)],
        "gpu_problems": [problem._asdict() for problem in cards.problems],
        "compilers": _host.compilers(),
        "cpu_flags": _host.cpu_flags(_host.lines("/proc/cpuinfo")),
        "lease_dir": lease_dir,
        "leases": lease.holders([lease.CPU, *(gpu["uuid"] for gpu in present)], lease.directory(lease_dir)),
        "systemd": os.path.isdir("/run/systemd/system") and os.geteuid() == 0,
        "hub": _ask(hub, Path(place) / "models", here_now["models"]) if hub.get("model") else {},
        **here_now,
    }


def _ask(hub: t.Mapping[str, t.Any], folder: Path, whole: t.Container[str]) -> dict[str, t.Any]:
    from . import _hub  # a node compiles what it imports in each call, and few calls ask one

    given = _hub.Access(hub.get("endpoint") or "", hub.get("token") or "")
    return _hub.facts(hub["model"], hub["revision"], folder, whole, given, hub.get("told") or {})


def runs(root: Path, name: str) -> dict[str, dict[str, t.Any]]:
    """The runs under the root whose name or id is `name` (all, when empty): state, request, resolved values, and which
    folder it shares with other nodes."""
    known = {}
    for folder in sorted((root / "runs").glob("*")):
        run = state.Run(folder)
        if name and name not in (folder.name, folder.name.rpartition("-")[0]):
            continue
        record = files.read_json(run.record)
        if record:
            known[run.id] = {
                "id": run.id,
                "state": state.observe(run),
                "request": record.get("request"),
                "resolved": record.get("resolved"),
                "created": record.get("created"),
                "shared": files.read_json(run.launch).get("shared", ""),
            }
    return known


def earlier(root: Path, wanted: t.Iterable[str]) -> dict[str, dict[str, t.Any]]:
    """The runs of these names or ids, and those that they began with."""
    found: dict[str, dict[str, t.Any]] = {}
    waiting = list(wanted)
    while waiting:
        for run_id, run in runs(root, waiting.pop()).items():
            if run_id not in found:
                found[run_id] = {**run, "left": left(root, run)}
                waiting += _EARLIER.findall(json.dumps(run["resolved"]))
    return found


def left(root: Path, run: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """What decides how much memory a run takes that begins with this one: the config.json of the model that it left, or
    of the one that its adapter is for, and that adapter."""
    results, model = root / "runs" / run["id"] / "output", (run["resolved"] or {}).get("model") or {}
    base = Path(_model_place.folder(model, str(root))) if {"name", "revision"} <= model.keys() else results
    return {"config": _model.config(results) or _model.config(base), "adapter": _model.adapter(results)}


def peaks(root: Path) -> dict[str, dict[str, t.Any]]:
    """What ranks of finished runs took of GPUs, beside what was predicted, where that is what they left; by id."""
    found = {}
    for folder in sorted((root / "runs").glob("*")):
        run = state.Run(folder)
        told = files.read_json(run.memory)
        if not told.get("predicted"):
            continue
        left = files.read_json(run.artefacts).get(str(run.memory.relative_to(run.path)))
        if isinstance(left, dict) and left.get("sha256") == files.sha256(run.memory):
            found[run.id] = told
    return found


def datasets(root: Path) -> list[str]:
    """The stored files, as `<folder>/<name>`, of the dataset folders whose content is as it was stored."""
    whole = [folder for folder in sorted((root / "datasets").glob("*")) if _sealed.intact(folder)]
    return [f"{folder.name}/{name}" for folder in whole for name in sorted(_sealed.stored(folder))]


def media_sets(root: Path) -> list[str]:
    """Names of the media sets that are as they were stored."""
    return [folder.name for folder in sorted((root / "media").glob("*")) if _sealed.intact(folder)]


def models(root: Path) -> list[str]:
    """Names of the model folders, made here or fetched, that are whole."""
    return [folder.name for folder in sorted((root / "models").glob("[!.]*@*")) if _sealed.whole(folder)]


def trained_files(folder: Path) -> list[str]:
    """Which of the files that make an adapter or a reward model are in the folder, as far as the account may look;
    `.` where it is a file itself."""
    return [
        name
        for name in (".", "value_head.safetensors", "adapter_config.json", "config.json")
        if os.path.isfile(folder / name)
    ]
