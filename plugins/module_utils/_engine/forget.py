# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Removes what S3 has of a run: `python -m engine.forget s3://bucket/prefix/<run id>`. What counts goes first."""

from __future__ import annotations

import sys

from . import bucket, store


def forget(place: bucket.Bucket, *, look: bool) -> int:
    """Returns how many objects it is about. look: none is removed."""
    names = place.names()
    if not look:
        first = (store.RECORD, store.RESULTS, store.MANIFESTS)
        place.abandon()
        place.remove(sorted(names, key=lambda name: not name.startswith(first)))
    return len(names)


def main() -> int:
    return bucket.answer(lambda: {"objects": forget(bucket.Bucket(sys.argv[1]), look="--look" in sys.argv)})


if __name__ == "__main__":
    raise SystemExit(main())
