# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node knows of a hub's model: the commit that a branch or tag is now, its size, and what lies here of it."""

from __future__ import annotations

import http.client
import json
import os
import re
import typing as t
import urllib.error
import urllib.parse
from pathlib import Path

from ansible.module_utils.urls import open_url

from ._engine import files, hub_files, hub_modelscope
from ._errors import FinetuneError

ENDPOINT = "https://huggingface.co"
SECONDS = 15.0
COMMIT = re.compile(r"[0-9a-f]{40}")
REFS = ".refs.json"
"""In the folder of models: by model and revision as asked for, the commit that it was when a run last took it."""

_CHANGE = {
    "missing": "correct train_model; for a private model put a token into train_secrets, as HF_TOKEN or "
    "MODELSCOPE_API_TOKEN",
    "revision": "correct train_model_revision",
    "gated": "accept its terms on its page, and put a token of the account that did into train_secrets, as HF_TOKEN",
    "unreachable": "let the node reach the hub, or a mirror that HF_ENDPOINT in train_secrets names, or copy the model "
    "to the node and name its full path",
    "cut": "run again; the fetch goes on where it was",
    "full": "free space below train_root, or choose another train_root",
    "moved": "-e train_resolve=refresh to train from what it has now",
    "damaged": "run again; if it stays so, the hub or what lies between is at fault",
}
_WHAT = {
    "missing": "The hub has no model {model}, or none that may be seen without a token",
    "revision": "Model {model} has no revision {revision}",
    "gated": "Model {model} is gated: the hub does not give it to everyone",
    "unreachable": "The hub could not be asked for model {model}",
    "cut": "The fetch of model {model} was cut",
    "full": "The disk is full, while model {model} was fetched",
    "moved": "The hub no longer has what {revision} of model {model} was",
    "damaged": "Model {model} does not come as the hub says it is",
}


def refusal(told: t.Mapping[str, t.Any], model: str, revision: str, where: str) -> FinetuneError:
    """What a person reads of a `kind` and what was `said`."""
    what = _WHAT[told["kind"]].format(model=model, revision=revision)
    return FinetuneError(f"{what} ({told['said']}).", where=where, change=_CHANGE[told["kind"]])


def folder_name(model: str, revision: str) -> str:
    """Of the model's folder below `models`."""
    return f"{model.replace(':', '--').replace('/', '--')}@{revision}"


class Access(t.NamedTuple):
    """By which a hub is asked; empty for what the environment says."""

    endpoint: str = ""
    token: str = ""


ENVIRONMENT = Access()


def access(model: str, variables: t.Mapping[str, t.Any]) -> Access:
    """Those of a model's hub, under the names that its client knows. variables: of an environment."""
    names = ("MODELSCOPE_ENDPOINT", "MODELSCOPE_API_TOKEN") if _of_modelscope(model) else ("HF_ENDPOINT", "HF_TOKEN")
    return Access(*(str(variables.get(name) or "") for name in names))


def facts(
    model: str, revision: str, folder: Path, whole: t.Container[str], given: Access = ENVIRONMENT
) -> dict[str, t.Any]:
    """Commit and bytes that a run of the model would take now. Where the hub does not answer, the commit that the last
    run took, if it is here, and always why (`kind`, `said`). begun: bytes of it that a cut fetch left.

    folder: that of models; whole: those in it that are as they were stored.
    """
    if COMMIT.fullmatch(revision) and folder_name(model, revision) in whole:
        return {"revision": revision, "bytes": 0}
    try:
        here = access(model, os.environ)
        answer = _ask(model, revision, Access(given.endpoint or here.endpoint, given.token or here.token))
    except urllib.error.HTTPError as error:
        answer = {"kind": _kind(error), "said": f"{error.code} {error.headers.get('X-Error-Message') or error.reason}"}
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:  # the last of odd mirrors
        answer = {"kind": "unreachable", "said": str(getattr(error, "reason", "") or f"{type(error).__name__} {error}")}
    if "kind" in answer:
        known = files.read_json(folder / REFS).get(f"{model}@{revision}")
        return {**answer, "revision": known} if known and folder_name(model, known) in whole else answer
    partial = folder / f".{folder_name(model, answer['revision'])}"
    return {**answer, "begun": sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())}


def remember(folder: Path, model: str, asked: str, commit: str) -> None:
    """For the day when the hub does not answer."""
    refs = files.read_json(folder / REFS)
    if refs.get(f"{model}@{asked}") != commit:
        files.write_json(folder / REFS, {**refs, f"{model}@{asked}": commit})


def _of_modelscope(model: str) -> bool:
    return model.startswith(hub_modelscope.PREFIX)


def _ask(model: str, revision: str, given: Access) -> dict[str, t.Any]:
    token = given.token
    endpoint = (given.endpoint or (hub_modelscope.ENDPOINT if _of_modelscope(model) else ENDPOINT)).rstrip("/")
    if _of_modelscope(model):
        with _open(endpoint + hub_modelscope.place(model, revision), token) as response:
            found = hub_modelscope.read(json.load(response))
        return {"revision": hub_modelscope.pin(found), "bytes": sum(found[name][0] for name in hub_files.wanted(found))}
    place = f"{endpoint}/api/models/{model}/revision/{urllib.parse.quote(revision, safe='')}?blobs=true"
    with _open(place, token) as response:
        told = json.load(response)
    sizes = {file["rfilename"]: int(file.get("size") or 0) for file in told["siblings"]}
    names = hub_files.wanted(sizes)
    if told.get("gated") and names:  # the list is for everyone, its files are not
        one = "config.json" if "config.json" in names else names[0]
        _open(f"{endpoint}/{model}/resolve/{told['sha']}/{one}", token, "HEAD").close()
    return {"revision": str(told["sha"]), "bytes": sum(sizes[name] for name in names)}


def _open(place: str, token: str, method: str = "GET") -> t.Any:
    return open_url(
        place,
        method=method,
        headers={"Authorization": f"Bearer {token}"} if token else {},
        unredirected_headers=["Authorization"],  # for the hub alone, not where it sends us
        timeout=SECONDS,
        http_agent="llmops.finetune",
    )


def _kind(error: urllib.error.HTTPError) -> str:
    code = error.headers.get("X-Error-Code")
    if code == "RevisionNotFound":
        return "revision"
    if code == "GatedRepo" or error.code == 403:
        return "gated"
    return "missing" if code == "RepoNotFound" or error.code in (401, 404) else "unreachable"
