# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What transformers and accelerate lack for data that is read as it comes, and has no length."""

from __future__ import annotations

import typing as t


def amend(arguments: t.Mapping[str, t.Any]) -> None:
    """Make good what a stream lacks, where these arguments ask for one."""
    if arguments.get("streaming"):
        _end_a_pass_together()
        _go_on_in_the_pass(arguments.get("resume_from_checkpoint"))


def _end_a_pass_together() -> None:
    """Of a stream in more parts than there are ranks, accelerate gives each rank parts of its own, which end at other
    steps, and the state of a checkpoint tells the pass of one rank alone. So all read all of it, and take batches in
    turn."""
    from accelerate import data_loader

    data_loader.is_datasets_available = lambda: False


def _go_on_in_the_pass(start: str | None) -> None:
    """A stream has no length: a trainer takes max_steps for that of one pass, skips all of a run's batches in the first
    pass, and goes on with the second one, whichever it was in. Where the pass was just over it does not restore the
    random numbers either, as it does that at the next batch of the same pass."""
    from transformers import Trainer, trainer

    begin, skip = Trainer.set_initial_training_values, trainer.skip_first_batches
    resumed: list[t.Any] = []

    def set_initial_training_values(self: t.Any, *args: t.Any, **kwargs: t.Any) -> t.Any:
        epochs, steps, *rest = begin(self, *args, **kwargs)
        resumed[:] = [self]
        return epochs, PassLength(steps, self), *rest

    def skip_first_batches(dataloader: t.Any, num_batches: int = 0) -> t.Any:
        (trains,) = resumed
        return Rest(skip(dataloader, num_batches), lambda: trains._load_rng_state(start))

    Trainer.set_initial_training_values = set_initial_training_values
    trainer.skip_first_batches = skip_first_batches


class PassLength(int):
    """max_steps, by which a trainer divides its step to see in which pass it is, and how far. The state that it read
    from the checkpoint knows: its `epoch` is the number of whole passes, and the part of max_steps made in the last."""

    trainer: t.Any

    def __new__(cls, steps: int, trainer: t.Any) -> t.Self:
        length = super().__new__(cls, steps)
        length.trainer = trainer
        return length

    def __rfloordiv__(self, step: int) -> int:
        return int(self.trainer.state.epoch)

    def __rmod__(self, step: int) -> int:
        return round(float(self.trainer.state.epoch) % 1 * int(self))


class Rest:
    """What is left of a pass. nothing: called when that is nothing."""

    def __init__(self, batches: t.Iterable[t.Any], nothing: t.Callable[[], object]) -> None:
        self.batches, self.nothing = batches, nothing

    def __iter__(self) -> t.Iterator[t.Any]:
        empty = True
        for batch in self.batches:
            empty = False
            yield batch
        if empty:
            self.nothing()
