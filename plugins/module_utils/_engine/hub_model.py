# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model of a hub, fetched file by file into a folder, each held against the digest that the hub tells.

`python -m engine.hub_model --model ID --asked REVISION --revision COMMIT --folder DIR` goes on with what is in the
folder, and prints a line of JSON: the files with their SHA-256, or what went wrong. Endpoint and token are in the
environment.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
import typing as t
from functools import partial
from pathlib import Path

from . import hub_huggingface, hub_modelscope, hub_s3
from .hub_files import Failure, digests, patiently, wanted


def fetch(model: str, asked: str, revision: str, folder: Path) -> dict[str, str]:
    """Everything in its place and whole; SHA-256 by file."""
    others = (each for each in (hub_modelscope, hub_s3) if model.startswith(each.PREFIX))
    hub: t.Any = next(others, hub_huggingface)
    known = patiently(partial(hub.listed, model, asked, revision), lambda: 0, time.sleep)
    expected = {name: known[name] for name in wanted(known)}
    if not expected:
        raise Failure("missing", "it has no files")
    largest = max(size for size, _digest in expected.values())
    for _attempt in range(2):  # a file that comes damaged is fetched once more, from nothing
        whole = digests(folder, expected)
        lacking = sorted(expected.keys() - whole.keys(), key=lambda name: -expected[name][0])
        if not lacking:
            return _tidy(folder, whole)
        for name in lacking:
            (folder / name).unlink(missing_ok=True)
        work = partial(hub.download, model, asked, revision, folder, lacking, largest)
        patiently(work, partial(_bytes, folder), time.sleep)
    whole = digests(folder, expected)
    if damaged := sorted(expected.keys() - whole.keys()):
        raise Failure("damaged", f"{damaged[0]} is not what the hub says it is")
    return _tidy(folder, whole)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _tidy(folder: Path, whole: dict[str, str]) -> dict[str, str]:
    """Nothing is left but the files themselves."""
    for path in folder.iterdir():
        if path.name.startswith(".") and path.is_dir():  # what clients remember
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.rglob("*"):
        if path.is_file() and str(path.relative_to(folder)) not in whole:
            path.unlink()
    os.sync()  # the manifest is not to outlive what it names
    return whole


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("--model", "--asked", "--revision", "--folder"):
        parser.add_argument(name, required=True)
    asked = parser.parse_args()
    folder = Path(asked.folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        answer: dict[str, t.Any] = {"files": fetch(asked.model, asked.asked, asked.revision, folder)}
    except Failure as failure:
        answer = {"kind": failure.kind, "said": " ".join(str(failure).split())[:200]}
    print(json.dumps(answer), flush=True)
    return 0 if "files" in answer else 1


if __name__ == "__main__":
    sys.exit(main())
