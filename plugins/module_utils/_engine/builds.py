# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where ranks compile parts of DeepSpeed. torch guards a build with a plain file and waits for it to go, without end:
the file of a build that was killed has to be removed."""

from __future__ import annotations

import contextlib
import fcntl
import typing as t
from pathlib import Path


@contextlib.contextmanager
def shared(folder: str) -> t.Iterator[None]:
    """Use the folder of builds together with other runs; what a killed one left is removed when nobody uses it.

    folder: TORCH_EXTENSIONS_DIR of the ranks; empty where nothing is built.
    """
    if not folder:
        yield
        return
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    with open(place / "in-use", "ab") as users:
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in place.glob("*/lock"):
                left.unlink()
        except BlockingIOError:
            pass  # another run's ranks may be building
        fcntl.flock(users, fcntl.LOCK_SH)
        yield
