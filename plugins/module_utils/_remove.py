# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run removed from one node, and what it shares with the others."""

from __future__ import annotations

import shutil
import typing as t
from types import MappingProxyType

from . import _output, _run, _store
from ._changes import Changes
from ._engine import state


def remove(
    run: state.Run,
    changes: Changes,
    *,
    patience: float,
    spec: t.Mapping[str, t.Any] = MappingProxyType({}),
    secrets: t.Mapping[str, str] = MappingProxyType({}),
) -> dict[str, t.Any]:
    """Stop the run and remove its folder; environments, models and datasets stay.

    spec: where there is a plan, whether all its nodes do so (`whole`), so that what they share goes as well, also from
    S3. secrets: for that.
    """
    whole = spec.get("whole", True)
    if run.path.exists():
        _run.stop(run, changes, patience=patience)
    if whole and "launch" in spec:
        _store.remove(run, spec, changes, secrets)
    if not run.path.exists():
        return _run.report(run)
    if whole:
        _output.remove(run, changes)
    if changes.add("remove", run.path):
        run.secrets.unlink(missing_ok=True)
        shutil.rmtree(run.path)
    return _run.report(run)
