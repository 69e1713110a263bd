# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One rank: LLaMA-Factory's `run_exp` with what its launcher lacks.

Started by torchrun as `-m engine.rank train.yaml` in the run's folder. Adds: a beat (step, loss, speed), whole
checkpoints marked as such, saving when the supervisor asks to end, peak memory, the error of a failing rank, and an
end together with the parent.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import statistics
import sys
import time
import traceback
import typing as t
from pathlib import Path

from . import checkpoint, files
from .state import Run

RESUME = "LLMOPS_RESUME"
ATTEMPT = "LLMOPS_ATTEMPT"


class Ended(Exception):
    """The supervisor asked to end, and a whole checkpoint is on disk."""


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent is gone."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> int:
    die_with_parent()
    os.register_at_fork(after_in_child=die_with_parent)  # data workers
    run = Run(Path.cwd())
    if not files.locked(run.lock):  # the supervisor, and torchrun with it, died before the kernel knew to kill us too
        return 1
    rank = int(os.environ.get("RANK", "0"))
    try:
        _train(run, rank)
    except Ended:
        return 0
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            return 0
        files.write_json(
            run.logs / f"error-rank{rank}.json",
            {
                "rank": rank,
                "type": type(error).__name__,
                "message": str(error)[-4000:],
                "traceback": traceback.format_exc()[-8000:],
                "time": time.time(),
                "attempt": int(os.environ.get(ATTEMPT, "0")),
            },
        )
        traceback.print_exc()
        return 1
    return 0


def _train(run: Run, rank: int) -> None:
    import yaml

    with open(run.config, encoding="utf-8") as file:
        arguments: dict[str, t.Any] = yaml.safe_load(file)
    arguments["resume_from_checkpoint"] = os.environ.get(RESUME) or None
    keep = arguments.pop("save_total_limit", None)  # ours: upstream removes the old checkpoint before the new is whole

    import torch
    from llamafactory.train.tuner import run_exp

    torch.serialization.register_package(0, lambda _: None, _restore_on_cpu)
    _end_at_last_step()
    _skip_within_the_epoch()
    run_exp(arguments, callbacks=[_callback(run, rank, keep)])
    files.write_json(run.logs / f"memory-rank{rank}.json", _peak_memory(rank))
    if rank == 0:
        files.write_json(run.trained, {"attempt": int(os.environ.get(ATTEMPT, "0")), "time": time.time()})


def _restore_on_cpu(storage: t.Any, location: str) -> t.Any:
    """torch cannot load optimizer state onto `cpu:0`, the device of a distributed rank without a GPU."""
    return storage if location.startswith("cpu") else None


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


def _peak_memory(rank: int) -> dict[str, t.Any]:
    """Bytes: resident peak of the process, and torch's own peaks where there is a GPU."""
    import torch

    peaks: dict[str, t.Any] = {"rank": rank, "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if torch.cuda.is_available():
        peaks["cuda_allocated"] = torch.cuda.max_memory_allocated()
        peaks["cuda_reserved"] = torch.cuda.max_memory_reserved()
    return peaks


def _callback(run: Run, rank: int, keep: int | None) -> t.Any:
    import torch.distributed as dist
    from transformers import TrainerCallback

    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    agreed = run.path / "stop_at.json"

    class RunCallback(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.beat: dict[str, t.Any] = {"phase": "loading"}
            self.durations: list[float] = []
            self.last_step = time.monotonic()
            self.written = 0.0
            self.ending = False
            self._write(force=True)

        def on_train_begin(self, args: t.Any, state: t.Any, control: t.Any, **_: t.Any) -> None:
            self.beat.update(phase="training", step=state.global_step, total_steps=state.max_steps)
            self.last_step = time.monotonic()
            self._write(force=True)

        def on_step_end(self, args: t.Any, state: t.Any, control: t.Any, **_: t.Any) -> None:
            now = time.monotonic()
            self.durations = [*self.durations[-49:], now - self.last_step]
            self.last_step = now
            typical = statistics.median(self.durations)
            self.beat.update(
                phase="training",
                step=state.global_step,
                total_steps=state.max_steps,
                epoch=state.epoch,
                median_step_seconds=typical,
                steps_per_second=1 / typical if typical else None,
            )
            self._write()
            if self._asked_to_end(state.global_step):
                self.ending = True
                control.should_save = True

        def on_log(self, args: t.Any, state: t.Any, control: t.Any, logs: t.Any = None, **_: t.Any) -> None:
            for name in ("loss", "learning_rate", "eval_loss", "grad_norm"):
                if name in (logs or {}):
                    self.beat[name] = float(logs[name])
            self._write()

        def on_prediction_step(self, args: t.Any, state: t.Any, control: t.Any, **_: t.Any) -> None:
            self.beat["phase"] = "evaluating"
            self._write()

        def on_evaluate(self, args: t.Any, state: t.Any, control: t.Any, **_: t.Any) -> None:
            self.last_step = time.monotonic()

        def on_save(self, args: t.Any, state: t.Any, control: t.Any, **_: t.Any) -> None:
            self.beat["phase"] = "saving"
            self._write(force=True)
            if dist.is_initialized():
                dist.barrier()  # every rank has written its part
            if local_rank == 0:
                checkpoint.mark(Path(args.output_dir) / f"checkpoint-{state.global_step}")
                if keep:
                    checkpoint.prune(Path(args.output_dir), keep)
            if dist.is_initialized():
                dist.barrier()
            self.last_step = time.monotonic()
            if self.ending:
                raise Ended

        def _asked_to_end(self, step: int) -> bool:
            """All ranks must leave at the same step. Rank 0 fixes the next one: no peer can have passed it yet."""
            if world_size == 1:
                return run.control.exists()
            if rank == 0 and not agreed.exists() and run.control.exists():
                files.write_json(agreed, {"step": step + 1})
            return bool(agreed.exists() and step >= files.read_json(agreed).get("step", step + 1))

        def _write(self, force: bool = False) -> None:
            now = time.monotonic()
            if local_rank == 0 and (force or now - self.written >= 1):
                self.written = now
                files.write_json(run.progress, {**self.beat, "time": time.time()})

    return RunCallback()


if __name__ == "__main__":
    sys.exit(main())
