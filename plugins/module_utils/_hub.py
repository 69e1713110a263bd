# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node knows of a hub's model: the commit that a branch or tag is now, its size, and what lies here of it."""

from __future__ import annotations

import os
import re
import typing as t
from pathlib import Path
from types import MappingProxyType

from . import _model
from ._engine import files, hub_modelscope, hub_s3
from ._errors import FinetuneError

COMMIT = re.compile(r"[0-9a-f]{40}")
REFS = ".refs.json"
"""In the folder of models: by model and revision as asked for, the commit that it was when a run last took it."""

_CHANGE = {
    "missing": "correct train_model; for a private model put a token into train_secrets, as HF_TOKEN",
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
_CHANGE_IN_S3 = {
    **_CHANGE,
    "missing": "correct bucket and prefix; objects of the model are right below it",
    "revision": "leave train_model_revision out, or write the 40 hex digits of a plan, to have that content alone",
    "gated": "let this controller and the hosts list the bucket and get the objects: by the instance's role, or with "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in train_secrets",
    "unreachable": "let controller and hosts reach S3; AWS_DEFAULT_REGION and AWS_ENDPOINT_URL_S3 in train_secrets say "
    "where it is",
    "moved": "put the objects back, or -e train_resolve=refresh to train from what is there now",
    "damaged": "run again; if it stays so, send that file to S3 again",
}
_WHAT_IN_S3 = {
    **_WHAT,
    "missing": "There is no model at {model}",
    "revision": "What is at {model} has no revision {revision}",
    "gated": "Model {model} may not be read",
    "unreachable": "S3 could not be asked for model {model}",
    "moved": "Objects of model {model} were replaced",
    "damaged": "Model {model} does not come as S3 says it is",
}


def refusal(told: t.Mapping[str, t.Any], model: str, revision: str, where: str) -> FinetuneError:
    """What a person reads of a `kind` and what was `said`."""
    whats, changes = (_WHAT_IN_S3, _CHANGE_IN_S3) if of_s3(model) else (_WHAT, _CHANGE)
    what = whats[told["kind"]].format(model=model, revision=revision)
    change = changes[told["kind"]]
    if of_modelscope(model):
        change = change.replace("HF_ENDPOINT", "MODELSCOPE_ENDPOINT").replace("HF_TOKEN", "MODELSCOPE_API_TOKEN")
    return FinetuneError(f"{what} ({told['said']}).", where=where, change=change)


def folder_name(model: str, revision: str) -> str:
    """Of the model's folder below `models`. A place in S3 may be long; its pin tells the content."""
    if of_s3(model):
        model = "s3:" + re.sub(r"[^\w.-]", "-", model.rpartition("/")[2])
    return f"{model.replace(':', '--').replace('/', '--')}@{revision}"


class Access(t.NamedTuple):
    """By which a hub is asked; empty for what the environment says."""

    endpoint: str = ""
    token: str = ""


ENVIRONMENT = Access()


def access(model: str, variables: t.Mapping[str, t.Any]) -> Access:
    """Those of a model's hub, under the names that its client knows. variables: of an environment."""
    names = ("MODELSCOPE_ENDPOINT", "MODELSCOPE_API_TOKEN") if of_modelscope(model) else ("HF_ENDPOINT", "HF_TOKEN")
    return Access(*(str(variables.get(name) or "") for name in names))


def facts(
    model: str,
    revision: str,
    folder: Path,
    whole: t.Container[str],
    given: Access = ENVIRONMENT,
    told: t.Mapping[str, t.Any] = MappingProxyType({}),
) -> dict[str, t.Any]:
    """Commit and bytes that a run of the model would take now. Where the hub does not answer, the commit that the last
    run took, if it is here, and always why (`kind`, `said`). begun: bytes of it that a cut fetch left. config: what its
    config.json says of its sizes, where that could be had.

    folder: that of models; whole: those in it that are as they were stored. told: what somebody else was answered, and
    the hub is not asked.
    """
    if COMMIT.fullmatch(revision) and folder_name(model, revision) in whole:
        return {"revision": revision, "bytes": 0, "config": _model.config(folder / folder_name(model, revision))}
    from . import _hub_ask  # what asks over the network is slow to import, and few calls ask

    here = access(model, os.environ)
    by = Access(given.endpoint or here.endpoint, given.token or here.token)
    answer = dict(told) or _hub_ask.ask(model, revision, *by)
    commit = str(answer.get("revision") or files.read_json(folder / REFS).get(f"{model}@{revision}") or "")
    if commit and folder_name(model, commit) in whole:
        answer |= {"revision": commit, "config": _model.config(folder / folder_name(model, commit))}
    elif "kind" not in answer and not told:
        answer["config"] = _model.sizes(_hub_ask.config(model, revision, commit, *by))
    if "kind" in answer:
        return answer
    partial = folder / f".{folder_name(model, commit)}"
    return {**answer, "begun": sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())}


def remember(folder: Path, model: str, asked: str, commit: str) -> None:
    """For the day when the hub does not answer."""
    refs = files.read_json(folder / REFS)
    if refs.get(f"{model}@{asked}") != commit:
        files.write_json(folder / REFS, {**refs, f"{model}@{asked}": commit})


def of_modelscope(model: str) -> bool:
    return model.startswith(hub_modelscope.PREFIX)


def of_s3(model: str) -> bool:
    return model.startswith(hub_s3.PREFIX)
