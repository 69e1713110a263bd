# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sends what a node has of a run to S3: `python -m engine.upload` in the run's folder, by the Python of node-store.

Runs beside the ranks, and sends each time the newest whole checkpoint: its files, then the manifest by which it counts.
With `--end SECONDS` it sends what is left, results too, and ends; it gives up when nothing went through for so long. It
may be killed at any moment: what is there already is not sent again, and what has no manifest does not count.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
import typing as t
from pathlib import Path

from . import bucket, checkpoint, files, store
from .state import Run

POLL_SECONDS = 2.0
RETRY_SECONDS = 15.0


class Sending:
    """The sender of one node. What it did is in the run's folder for others to read."""

    def __init__(self, run: Run, place: bucket.Bucket, launch: t.Mapping[str, t.Any]) -> None:
        self.run, self.place = run, place
        self.node = int(launch["node_rank"])
        self.keep = int(launch["store"]["keep"] or 0)
        self.resumes = bool(launch.get("resumes", True))
        self.told: dict[str, t.Any] = {**files.read_json(run.stored), "url": place.url, "sent": 0, "error": ""}
        self.written = 0.0
        names = place.names(store.MANIFESTS)
        self.manifests = set(names)
        self.newest = max(store.complete(names), default=None)

    def checkpoint(self) -> bool:
        """Send the newest whole checkpoint that is not there yet. Whether there was one."""
        path = checkpoint.newest_complete(self.run.output) if self.resumes else None
        mark = checkpoint.read_mark(path) if path else {}
        save = store.Save(int(mark.get("save", 0)), int(mark.get("step", 0)))
        nodes = len(mark.get("nodes") or [0])
        names = store.sent_by(self.node, mark) if mark else []
        if not path or not names or save.manifest(self.node, nodes) in self.manifests:
            return False
        if self.newest and save < self.newest:
            return False  # it went back behind what is there: that was begun later
        with contextlib.ExitStack() as opened:
            try:
                sources = {name: opened.enter_context(open(path / name, "rb")) for name in names}
            except OSError:
                return False  # it was removed meanwhile; the next turn finds a newer one
            if checkpoint.read_mark(path) != mark:
                return False  # opened while it was being removed
            self._send(save, nodes, mark, sources)
        self.tell(step=save.step, save=save.save)
        return True

    def _send(self, save: store.Save, nodes: int, mark: dict[str, t.Any], sources: t.Mapping[str, t.BinaryIO]) -> None:
        """What is open stays to be read when the names are gone: a checkpoint that is outlived is sent to its end."""
        there = self.place.names(save.files)
        sent = {}
        for name, file in sources.items():
            digest, size = digest_of(file), os.fstat(file.fileno()).st_size
            if size != mark["files"][name]:
                raise bucket.Refused(f"{name} of checkpoint {save.step} is not as it was marked")
            if there.get(save.files + name) != size:
                self.place.send(save.files + name, file, size, digest, self._beat)
            sent[name] = {"sha256": digest, "size": size}
        if self.node == 0 and (log := _content(self.run.trainer_log)):
            digest = store.digest_of(log)
            self.place.send(save.files + store.LOG, io.BytesIO(log), len(log), digest, self._beat)
            sent[store.LOG] = {"sha256": digest, "size": len(log)}
        manifest = save.manifest(self.node, nodes)
        self.place.write(manifest, {**save._asdict(), "nodes": mark.get("nodes") or [], "files": sent})
        self.manifests.add(manifest)

    def tidy(self) -> None:
        """See what is whole there now; what that outlives goes, by one node for all. Unmarked first, as on disk."""
        names = self.place.names(store.MANIFESTS)
        whole = store.complete(names)
        self.newest = max(whole, default=None)
        if self.node != 0:
            return
        there = self.place.names(store.CHECKPOINTS)
        saves = {save for name in (*there, *names) if (save := store.named(name.split("/")[1]))}
        for save in store.outlived(saves, whole, self.keep):
            self.place.remove([name for name in names if name.startswith(save.manifests)])
            self.place.abandon(save.files)
            self.place.remove([name for name in there if name.startswith(save.files)])

    def results(self) -> None:
        """What the finished run left, once for all nodes. While it is being replaced there is nothing that counts."""
        recorded = files.read_json(self.run.artefacts)
        if not recorded or self.node:
            return
        told = store.results(recorded)
        if self.place.read(store.RESULTS).get("files") != told:
            self.place.remove([store.RESULTS])
            for name, was in told.items():
                with open(self.run.output / name, "rb") as file:
                    if digest_of(file) != was["sha256"]:
                        raise bucket.Refused(f"{name} is not what the run left")
                    self.place.send(f"results/{name}", file, was["size"], was["sha256"], self._beat)
            self.place.remove(set(self.place.names("results/")) - {f"results/{name}" for name in told})
            self.place.write(store.RESULTS, {"files": told})
        self.tell(results=store.digest_of_results(recorded))

    def _beat(self, amount: int) -> None:
        self.told["sent"] += amount
        if time.monotonic() - self.written > 1:
            self.tell()

    def tell(self, **more: t.Any) -> None:
        self.written = time.monotonic()
        self.told.update(more, time=time.time(), error="")
        files.write_json(self.run.stored, self.told)


def digest_of(file: t.BinaryIO) -> str:
    """Of an open file, from its beginning."""
    file.seek(0)
    return files.sha256_of(file)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def work(run: Run, patience: float | None) -> int:
    """patience: seconds without a byte sent after which it gives up; None goes on as long as it lives."""
    launch = files.read_json(run.launch)
    sending, since = None, time.monotonic()
    while True:
        try:
            sending = Sending(run, bucket.Bucket(launch["store"]["url"]), launch)
            untidy = True
            while True:
                while sending.checkpoint():
                    untidy = True
                if untidy:
                    sending.tidy()
                    untidy = False
                if patience is not None:
                    sending.results()
                    return 0
                time.sleep(POLL_SECONDS)
        except (bucket.Refused, OSError) as error:
            files.write_json(run.stored, {**files.read_json(run.stored), "error": str(error), "time": time.time()})
            print(time.strftime("%Y-%m-%d %H:%M:%S"), error, file=sys.stderr, flush=True)
            since = max(since, sending.written if sending else 0)
            if patience is not None and time.monotonic() - since > patience:
                return 1
            time.sleep(min(RETRY_SECONDS, patience or RETRY_SECONDS))


def main() -> int:
    os.nice(10)
    run = Run(Path.cwd())
    held = files.lock(run.upload_lock, patience=10)
    if held is None:
        return 1
    return work(run, float(sys.argv[2]) if sys.argv[1:2] == ["--end"] else None)


if __name__ == "__main__":
    raise SystemExit(main())
