# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one error of this collection: what is wrong, where, and what to change."""

from __future__ import annotations

import typing as t

Read = t.TypeVar("Read")


class FinetuneError(Exception):
    """A refusal or failure that a person can act on.

    what: one sentence. where: variable, file, record or host. change: the remedy, naming the variable.
    """

    def __init__(self, what: str, *, where: str = "", change: str = "", parts: t.Sequence[FinetuneError] = ()) -> None:
        self.what = what
        self.where = where
        self.change = change
        self._parts = parts
        super().__init__(self.message())

    @property
    def parts(self) -> t.Sequence[FinetuneError]:
        """What it tells: itself, or each of the refusals that it is made of."""
        return self._parts or (self,)

    def message(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where:  {self.where}")
        if self.change:
            lines.append(f"  change: {self.change}")
        return "\n".join(lines)


def together(errors: t.Sequence[FinetuneError], of: str = "") -> FinetuneError:
    """One that tells all of them."""
    parts = [part for error in errors for part in error.parts]
    if len(parts) == 1:
        return parts[0]
    return FinetuneError(
        f"{len(parts)} things are wrong{of}.",
        where="\n          ".join(f"{part.where}: {part.what.rstrip('.')}; {part.change}" for part in parts),
        change="change each of them",
        parts=parts,
    )


class Attempts:
    """Things that are read one beside the other, so that all that is wrong with them is told at once."""

    def __init__(self) -> None:
        self.errors: list[FinetuneError] = []

    def __call__(self, read: t.Callable[..., Read], *given: t.Any) -> Read:
        """What is read, or None until `refuse` tells why not."""
        try:
            return read(*given)
        except FinetuneError as error:
            self.errors.append(error)
            return t.cast(Read, None)

    def refuse(self) -> None:
        if self.errors:
            raise together(self.errors)
