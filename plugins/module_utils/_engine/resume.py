# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the trainer of transformers lacks to go on where a checkpoint was left, so that the same weights come out."""

from __future__ import annotations

import typing as t


def amend() -> None:
    _end_at_last_step()
    _skip_within_the_epoch()


def _end_at_last_step() -> None:
    """A trainer resumed from the checkpoint of its last step would make one step more, and end with other weights."""
    from transformers import Trainer

    batches = Trainer.get_batch_samples

    def get_batch_samples(self: t.Any, *args: t.Any, **kwargs: t.Any) -> t.Any:
        return ([], None) if self.state.global_step >= self.state.max_steps else batches(self, *args, **kwargs)

    Trainer.get_batch_samples = get_batch_samples


def _skip_within_the_epoch() -> None:
    """A trainer resumed in the middle of an epoch would go on in the order of the first one: the loader that skips
    what was trained on counts its epochs from 0, and tells the sampler so."""
    from transformers import trainer

    skip = trainer.skip_first_batches

    def skip_first_batches(dataloader: t.Any, num_batches: int = 0) -> t.Any:
        skipping = skip(dataloader, num_batches)
        skipping.iteration = dataloader.iteration
        return skipping

    trainer.skip_first_batches = skip_first_batches
