# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Extract from LLaMA-Factory's source distribution which datasets it registers, as hub ids with their layout.

usage: python scripts/registry.py VERSION      writes roles/train/files/llamafactory-VERSION/datasets.json

Sets that are files of LLaMA-Factory's repository are listed too, as null: they are in no package a node installs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tempfile
import typing as t
from pathlib import Path

KEPT = ("hf_hub_url", "ms_hub_url", "formatting", "ranking", "subset", "split", "folder", "columns", "tags")


def registered(version: str) -> dict[str, t.Any]:
    """dataset_info.json of the source distribution of that version."""
    with tempfile.TemporaryDirectory() as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llamafactory"]
        subprocess.run([*download, "--dest", folder, f"llamafactory=={version}"], check=True)
        with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as archive:
            name = next(member for member in archive.getnames() if member.endswith("/data/dataset_info.json"))
            content = archive.extractfile(name)
            assert content is not None
            found: dict[str, t.Any] = json.load(content)
    return found


def main() -> None:
    version = sys.argv[1]
    rows = {
        name: {key: entry[key] for key in KEPT if key in entry} if "hf_hub_url" in entry else None
        for name, entry in sorted(registered(version).items())
    }
    target = Path(__file__).parents[1] / "roles" / "train" / "files" / f"llamafactory-{version}" / "datasets.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(f"{target}: {len(rows)} datasets")


if __name__ == "__main__":
    main()
