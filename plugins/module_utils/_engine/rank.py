# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One rank: LLaMA-Factory's `run_exp` with what its launcher lacks.

Started by torchrun as `-m engine.rank train.yaml` in the run's folder. Adds: a beat (step, loss, speed), whole
checkpoints marked as such, agreement of all nodes on the one to resume from, saving when a supervisor asks to end, an
end together with the parent and with a lost node, peak memory, and the errors of failing ranks.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import statistics
import sys
import time
import traceback
import typing as t
from pathlib import Path

from . import checkpoint, diagnose, exchange, files, memory, methods, peers, resume, shared, streams, trackers
from .state import Run

RESUME = "LLMOPS_RESUME"
ATTEMPT = "LLMOPS_ATTEMPT"


class Ended(Exception):
    """The supervisor asked to end, and a whole checkpoint is on disk where one is of use."""


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent is gone."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> int:
    die_with_parent()
    os.register_at_fork(after_in_child=die_with_parent)  # data workers
    run = Run(Path.cwd())
    if not files.locked(run.lock):  # the supervisor, and torchrun with it, died before the kernel knew to kill us too
        return 1
    here = peers.here()
    store = peers.connect() if here.world_size > 1 else None
    liveness = peers.Liveness(peers.connect, here, lambda why: _leave(run, here, why)) if here.nodes > 1 else None
    ended = False
    try:
        _train(run, here, store)
    except Ended:
        ended = True
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            return 0
        traceback.print_exc()
        own = told(here, error, liveness.why if liveness else "")
        if liveness:
            liveness.over.set()
        _note(run, here, own)
        if store and here.nodes > 1 and own["type"] != peers.PeerLost.__name__:  # whose store may answer no more
            with contextlib.suppress(Exception):
                for heard in peers.share_error(store, here.rank, here.world_size, own).values():
                    _note(run, here, heard)
        return 1
    if liveness:
        liveness.farewell()
    if here.leads and not ended:
        files.write_json(run.trained, {"attempt": int(os.environ.get(ATTEMPT, "0")), "time": time.time()})
    return 0


def told(here: peers.Node, error: BaseException, lost: str = "") -> dict[str, t.Any]:
    """The error of this rank as the supervisor reads it.

    lost: the node that this one has seen to be gone. An error that only follows from that is told as that: the others
    may have left for it first.
    """
    if lost and diagnose.follows({"type": type(error).__name__, "message": _with_causes(error)}):
        error = peers.PeerLost(lost)
    return {
        "rank": here.rank,
        "node": here.node,
        "type": type(error).__name__,
        "message": _with_causes(error)[-4000:],
        "traceback": "".join(traceback.format_exception(error))[-8000:],
        "time": time.time(),
        "attempt": int(os.environ.get(ATTEMPT, "0")),
    }


def _with_causes(error: BaseException) -> str:
    """What it says, then what it was raised from: trainers wrap what a hub or a disk answered."""
    said = [str(error)]
    while error.__cause__:
        error = error.__cause__
        said.append(f"from {type(error).__name__}: {error}")
    return "\n".join(said)


def _note(run: Run, here: peers.Node, error: dict[str, t.Any]) -> None:
    """Each node keeps the errors of all ranks that it hears of."""
    path = run.logs / f"error-rank{error['rank']}.json"
    if error["rank"] == here.rank or not path.exists():
        files.write_json(path, error)


def _leave(run: Run, here: peers.Node, why: str) -> None:
    """Another node is lost: what this rank waits for would never come."""
    _note(run, here, told(here, peers.PeerLost(why)))
    print(why, file=sys.stderr, flush=True)
    os._exit(peers.LOST)


def _train(run: Run, here: peers.Node, store: peers.Store | None) -> None:
    import yaml

    with open(run.config, encoding="utf-8") as file:
        arguments: dict[str, t.Any] = yaml.safe_load(file)
    start = os.environ.get(RESUME) or None
    launch = files.read_json(run.launch)
    if store and here.nodes > 1:
        start = _agreed(run, here, store, launch)
    arguments["resume_from_checkpoint"] = start
    keep = arguments.pop("save_total_limit", None)  # ours: upstream removes the old checkpoint before the new is whole

    trackers.hide(arguments)
    trackers.go_on(run)

    import torch
    from llamafactory.train.tuner import run_exp

    torch.serialization.register_package(0, lambda _: None, _restore_on_cpu)
    methods.amend(arguments)
    resume.amend()
    streams.amend(arguments)
    _shard_on_cpu()
    callback = _callback(run, here, store, keep)
    _after_saving(callback.saved)
    run_exp(arguments, callbacks=[callback])
    peak = memory.peak(here.rank, int(os.environ.get(ATTEMPT, "0")), callback.steps)
    files.write_json(run.logs / f"memory-rank{here.rank}.json", peak)
    wrote = here.rank == 0 if launch.get("shared") else here.leads
    if wrote:
        checkpoint.sync(run.output)


def _agreed(run: Run, here: peers.Node, store: peers.Store, launch: dict[str, t.Any]) -> str | None:
    """The checkpoint that all nodes go on from, which each of them has then."""
    resumes = launch.get("resumes", True)
    if launch.get("shared"):
        return shared.restore(run.output, here, store, resumes=resumes)
    if not resumes:
        return None
    agreed = exchange.restore(run.output, here, store)
    if agreed.lost and not agreed.step:
        raise exchange.LostShards(", ".join(agreed.lost[:5]))
    return str(run.output / f"checkpoint-{agreed.step}") if agreed.step else None


def _restore_on_cpu(storage: t.Any, location: str) -> t.Any:
    """torch cannot load optimizer state onto `cpu:0`, the device of a distributed rank without a GPU."""
    return storage if location.startswith("cpu") else None


def _shard_on_cpu() -> None:
    """accelerate leaves FSDP out, without a word, on ranks that have no GPU: each would hold the whole model."""
    from accelerate.state import AcceleratorState, DistributedType, PartialState

    begin = AcceleratorState.__init__

    def __init__(self: t.Any, *args: t.Any, **kwargs: t.Any) -> None:
        begin(self, *args, **kwargs)
        plugin = kwargs.get("fsdp_plugin")
        if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.fsdp_plugin = plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = __init__


def _after_saving(saved: t.Callable[[t.Any, t.Any], None]) -> None:
    """Call `saved` when all callbacks are through with a checkpoint: some of LLaMA-Factory's, which come after ours,
    still write into it (value head, processor)."""
    from transformers.trainer_callback import CallbackHandler

    callbacks = CallbackHandler.on_save

    def on_save(self: t.Any, args: t.Any, state: t.Any, control: t.Any) -> t.Any:
        control = callbacks(self, args, state, control)
        saved(args, state)
        return control

    CallbackHandler.on_save = on_save


def _callback(run: Run, here: peers.Node, store: peers.Store | None, keep: int | None) -> t.Any:
    import torch.distributed as dist
    from transformers import TrainerCallback

    launch = files.read_json(run.launch)
    resumes, together = launch.get("resumes", True), bool(launch.get("shared"))
    acts = here.rank == 0 if together else here.leads

    class RunCallback(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.beat: dict[str, t.Any] = {"phase": "loading"}
            self.durations: list[float] = []
            self.steps = 0
            self.last_step = time.monotonic()
            self.written = 0.0
            self.ending = False
            self.nodes: exchange.Nodes | None = None
            self._write(force=True)

        def on_train_begin(self, args: t.Any, state: t.Any, control: t.Any, **_: t.Any) -> None:
            if store and here.nodes > 1 and not self.nodes:
                self.nodes = (shared.SharedNodes if together else exchange.Nodes)(here, store)
            self.beat.update(phase="training", step=state.global_step, total_steps=state.max_steps)
            self.last_step = time.monotonic()
            self._write(force=True)
            if here.rank == 0:
                trackers.remember(run, args.report_to)

        def on_train_end(self, args: t.Any, state: t.Any, control: t.Any, **_: t.Any) -> None:
            trackers.go_on(run)  # an evaluation comes after it

        def on_step_end(self, args: t.Any, state: t.Any, control: t.Any, **_: t.Any) -> None:
            now = time.monotonic()
            self.steps += 1
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
                if not resumes:  # a checkpoint would be of no use, and PPO's loop is not to be asked for one
                    raise Ended
                self.ending = True
                control.should_save = True

        def on_log(self, args: t.Any, state: t.Any, control: t.Any, logs: t.Any = None, **_: t.Any) -> None:
            for name in ("loss", "reward", "learning_rate", "eval_loss", "grad_norm"):
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

        def saved(self, args: t.Any, state: t.Any) -> None:
            if dist.is_initialized():
                dist.barrier()  # every rank has written its part
            path = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            if acts and path.is_dir() and not (path / "trainer_state.json").exists():  # PPO's loop leaves it out
                state.save_to_json(str(path / "trainer_state.json"))
            if here.leads:
                self.nodes.complete(path) if self.nodes else checkpoint.mark(path)
            if acts and keep:
                checkpoint.prune(path.parent, keep)
            if dist.is_initialized():
                dist.barrier()
            self.last_step = time.monotonic()
            if self.ending:
                raise Ended

        def _asked_to_end(self, step: int) -> bool:
            """All ranks must leave at the same step."""
            wanted = run.control.exists()
            return peers.ends_at(store, here.rank, step, wanted) if store else wanted

        def _write(self, force: bool = False) -> None:
            now = time.monotonic()
            if here.leads and (force or now - self.written >= 1):
                self.written = now
                files.write_json(run.progress, {**self.beat, "time": time.time()})

    return RunCallback()


if __name__ == "__main__":
    sys.exit(main())
