# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""GPUs tried out by the torch of an environment: nvidia-smi lists cards on which every program fails."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import signal
import typing as t
from pathlib import Path

from .. import _env
from .._engine import files
from .._errors import FinetuneError
from . import card, tool, verify_job

STEPS = ("context", "memory", "float32", "bfloat16")
"""What is done on each GPU, in this order; float16 stands for bfloat16 before compute capability 8.0."""

Device = dict[str, t.Any]


class Row(t.NamedTuple):
    """One step on one GPU or pair of GPUs. ok: None where it was not done."""

    gpu: str
    what: str
    ok: bool | None
    why: str = ""
    figures: dict[str, t.Any] = {}  # noqa: RUF012 - never changed

    def as_dict(self) -> dict[str, t.Any]:
        return self._asdict()


def job() -> str:
    """The job as text; read by the login user, who alone may look into what Ansible brought to the node."""
    return inspect.getsource(verify_job)


def environment(asked: str, root: str) -> str:
    """The environment to do it with: as asked, else that of the newest run, else the newest."""
    if asked:
        if not os.access(f"{asked}/bin/python", os.X_OK):
            raise FinetuneError(
                f"There is no environment in {asked}.",
                where="environment",
                change="name a folder that has bin/python and torch",
            )
        return asked
    folder = Path(root)
    runs = [files.read_json(path) for path in folder.glob("runs/*/run.json")]
    runs.sort(key=lambda run: float(run.get("created") or 0), reverse=True)
    digests = [((run.get("resolved") or {}).get("environment") or {}).get("digest") for run in runs]
    recorded = [Path(_env.environment_path(root, digest)) for digest in digests if digest]
    marked = sorted(folder.glob(f"envs/*/{_env.MARK}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for place in (*recorded, *(mark.parent for mark in marked)):
        if (place / _env.MARK).is_file():
            return str(place)
    raise FinetuneError(
        f"There is no environment with torch below {root} to verify GPUs with.",
        where="environment",
        change="make one (playbook llmops.finetune.environment, or a first run), or name a folder that has bin/python",
    )


def verify(
    devices: t.Sequence[Device],
    held: t.Mapping[str, str],
    python: str,
    source: str,
    *,
    share: float,
    size: int,
    seconds: float,
    device: str = "cuda",
) -> list[Row]:
    """Try devices out beside each other, then each pair of whole GPUs that did well. held: by UUID, who has it now.
    share: of its free memory; size in bytes instead. seconds: for each of both rounds. source: what `job` gave."""
    rows = [Row(card.label(one), STEPS[0], None, held[one["uuid"]]) for one in devices if one["uuid"] in held]
    free = [one for one in devices if one["uuid"] not in held]
    asked = {"device": device, "share": share, "bytes": size}

    def command(chosen: t.Sequence[Device], *, together: bool) -> list[str]:
        question = {**asked, "visible": [one["uuid"] for one in chosen], "together": together}
        return [python, "-I", "-c", source, json.dumps(question)]

    answers = tool.ask({one["uuid"]: command([one], together=False) for one in free}, seconds, _variables())
    done = {one["uuid"]: alone(card.label(one), answers[one["uuid"]], seconds) for one in free}
    rows += [row for found in done.values() for row in found]
    well = [one for one in free if "slice" not in one and all(row.ok for row in done[one["uuid"]])]
    if len(well) > 1:
        answer = tool.ask({"": command(well, together=True)}, seconds, _variables())[""]
        rows += pairs([card.label(one) for one in well], answer, seconds)
    return rows


def _variables() -> dict[str, str]:
    """Ours without what leads Python elsewhere: to Ansible's modules, or to another choice of GPUs."""
    ours = ("PYTHONPATH", "PYTHONHOME", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
    return {key: value for key, value in os.environ.items() if key not in ours}


def alone(gpu: str, answer: tool.Answer, seconds: float) -> list[Row]:
    """What the job said of one GPU. Pure, as `pairs`."""
    rows = [Row(gpu, *_found(said)) for said in _lines(answer.said)]
    if all(row.ok for row in rows) and len(rows) < len(STEPS):
        rows.append(Row(gpu, STEPS[len(rows)], False, ended(answer, seconds)))
    return rows


def pairs(names: t.Sequence[str], answer: tool.Answer, seconds: float) -> list[Row]:
    said = {tuple(one.get("pair", ())): one for one in _lines(answer.said)}
    rows: list[Row] = []
    for two in range(len(names)):
        for one in range(two):
            gpu = f"{names[one]}-{names[two]}"
            if (one, two) in said:
                rows.append(Row(gpu, *_found(said[one, two])))
            elif any(row.why.startswith(_NO_ANSWER) or row.ok is None for row in rows):
                rows.append(Row(gpu, "peer", None, "the one before did not come to an end"))
            else:
                rows.append(Row(gpu, "peer", False, f"{_NO_ANSWER}: {ended(answer, seconds)}"))
    return rows


_NO_ANSWER = "no answer"


def _lines(text: str) -> list[dict[str, t.Any]]:
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict) and "what" in value:
                found.append(value)
    return found


def _found(said: dict[str, t.Any]) -> tuple[str, bool, str, dict[str, t.Any]]:
    figures = {key: value for key, value in said.items() if key not in ("what", "ok", "why", "pair")}
    return str(said["what"]), bool(said["ok"]), str(said.get("why", "")), figures


def ended(answer: tool.Answer, seconds: float) -> str:
    """Why a job said no more."""
    if answer.stuck:
        return f"it waits in the kernel and cannot be ended (process {', '.join(map(str, answer.stuck))})"
    if answer.code is None:
        return f"it was not done after {seconds:g} s and was ended"
    last = next((line.strip() for line in reversed(answer.complained.splitlines()) if line.strip()), "")
    if answer.code < 0:
        with contextlib.suppress(ValueError):
            return f"it was ended by {signal.Signals(-answer.code).name}" + (f": {last}" if last else "")
    return last or f"it ended with status {answer.code}"


_WORDS = {None: "not tried", True: "ok", False: "FAILED"}


def table(rows: t.Sequence[Row]) -> list[str]:
    """A line for each GPU and pair, as a person reads it."""
    lines = []
    for gpu in dict.fromkeys(row.gpu for row in rows):
        mine = [row for row in rows if row.gpu == gpu]
        bad = next((row for row in mine if not row.ok), None)
        named = f"GPUs {gpu}" if mine[0].what == "peer" else f"GPU {gpu}"
        if bad:
            lines.append(f"{named:<10} {_WORDS[bad.ok]}: {bad.what}, {bad.why}")
        elif mine[0].what == "peer":
            way = "directly" if mine[0].figures.get("direct") else "by way of the host"
            lines.append(f"{named:<10} ok: bytes are the same, copied {way}")
        else:
            size = next((row.figures["bytes"] for row in mine if "bytes" in row.figures), 0)
            lines.append(
                f"{named:<10} ok: {', '.join(row.what for row in mine)} ({size / 2**30:.1f} GiB written and read)"
            )
    return lines


def refuse(rows: t.Sequence[Row]) -> None:
    """A GPU that failed is an error with the table; one that is in use is none."""
    if any(row.ok is False for row in rows):
        raise FinetuneError(
            "GPUs failed when they were tried out; nvidia-smi's word is not enough.",
            where="\n          ".join(table(rows)),
            change="leave them out (train_gpus), reset them or reboot; the kernel's log (NVRM, Xid) tells more",
        )
