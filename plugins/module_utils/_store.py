# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checkpoints and results of a run in S3 (train_store): what the plan decides of it, and what staging does on a node.

How they lie there, and who sends what, is in _engine/store.py.
"""

from __future__ import annotations

import json
import re
import subprocess
import typing as t
from pathlib import Path

from . import _hub, _workshop
from ._changes import Changes
from ._engine import files, progress, state, store
from ._env import environment_path
from ._errors import FinetuneError

ENVIRONMENT = "store"
"""The profile of the environment that speaks to S3."""
NOTICES = ("interruption", "rebalance")
"""What train_spot_notices may name."""
_OLDER = (
    "it is not gone on with; to take the one before it, remove what is below manifests/ of it there, and apply again"
)
_URL = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[\w.!*'()/=-]*)?")

Facts = t.Mapping[str, dict[str, t.Any]]
Spec = t.Mapping[str, t.Any]


# Decided


def read(url: str, where: str = "train_store") -> str:
    """A place in S3 as it counts; empty for none. where: the variable."""
    if url and not _URL.fullmatch(url):
        raise FinetuneError(
            f"{url!r} is no place in S3.",
            where=where,
            change="write s3://bucket or s3://bucket/prefix, with letters, digits and -_.=/ in the prefix",
        )
    return url.rstrip("/")


def unrecorded(run_id: str, facts: Facts) -> bool:
    """Whether the first host, from whose record a plan is made, has none of the run: the store may have it."""
    return run_id not in next(iter(facts.values()))["runs"]


def with_record(run_id: str, record: t.Mapping[str, t.Any], facts: Facts, output_root: str) -> Facts:
    """Facts in which hosts without the run know what the store has recorded of it: there it was interrupted."""
    if not record.get("resolved"):
        return facts
    known = {
        "id": run_id,
        "state": "interrupted",
        "elsewhere": True,
        "shared": f"{output_root}/{run_id}" if output_root else "",
        **{key: record.get(key) for key in ("request", "resolved", "created")},
    }
    return {
        host: node if run_id in node["runs"] else {**node, "runs": {**node["runs"], run_id: known}}
        for host, node in facts.items()
    }


def is_fresh(run_id: str, node: t.Mapping[str, t.Any]) -> bool:
    """Whether a host has nothing of the run."""
    run = node["runs"].get(run_id)
    return run is None or bool(run.get("elsewhere"))


def plan(url: str, run_id: str) -> dict[str, str]:
    """What the plan says of it. url: train_store."""
    return {"url": f"{url}/{run_id}"} if url else {}


def speaker(plan: t.Mapping[str, str], model: t.Mapping[str, str], facts: Facts, digest: str) -> dict[str, str]:
    """The lock of what speaks to S3, where there is a store, or a host lacks a model that is there. plan: of the store;
    model: as resolved; facts: of hosts that are about to start; digest: of the lock."""
    name, revision = model["name"], model["revision"]
    lacks = _hub.of_s3(name) and any(_hub.folder_name(name, revision) not in node["models"] for node in facts.values())
    return {"lock": f"node-{ENVIRONMENT}.txt", "digest": digest} if plan or lacks else {}


def python(speaks: t.Mapping[str, str], root: str) -> str:
    """What speaks to S3 on a node. speaks: as `speaker` has it."""
    return f"{environment_path(root, speaks['digest'])}/bin/python"


def notices(plan: t.Mapping[str, str], *, removed_in_part: bool) -> list[str]:
    """What the plan says where only some hosts of a run remove it."""
    if not plan or not removed_in_part:
        return []
    return [f"{plan['url']} stays: hosts of the run are left out, and it is theirs too."]


def on_node(
    plan: t.Mapping[str, str], speaks: t.Mapping[str, str], arguments: t.Mapping[str, t.Any], root: str
) -> dict[str, t.Any]:
    """What of it is in launch.json. plan: of the store; arguments: LLaMA-Factory's."""
    return {"url": plan["url"], "python": python(speaks, root), "keep": arguments.get("save_total_limit") or 0}


# On a node


def stage(run: state.Run, spec: Spec, changes: Changes, secrets: t.Mapping[str, str], *, now: str) -> None:
    """Before a start, the newest checkpoint of the store is here unless there is a newer one. After the end, the
    results are in the store."""
    told = spec["launch"].get("store")
    if not told or (spec["launch"].get("shared") and spec["launch"]["node_rank"]) or not Path(told["python"]).exists():
        return  # the last in check mode alone
    if now == "finished":
        if (
            not spec["launch"]["node_rank"]
            and not progress.has_results(run, told["url"])
            and changes.add("create", told["url"])
        ):
            _run(spec, run.path, "upload", secrets, "--end", "0")
            if not progress.has_results(run, told["url"]):
                raise _refusal(str(files.read_json(run.stored).get("error")), told["url"])
        return
    lacking = ["--lacking"] if spec["lacking"] else []
    found = _look(run, spec, secrets, *lacking)
    if found["step"]:
        changes.add("fetch", run.output / f"checkpoint-{found['step']}")
    if found["record"]:
        changes.add("update", f"{told['url']}/{store.RECORD}")
    if (found["step"] or found["record"]) and not changes.dry:
        _answer(_run(spec, run.path, "restore", secrets, *lacking), told["url"])


def ask(
    spec: Spec, workshop: Path, module: str, secrets: t.Mapping[str, str], url: str, *arguments: str, change: str
) -> dict[str, t.Any]:
    """What a module of the engine says of a place in S3. change: where that is damaged."""
    return _answer(_run(spec, workshop, module, secrets, url, *arguments), url, change)


def _look(run: state.Run, spec: Spec, secrets: t.Mapping[str, str], *arguments: str) -> dict[str, t.Any]:
    """What a fetch would bring, also where nothing of the run is staged yet, as in check mode."""
    with _workshop.Workshop(run.path.parents[1] / run.id, spec) as workshop:
        files.write_json(workshop / run.launch.name, spec["launch"])
        files.write_json(workshop / run.record.name, {key: spec[key] for key in ("request", "resolved")})
        if run.output.exists():
            (workshop / run.output.name).symlink_to(run.output)
        done = _run(spec, workshop, "restore", secrets, "--look", *arguments)
        return _answer(done, spec["launch"]["store"]["url"])


def remove(run: state.Run, spec: Spec, changes: Changes, secrets: t.Mapping[str, str]) -> None:
    """The run is to begin from nothing when it is asked for again: what the store has of it goes as well."""
    told = spec["launch"].get("store")
    if not told or spec["launch"]["node_rank"] or (changes.dry and not Path(told["python"]).exists()):
        return
    with _workshop.Workshop(run.path.parents[1] / run.id, spec) as workshop:

        def forget(*look: str) -> int:
            return int(_answer(_run(spec, workshop, "forget", secrets, told["url"], *look), told["url"])["objects"])

        if forget("--look") and changes.add("remove", told["url"]):
            forget()


def _run(
    spec: Spec, folder: Path, module: str, secrets: t.Mapping[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    """A module of the engine, by the Python that has boto3."""
    return _workshop.run(spec, folder, module, list(arguments), secrets, python=spec["launch"]["store"]["python"])


def _answer(done: subprocess.CompletedProcess[str], url: str, change: str = _OLDER) -> dict[str, t.Any]:
    try:
        told: dict[str, t.Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        told = {"refused": _workshop.last(done)}
    if "damaged" in told:
        raise FinetuneError(f"{told['damaged']}.", where=url, change=change)
    if "refused" in told:
        raise _refusal(str(told["refused"]), url)
    return told


def _refusal(why: str, url: str) -> FinetuneError:
    return FinetuneError(
        f"The store of the run cannot be used from this node: {why}.",
        where=f"train_store, {url}",
        change="see that the instance's role, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in train_secrets, may "
        "list, read, write and delete there; AWS_DEFAULT_REGION and AWS_ENDPOINT_URL_S3 there say where it is",
    )
