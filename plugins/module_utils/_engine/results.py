# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetches what a finished run left from S3: `python -m engine.results s3://bucket/prefix/<run id> FOLDER`, by the
Python of node-store.

The folder is that of the run. It is one to others when its record is there, which comes last; what was cut goes on with
the files that are there. The last line that is printed says what came of it.
"""

from __future__ import annotations

import sys
import time
import typing as t
from pathlib import Path

from . import bucket, files, state, store


def fetch(run: state.Run, place: bucket.Bucket) -> None:
    record, told = place.read(store.RECORD), place.read(store.RESULTS).get("files")
    if not record.get("resolved") or not isinstance(told, dict) or not told:
        raise bucket.Refused(f"{place.url} has no results")
    place.bring_all("results/", run.output, told, f"the results of {run.id}", "results.json")
    recorded = state.inventory(run)
    files.write_json(run.artefacts, recorded)
    files.write_json(run.stored, {"url": place.url, "results": store.digest_of_results(recorded)})
    files.write_json(run.state, {"state": "finished", "time": time.time(), "attempt": 0})
    files.write_json(run.record, {**record, "files": {}})


def main() -> int:
    def work() -> dict[str, t.Any]:
        fetch(state.Run(Path(sys.argv[2])), bucket.Bucket(sys.argv[1]))
        return {}

    return bucket.answer(work)


if __name__ == "__main__":
    raise SystemExit(main())
