# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Models of ModelScope, by its own client. It tells no commit of a branch, so their content stands in for one."""

from __future__ import annotations

import typing as t
import urllib.parse
from pathlib import Path

from .hub_files import Expected, Failure, pin

PREFIX = "modelscope:"
"""How train_model begins then."""
ENDPOINT = "https://www.modelscope.cn"


def branch(asked: str) -> str:
    """What is asked for: its first branch has another name than that of other hubs."""
    return "master" if asked == "main" else asked


def place(model: str, asked: str, file: str = "") -> str:
    """Path of the list of all files, or of one file."""
    revision = urllib.parse.quote(branch(asked), safe="")
    what = f"?Revision={revision}&FilePath={file}" if file else f"/files?Revision={revision}&Recursive=True"
    return f"/api/v1/models/{model.removeprefix(PREFIX)}/repo{what}"


def read(told: t.Any) -> dict[str, Expected]:
    """The files in that list."""
    found = ((told.get("Data") or {}) if isinstance(told, dict) else {}).get("Files") or []
    return {file["Path"]: (int(file["Size"]), str(file["Sha256"])) for file in found if file.get("Type") != "tree"}


def listed(model: str, asked: str, revision: str) -> dict[str, Expected]:
    from modelscope_hub import HubApi

    files = HubApi().list_repo_files(model.removeprefix(PREFIX), "model", revision=branch(asked))
    found = {file.path: (file.size, str(file.sha256)) for file in files if file.type != "tree"}
    if pin(found) != revision:
        raise Failure("moved", f"it has {pin(found)[:12]} now, and {revision[:12]} is asked for")
    return found


def download(model: str, asked: str, revision: str, folder: Path, names: t.Sequence[str], largest: int) -> None:
    from modelscope.hub.snapshot_download import snapshot_download

    snapshot_download(
        model.removeprefix(PREFIX), revision=branch(asked), local_dir=str(folder), allow_patterns=list(names)
    )
