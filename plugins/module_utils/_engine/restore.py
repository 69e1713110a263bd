# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetches the newest checkpoint of a run from S3: `python -m engine.restore` in the run's folder, by the Python of
node-store, before an attempt begins.

It takes its place when all that this node needs of it is here and has the digests of its manifests. One that was cut
goes on where it was. The last line that is printed says what came of it. Arguments: `--look` fetches nothing;
`--lacking` says that another node has nothing of the run, so that a newer checkpoint here may be of no use.
"""

from __future__ import annotations

import os
import shutil
import sys
import typing as t
from pathlib import Path

from . import bucket, checkpoint, files, store
from .state import Run

TRIES = 3
"""A checkpoint that is outlived while it is fetched is gone: then the newest is another one."""


def wanted(manifests: t.Iterable[str], local: t.Collection[int], *, lacking: bool) -> store.Save | None:
    """The checkpoint to fetch. manifests: names of those that are there; local: steps of whole ones on this node."""
    newest = max(store.complete(manifests), default=None)
    if newest is None or newest.step in local:
        return None
    return newest if lacking or newest.step > max(local, default=0) else None


def fetch(run: Run, place: bucket.Bucket, save: store.Save, nodes: int, launch: t.Mapping[str, t.Any]) -> Path:
    """Returns where it is."""
    manifests = [place.read(save.manifest(node, nodes)) for node in range(nodes)]
    if not all(manifests):
        raise bucket.Refused("a manifest is gone", gone=True)
    shared = bool(launch.get("shared"))
    here, there = (0, 1) if shared else (int(launch["node_rank"]), int(launch["nnodes"]))
    try:
        needed, saved = store.needed_by(here, there, manifests)
    except KeyError as error:
        raise bucket.Damaged(f"no manifest tells of {error}") from None
    partial = run.output / f".checkpoint-{save.name}"
    folder = partial / f"checkpoint-{save.step}"
    place.bring_all(save.files, folder, needed, f"checkpoint {save.step}", "its manifest")
    log = next((manifest["files"][store.LOG] for manifest in manifests if store.LOG in manifest["files"]), None)
    if log and not run.trainer_log.exists():
        if not place.bring(save.files + store.LOG, partial / store.LOG, log):
            raise bucket.Damaged(f"{store.LOG} of checkpoint {save.step} in the store is not what its manifest says")
        os.replace(partial / store.LOG, run.trainer_log)
    checkpoint.mark(folder, saved, save.save)
    final = run.output / folder.name
    if final.exists():
        checkpoint.remove(final)  # not whole, or it would have been kept
    os.replace(folder, final)
    files.sync_directory(run.output)
    shutil.rmtree(partial)
    return final


def record(run: Run, place: bucket.Bucket, *, look: bool) -> bool:
    """What the run is, for hosts that are not there yet; and the proof that this node may write there. Whether it was
    to be written."""
    mine = files.read_json(run.record)
    told = {key: mine.get(key) for key in ("run", "request", "resolved", "created")}
    before = place.read(store.RECORD)
    same = all(before.get(key) == told[key] for key in ("request", "resolved"))
    if not same and not look:
        place.write(store.RECORD, {**told, "created": before.get("created") or told["created"]})
    return not same


def work(run: Run, *, look: bool, lacking: bool) -> dict[str, t.Any]:
    launch = files.read_json(run.launch)
    place = bucket.Bucket(launch["store"]["url"])
    for attempt in range(TRIES):
        names = place.names(store.MANIFESTS)
        whole = {checkpoint.step_of(path) for path in checkpoint.found(run.output) if checkpoint.is_complete(path)}
        save = wanted(names, whole, lacking=lacking) if launch.get("resumes", True) else None
        if look or not save:
            break
        try:
            fetch(run, place, save, store.nodes_of(save, names), launch)
            break
        except bucket.Refused as error:
            if not error.gone or attempt == TRIES - 1:
                raise
    return {"step": save.step if save else 0, "record": not launch["node_rank"] and record(run, place, look=look)}


def main() -> int:
    run, look = Run(Path.cwd()), "--look" in sys.argv

    def answer() -> dict[str, t.Any]:
        if not look and files.lock(run.upload_lock, patience=60) is None:
            raise bucket.Refused("another process is at work on the same run")
        return work(run, look=look, lacking="--lacking" in sys.argv)

    return bucket.answer(answer)


if __name__ == "__main__":
    raise SystemExit(main())
