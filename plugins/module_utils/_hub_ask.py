# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A hub asked over the network, by Ansible's own opener: the commit of a revision, and how much a run reads of it."""

from __future__ import annotations

import http.client
import json
import typing as t
import urllib.error
import urllib.parse

from ansible.module_utils.urls import open_url

from . import _hub
from ._engine import hub_files, hub_modelscope

ENDPOINT = "https://huggingface.co"
SECONDS = 15.0
_CONFIG = "config.json"
_LARGEST = 2**20
"""Bytes of a config.json; one that is longer is cut, and none then."""


def ask(model: str, revision: str, endpoint: str = "", token: str = "") -> dict[str, t.Any]:
    """revision and bytes, or why there is no answer: kind and said. endpoint: empty for the hub's own."""
    try:
        return _ask(model, revision, _endpoint(model, endpoint), token)
    except urllib.error.HTTPError as error:
        return {"kind": _kind(error), "said": f"{error.code} {error.headers.get('X-Error-Message') or error.reason}"}
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:  # the last of odd mirrors
        return {"kind": "unreachable", "said": str(getattr(error, "reason", "") or f"{type(error).__name__} {error}")}


def config(model: str, revision: str, commit: str, endpoint: str = "", token: str = "") -> t.Any:
    """Its config.json at a commit, or of ModelScope at a revision; None where there is none to be had."""
    place = f"/{model}/resolve/{commit}/{_CONFIG}"
    if _hub.of_modelscope(model):
        place = hub_modelscope.place(model, revision, _CONFIG)
    try:
        with _open(_endpoint(model, endpoint) + place, token) as response:
            return json.loads(response.read(_LARGEST))
    except (OSError, http.client.HTTPException, ValueError, RecursionError):  # a model has none, or a mirror is odd
        return None


def _endpoint(model: str, endpoint: str) -> str:
    return (endpoint or (hub_modelscope.ENDPOINT if _hub.of_modelscope(model) else ENDPOINT)).rstrip("/")


def _ask(model: str, revision: str, endpoint: str, token: str) -> dict[str, t.Any]:
    if _hub.of_modelscope(model):
        with _open(endpoint + hub_modelscope.place(model, revision), token) as response:
            found = hub_modelscope.read(json.load(response))
        return {"revision": hub_files.pin(found), "bytes": sum(found[name][0] for name in hub_files.wanted(found))}
    place = f"{endpoint}/api/models/{model}/revision/{urllib.parse.quote(revision, safe='')}?blobs=true"
    with _open(place, token) as response:
        told = json.load(response)
    sizes = {file["rfilename"]: int(file.get("size") or 0) for file in told["siblings"]}
    names = hub_files.wanted(sizes)
    if told.get("gated") and names:  # the list is for everyone, its files are not
        one = _CONFIG if _CONFIG in names else names[0]
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
