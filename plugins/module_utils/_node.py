# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node is: its user and root, its processors and GPUs, and what lies under the root. Reads, never writes."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import re
import shutil
import socket
import stat
import struct
import subprocess
import typing as t
from pathlib import Path
from types import MappingProxyType

from . import _checker, _dataset, _hub, _model, _output, _records, _user
from ._engine import files, lease, state
from ._env import RANKS_PATH
from ._errors import FinetuneError
from ._media import Media

NOTHING: dict[str, t.Any] = {
    "runs": {},
    "datasets": [],
    "media": [],
    "models": [],
    "sources": [],
    "model_missing": False,
    "folders": {},
    "model": {},
    "output_root": {"why": "", "runs": []},
    "before": {},
}
"""What lies under the root of an account that is still to be made."""
_EARLIER = re.compile(rf"\b{state.EARLIER}([a-z0-9._-]+)")
"""A run in what another one was resolved to."""
_SIOCGIFADDR, _SIOCGIFNETMASK = 0x8915, 0x891B
_GPU_QUERY = ("index", "uuid", "name", "memory.total", "compute_cap", "driver_version")


def facts(
    user: str,
    root: str,
    name: str,
    here: t.Sequence[_dataset.Dataset],
    stage: str = "sft",
    lease_dir: str = "",
    model: str = "",
    media: Media = _records.UNKNOWN,
    folders: t.Sequence[str] = (),
    output_root: str = "",
    before: t.Sequence[str] = (),
    hub: t.Mapping[str, str] = MappingProxyType({}),
) -> dict[str, t.Any]:
    """The facts the plan needs.

    name: only runs of this name are read. here: datasets that lie on the node, to digest and check for the stage.
    lease_dir: where the leases are, empty for the host's one place. model: of the run, looked into where it is a path.
    hub: model and revision of a hub, which is asked for the commit by its endpoint and token.
    folders: where adapters and reward models are. media: what is known of them besides that they are here.
    output_root: where all nodes are to have their results. before: names or ids of runs that this one begins with.
    """
    present = gpus()
    login = _user.login()
    account = _user.run_user(user, login)
    there = _user.exists(account)
    if not there and account != _user.DEFAULT_ACCOUNT:
        _user.lookup(account)
    place = _user.expand(root, account)
    parts = _checker.sources() if here else {}

    def source(dataset: _dataset.Dataset) -> dict[str, t.Any]:
        path = Path(dataset.where).expanduser()
        if not path.is_file():
            return {"name": dataset.name, "missing": True}
        answer = _checker.check(path, dataset, stage, media._replace(here=True), Path(place), parts)
        return {"name": dataset.name, "missing": False, "path": str(path), "digest": files.sha256(path), **answer}

    def read() -> dict[str, t.Any]:
        refuse_unusable(Path(place))
        found = model.startswith("/") and (Path(model) / "config.json").is_file()
        return {
            "runs": runs(Path(place), name),
            "before": earlier(Path(place), before),
            "datasets": datasets(Path(place)),
            "media": media_sets(Path(place)),
            "models": models(Path(place)),
            "folders": {folder: trained_files(Path(folder)) for folder in folders},
            "model_missing": model.startswith("/") and not found,
            "model": _model.facts(Path(model)) if found else {},
            "sources": [source(dataset) for dataset in here],
            "output_root": _output.facts(output_root, name),
        }

    here_now = _user.as_user(account, read) if there else NOTHING
    return {
        "login": login,
        "user": account,
        "account_exists": there,
        "root": place,
        "hostname": socket.gethostname(),
        "interfaces": interfaces(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "disk_free": _disk_free(place),
        "storage": storage(place, _lines("/proc/self/mounts")),
        "gpus": present,
        "compilers": compilers(),
        "cpu_flags": cpu_flags(_lines("/proc/cpuinfo")),
        "lease_dir": lease_dir,
        "leases": lease.holders([lease.CPU, *(gpu["uuid"] for gpu in present)], lease.directory(lease_dir)),
        "systemd": os.path.isdir("/run/systemd/system") and os.geteuid() == 0,
        "hub": _ask(hub, Path(place) / "models", here_now["models"]) if hub.get("model") else {},
        **here_now,
    }


def _ask(hub: t.Mapping[str, str], folder: Path, whole: t.Container[str]) -> dict[str, t.Any]:
    given = _hub.Access(hub.get("endpoint") or "", hub.get("token") or "")
    return _hub.facts(hub["model"], hub["revision"], folder, whole, given)


def refuse_unusable(root: Path) -> None:
    """A root that is a file or in one, or that the account may not look into."""
    try:
        there = next(path for path in (root, *root.parents) if path.exists())
        if not there.is_dir():
            raise FinetuneError(f"{there} is no folder.", where="train_root", change="name a folder")
        next((root / "runs").glob("*"), None)
        (root / "runs").exists()
    except PermissionError as error:
        raise FinetuneError(
            f"{_user.login()} may not look into {error.filename}.",
            where="train_root",
            change="choose a folder that the account may use, or let it in",
        ) from None


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
                found[run_id] = run
                waiting += _EARLIER.findall(json.dumps(run["resolved"]))
    return found


def datasets(root: Path) -> list[str]:
    """The stored files, as `<folder>/<name>`, of the dataset folders whose content is as it was stored."""
    whole = [folder for folder in sorted((root / "datasets").glob("*")) if intact(folder)]
    return [f"{folder.name}/{name}" for folder in whole for name in sorted(stored(folder))]


def media_sets(root: Path) -> list[str]:
    """Names of the media sets that are as they were stored."""
    return [folder.name for folder in sorted((root / "media").glob("*")) if intact(folder)]


def stored(folder: Path) -> dict[str, dict[str, t.Any]]:
    """The files that manifest.json names, with digest, size and time; none when there is no manifest."""
    entries = files.read_json(folder / "manifest.json").get("files")
    return entries if isinstance(entries, dict) else {}


def intact(folder: Path) -> bool:
    """Every file that manifest.json names has the digest it names; a file untouched since is not read again."""
    entries = stored(folder)
    for name, was in entries.items():
        path = os.path.join(folder, name)
        try:
            now = os.stat(path)
        except OSError:
            return False
        if not stat.S_ISREG(now.st_mode) or now.st_size != was["size"]:
            return False
        if now.st_ctime_ns != was["ctime_ns"] and files.sha256(Path(path)) != was["sha256"]:
            return False
    return bool(entries)


def seal(folder: Path, names: t.Iterable[str], known: t.Mapping[str, str] | None = None) -> None:
    """Write the manifest that `intact` reads. known: digests that need not be computed."""
    entries = {}
    for name in names:
        now = (folder / name).stat()
        digest = (known or {}).get(name) or files.sha256(folder / name)
        entries[name] = {"sha256": digest, "size": now.st_size, "ctime_ns": now.st_ctime_ns}
    files.write_json(folder / "manifest.json", {"files": entries})


def models(root: Path) -> list[str]:
    """Names of the model folders, made here or fetched, that are whole."""
    return [folder.name for folder in sorted((root / "models").glob("[!.]*@*")) if _whole(folder)]


def _whole(folder: Path) -> bool:
    made = files.read_json(folder / "manifest.json").get("identity")
    return model_intact(folder, folder.name.partition("@")[2]) if made else intact(folder)


def model_intact(folder: Path, identity: str) -> bool:
    """Made by the recipe `identity`, and every file has the digest it was left with."""
    manifest = files.read_json(folder / "manifest.json")
    if not manifest.get("files"):
        return False
    return manifest.get("identity") == identity and all(
        (folder / name).is_file() and files.sha256(folder / name) == digest
        for name, digest in manifest["files"].items()
    )


def trained_files(folder: Path) -> list[str]:
    """Which of the files that make an adapter or a reward model are in the folder, as far as the account may look;
    `.` where it is a file itself."""
    return [
        name
        for name in (".", "value_head.safetensors", "adapter_config.json", "config.json")
        if os.path.isfile(folder / name)
    ]


def compilers() -> list[str]:
    """What of c++ and nvcc ranks would find to build with."""
    toolkit = Path("/usr/local/cuda/bin")  # where torch looks besides
    return [name for name in ("c++", "nvcc") if shutil.which(name, path=f"{RANKS_PATH}:{toolkit}")]


def cpu_flags(cpuinfo: t.Iterable[str]) -> list[str]:
    """What of AVX2, AVX-512 and AMX the first CPU has."""
    flags = next((line for line in cpuinfo if line.startswith("flags")), "").split()
    return [flag for flag in ("avx2", "avx512f", "amx_tile") if flag in flags]


def gpus() -> list[dict[str, t.Any]]:
    """NVIDIA GPUs by index; none when there is no driver to ask. memory in bytes, compute_capability as a number."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return []
    query = [tool, f"--query-gpu={','.join(_GPU_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse_gpus(answer.stdout) if answer.returncode == 0 else []


def parse_gpus(text: str) -> list[dict[str, t.Any]]:
    """The answer of nvidia-smi to `_GPU_QUERY` in CSV; a field that is `[N/A]` is 0."""
    found = []
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(row) == len(_GPU_QUERY):
            index, uuid, name, memory, capability, driver = row
            found.append(
                {
                    "index": int(_float(index)),
                    "uuid": uuid,
                    "name": name,
                    "memory": int(_float(memory) * 2**20),
                    "compute_capability": _float(capability),
                    "driver": driver,
                }
            )
    return found


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def interfaces() -> list[dict[str, t.Any]]:
    """Interfaces that are up and have an IPv4 address: name, address, prefix, speed in Mbit/s (0 where unknown), and
    whether the default route leaves by it."""
    found = []
    routes = _lines("/proc/net/route")
    by_default = {fields[0] for fields in map(str.split, routes) if len(fields) > 1 and fields[1] == "00000000"}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for name in (pair[1] for pair in socket.if_nameindex()):
            request = struct.pack("256s", name.encode()[:15])
            try:
                address, mask = (
                    socket.inet_ntoa(fcntl.ioctl(probe, call, request)[20:24])
                    for call in (_SIOCGIFADDR, _SIOCGIFNETMASK)
                )
            except OSError:
                continue
            speed = (_lines(f"/sys/class/net/{name}/speed") or ["0"])[0]
            found.append(
                {
                    "name": name,
                    "address": address,
                    "prefix": sum(int(part).bit_count() for part in mask.split(".")),
                    "speed": max(0, int(_float(speed))),
                    "default": name in by_default,
                }
            )
    return found


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


_NETWORKED = ("nfs", "cifs", "smb", "lustre", "ceph", "gluster", "fuse.", "gpfs", "beegfs", "9p", "virtiofs", "afs")


def storage(path: str, mounts: t.Sequence[str]) -> str:
    """Where in a network's storage `path` is, as `source/folder`: the same on every host that has it. Empty where the
    disk is the host's own. mounts: the lines of /proc/mounts."""
    found = ("", "", "")
    for line in mounts:
        source, point, kind = [field.replace("\\040", " ") for field in line.split()[:3]]
        inside = point.rstrip("/") + "/"
        if f"{path}/".startswith(inside) and len(inside) >= len(found[1]):
            found = (source, inside, kind)
    if not found[2].startswith(_NETWORKED):
        return ""
    return f"{found[0].rstrip('/')}/{path[len(found[1]) :]}".rstrip("/")


def _disk_free(path: str) -> int:
    """Free bytes where `path` is or will be."""
    folder = Path(path)
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
