# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run has in S3, by names alone: which checkpoints are whole there, what each node sends, and what goes.

Below `<train_store>/<run id>/`:

    run.json                              request and resolved values
    checkpoints/<step>-<save>/<file>      each file once, from the first of the nodes that wrote it
    manifests/<step>-<save>/<node>-of-<nodes>.json    digests of what that node sent, written after all of it
    results/<file>, results.json          what the finished run left, and its digests, written last

A checkpoint counts once the manifests of all nodes are there. Its name is never used again: a step that is saved once
more is another save, so that nothing which counts is ever written over.
"""

from __future__ import annotations

import hashlib
import json
import re
import typing as t

from . import exchange

RECORD, RESULTS = "run.json", "results.json"
MANIFESTS, CHECKPOINTS = "manifests/", "checkpoints/"
LOG = "trainer_log.jsonl"
"""Goes along with a checkpoint, as it was then; no file of one has this name."""

_NAME = re.compile(r"(\d+)-(\d+)")
_MANIFEST = re.compile(rf"{MANIFESTS}(\d+-\d+)/(\d+)-of-(\d+)\.json")


class Save(t.NamedTuple):
    """One saving of a checkpoint by all nodes. The save orders them in time: after going back, a lower step may be the
    newer one."""

    save: int
    step: int

    @property
    def name(self) -> str:
        return f"{self.step}-{self.save}"

    @property
    def files(self) -> str:
        return f"{CHECKPOINTS}{self.name}/"

    @property
    def manifests(self) -> str:
        return f"{MANIFESTS}{self.name}/"

    def manifest(self, node: int, nodes: int) -> str:
        return f"{self.manifests}{node}-of-{nodes}.json"


def split(url: str) -> tuple[str, str]:
    """Bucket and prefix of `s3://bucket/prefix`; the prefix ends with /."""
    bucket, _slash, prefix = url.removeprefix("s3://").partition("/")
    return bucket, f"{prefix.rstrip('/')}/" if prefix else ""


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def results(recorded: t.Mapping[str, t.Mapping[str, t.Any]]) -> dict[str, dict[str, t.Any]]:
    """What of the recorded artefacts of a run is told in RESULTS, by name below the output folder."""
    return {name.partition("/")[2]: {key: was[key] for key in ("sha256", "size")} for name, was in recorded.items()}


def digest_of_results(recorded: t.Mapping[str, t.Mapping[str, t.Any]]) -> str:
    return digest_of(json.dumps(results(recorded), sort_keys=True).encode())


def named(name: str) -> Save | None:
    """The save that `<step>-<save>` is the name of."""
    match = _NAME.fullmatch(name)
    return Save(int(match[2]), int(match[1])) if match else None


def complete(names: t.Iterable[str]) -> list[Save]:
    """The checkpoints whose manifests are all there, oldest first. names: of the manifests."""
    seen: dict[tuple[str, int], set[int]] = {}
    for match in filter(None, map(_MANIFEST.fullmatch, names)):
        seen.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    whole = {save for (name, nodes), there in seen.items() if there >= set(range(nodes)) and (save := named(name))}
    return sorted(whole)


def nodes_of(save: Save, names: t.Iterable[str]) -> int:
    """How many nodes wrote a whole checkpoint."""
    matches = filter(None, map(_MANIFEST.fullmatch, names))
    return next(int(match[3]) for match in matches if match[1] == save.name)


def outlived(there: t.Iterable[Save], whole: t.Sequence[Save], keep: int) -> list[Save]:
    """What goes, oldest first: whole ones beyond `keep` (0: all stay), and what was begun before the newest whole one
    and has not become whole. there: every save that has a file or a manifest."""
    if not whole:
        return []
    kept = set(whole[-keep:])
    return sorted({save for save in there if save < whole[-1] and save not in kept})


def sent_by(node: int, mark: t.Mapping[str, t.Any]) -> list[str]:
    """Which files of a checkpoint a node sends: those that it wrote, and no node before it."""
    nodes = mark.get("nodes") or [mark["files"]]
    if node >= len(nodes):
        return []  # it is one that was added since
    return sorted(name for name in nodes[node] if not any(name in before for before in nodes[:node]))


def needed_by(
    node: int, nodes: int, manifests: t.Sequence[t.Mapping[str, t.Any]]
) -> tuple[dict[str, dict[str, t.Any]], list[exchange.Sizes]]:
    """What a node of `nodes` fetches, size and digest by name; and what each node wrote, at the sizes that were sent:
    of a file that all had alike that is one node's. manifests: of all nodes that wrote it."""
    sent = {name: told for manifest in manifests for name, told in manifest["files"].items() if name != LOG}
    saved = [{name: int(sent[name]["size"]) for name in wrote} for wrote in manifests[0]["nodes"]]
    if not saved:
        return sent, []
    common = set.intersection(*map(set, saved))
    return {name: sent[name] for name in exchange.of_node(saved, common, node, nodes)}, saved
