# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Unpacks the collections that requirements.yml asks for from the bundle that requirements/collections.txt locks.

They come to collections/, where `ansible-galaxy collection install -r requirements.yml` would put them too; for sites
that reach a Python index and no Galaxy, and for tests.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[1]
PIP = [
    sys.executable,
    "-m",
    "pip",
    "download",
    "--quiet",
    "--disable-pip-version-check",
    "--no-deps",
    "--require-hashes",
]


def main() -> None:
    asked = yaml.safe_load((REPOSITORY / "requirements.yml").read_text(encoding="utf-8"))["collections"]
    folders = [f"ansible_collections/{collection['name'].replace('.', '/')}" for collection in asked]
    with tempfile.TemporaryDirectory() as place:
        lock = REPOSITORY / "requirements" / "collections.txt"
        subprocess.run([*PIP, "--requirement", str(lock), "--dest", place], check=True)
        (bundle,) = Path(place).glob("*.whl")
        with zipfile.ZipFile(bundle) as packed:
            for folder in folders:
                shutil.rmtree(REPOSITORY / "collections" / folder, ignore_errors=True)
                members = [
                    name for name in packed.namelist() if name.startswith(f"{folder}/") and "/tests/" not in name
                ]
                packed.extractall(REPOSITORY / "collections", members)


if __name__ == "__main__":
    main()
