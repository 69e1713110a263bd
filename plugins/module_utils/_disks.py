# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks of a host as one fast place: which ones, what is on them, and the commands that make and mount it.

Pure, but for `look` and `carry_out`. Nothing that holds anything of somebody else's is ever written to.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import typing as t
from pathlib import Path

from ._errors import FinetuneError

INSTANCE_STORE = "instance_store"
_MODELS = ("Amazon EC2 NVMe Instance Storage",)
"""What the disks of an instance call themselves that are blank after it was stopped. EBS is another model."""
LABEL = "llmops"
ARRAY = f"/dev/md/{LABEL}"
FSTAB = Path("/etc/fstab")
_COLUMNS = "PATH,SIZE,MODEL,MOUNTPOINTS,RO"


class Disk(t.NamedTuple):
    path: str
    model: str
    size: int
    kind: str
    """Of what is on it: ext4, linux_raid_member, gpt, several with commas. Empty where there is nothing."""
    label: str
    mounts: tuple[str, ...]
    read_only: bool
    below: tuple[Disk, ...]
    """Partitions and arrays on it."""


class Plan(t.NamedTuple):
    volume: str
    """What is mounted: the disk, or the array of several."""
    disks: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...]
    """In their order; none where all is as it should be."""


def read(text: str, content: t.Callable[[str], tuple[str, str]]) -> list[Disk]:
    """What `lsblk --json --bytes` prints. content: kind and label of what is on a device."""

    def disk(told: t.Mapping[str, t.Any]) -> Disk:
        return Disk(
            told["path"],
            str(told.get("model") or "").strip(),
            int(told.get("size") or 0),
            *content(told["path"]),
            tuple(filter(None, told.get("mountpoints") or ())),
            bool(told.get("ro")),
            tuple(disk(child) for child in told.get("children") or ()),
        )

    return [disk(told) for told in json.loads(text)["blockdevices"]]


def plan(disks: t.Sequence[Disk], devices: t.Sequence[str], mount: str, *, occupied: bool) -> Plan:
    """How the devices come to be one file system at `mount`. devices: paths, or INSTANCE_STORE for all such disks.
    occupied: there are files in the folder already, which would be hidden."""
    chosen = _chosen(disks, devices)
    paths = tuple(disk.path for disk in chosen)
    volume = chosen[0] if len(chosen) == 1 else _array(chosen)
    there = _mounted_at(disks, mount)
    if there and (not volume or there.path != volume.path):
        raise FinetuneError(f"{there.path} is mounted at {mount}.", where="mount", change="name another folder")
    if volume and there:
        return Plan(volume.path, paths, ())
    if volume and volume.mounts:
        raise FinetuneError(
            f"{volume.path} is mounted at {', '.join(volume.mounts)} already.",
            where="devices",
            change="unmount it, or name that folder",
        )
    if occupied:
        raise FinetuneError(
            f"There are files in {mount}, which a disk that is mounted there would hide.",
            where="mount",
            change="move them away, or name a folder that is empty or not there",
        )
    mounting = ("mount", "-o", "noatime", volume.path if volume else ARRAY, mount)
    if volume and (volume.kind, volume.label) == ("ext4", LABEL):
        return Plan(volume.path, paths, (mounting,))
    _refuse_others(chosen)
    if all(disk.kind == "linux_raid_member" for disk in chosen):
        return Plan(ARRAY, paths, (("mdadm", "--assemble", ARRAY, *paths), mounting))
    commands = []
    target = paths[0]
    if len(chosen) > 1:
        target = ARRAY
        number = f"--raid-devices={len(paths)}"
        commands.append(("mdadm", "--create", ARRAY, "--run", "--level=0", number, f"--name={LABEL}", *paths))
    commands.append(("mkfs.ext4", "-q", "-m", "0", "-L", LABEL, target))
    return Plan(target, paths, (*commands, mounting))


def fstab(text: str, mount: str) -> str:
    """/etc/fstab with the line by which it is mounted again; a host starts without the disk too."""
    where = mount.replace(" ", "\\040")
    line = f"LABEL={LABEL} {where} ext4 defaults,noatime,nofail,x-systemd.device-timeout=30s 0 2"
    if line in text.splitlines():
        return text
    kept = [each for each in text.splitlines() if not each.startswith(f"LABEL={LABEL} ")]
    return "\n".join([*kept, line]) + "\n"


def _chosen(disks: t.Sequence[Disk], devices: t.Sequence[str]) -> list[Disk]:
    if list(devices) == [INSTANCE_STORE]:
        found = [disk for disk in disks if disk.model in _MODELS]
        missing = [] if found else ["disk of the instance's own"]
    else:
        known = {disk.path: disk for disk in disks}
        found = [known[path] for path in devices if path in known]
        missing = [path for path in devices if path not in known]
    if missing or not found:
        raise FinetuneError(
            f"This host has no {' and no '.join(missing) or 'disk that is meant'}.",
            where="devices",
            change=f"name whole disks that it has: {', '.join(disk.path for disk in disks) or 'there is none'}",
        )
    for disk in found:
        if disk.read_only:
            raise FinetuneError(f"{disk.path} can only be read.", where="devices", change="leave it out")
    return sorted(found)


def _array(chosen: t.Sequence[Disk]) -> Disk | None:
    """The one array that all of them are in, and nothing else is on them."""
    below = {disk.below for disk in chosen}
    common = below.pop() if len(below) == 1 else ()
    return common[0] if len(common) == 1 and all(disk.kind == "linux_raid_member" for disk in chosen) else None


def _mounted_at(disks: t.Iterable[Disk], mount: str) -> Disk | None:
    for disk in disks:
        if mount in disk.mounts:
            return disk
        if found := _mounted_at(disk.below, mount):
            return found
    return None


def _refuse_others(chosen: t.Sequence[Disk]) -> None:
    """Blank ones are made into a place, and all members of our array are put together. Anything else is refused."""
    ours = [disk for disk in chosen if disk.kind == "linux_raid_member" and disk.label.rpartition(":")[2] == LABEL]
    blank = [disk for disk in chosen if not (disk.kind or disk.below or disk.mounts)]
    if blank == list(chosen) or (ours == list(chosen) and len(ours) > 1 and not any(disk.below for disk in ours)):
        return
    rows = [f"{disk.path}: {_content(disk)}" for disk in chosen]
    raise FinetuneError(
        "There is something on a disk, and none that may hold anything is written to.",
        where="devices\n          " + "\n          ".join(rows),
        change="leave it out; or, if nothing on it is needed, `wipefs --all` it and what is below it, and run again",
    )


def _content(disk: Disk) -> str:
    told = [disk.kind, f"label {disk.label}" if disk.label else "", *(f"at {mount}" for mount in disk.mounts)]
    told += [f"{below.path} ({_content(below)})" for below in disk.below]
    return ", ".join(filter(None, told)) or "blank"


# On a host


def signatures(text: str) -> tuple[str, str]:
    """Kind and label by what `wipefs --no-act --json` prints: nothing at all where there is nothing."""
    found = json.loads(text)["signatures"] if text.strip() else []
    kinds = dict.fromkeys(str(each["type"]) for each in found)
    return ", ".join(kinds), next((each["label"] for each in found if each.get("label")), "")


def look() -> list[Disk]:
    """What is on a device is read from itself: lsblk believes udev, which may not be there."""

    def content(path: str) -> tuple[str, str]:
        command = ["wipefs", "--no-act", "--json", "--output", "TYPE,LABEL", path]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return ("unreadable", "") if done.returncode else signatures(done.stdout)

    command = ["lsblk", "--json", "--bytes", "--output", _COLUMNS]
    try:
        return read(subprocess.run(command, capture_output=True, text=True, check=True).stdout, content)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise FinetuneError(
            f"The disks cannot be listed: {error}.", where="lsblk, wipefs", change="install util-linux"
        ) from None


def refuse_without_tools(wanted: Plan) -> None:
    """Before anything is written."""
    lacks = sorted({command[0] for command in wanted.commands if not shutil.which(command[0])})
    if lacks:
        raise FinetuneError(
            f"This host has no {' and no '.join(lacks)}.",
            where="devices",
            change="install mdadm (several disks are striped by it) and e2fsprogs, or name one disk",
        )


def carry_out(wanted: Plan) -> None:
    for command in wanted.commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise FinetuneError(
                f"{command[0]} failed.", where=(done.stderr or done.stdout).strip()[-500:], change="see what it says"
            )
