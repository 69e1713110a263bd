# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a run is, as facts and as the one line a person reads."""

from __future__ import annotations

import json
import time
import typing as t

from . import files, memory, store
from .state import Run


def read(run: Run) -> dict[str, t.Any]:
    """The newest beat of the ranks joined with what the supervisor measures; empty before the first start.

    step, total_steps; epoch; loss and eval_loss in nats per token; reward (PPO); learning_rate;
    steps_per_second; eta in seconds; cpu in percent of one core; memory and gpu_memory in bytes; gpu in percent; age
    of the beat in seconds.
    """
    beat = files.read_json(run.progress)
    beat.update(files.read_json(run.usage))
    if stored := files.read_json(run.stored).get("step"):
        beat["stored"] = stored
    if "step" in beat and beat.get("steps_per_second"):
        beat["eta"] = (beat["total_steps"] - beat["step"]) / beat["steps_per_second"]
    if "time" in beat:
        beat["age"] = max(0.0, time.time() - beat["time"])
    return beat


def line(beat: dict[str, t.Any], *, live: bool = True) -> str:
    """`step 120/300  40%  loss 2.1134  lr 8.2e-04  3.10 steps/s  ETA 0:58  cpu 187%  mem 1.2 GB`.

    live: ranks are there now; else what is measured of them (speed, time left, use) is left out.
    """
    parts = []
    if beat.get("total_steps"):
        width = len(str(beat["total_steps"]))
        share = 100 * beat["step"] // beat["total_steps"]
        parts.append(f"step {beat['step']:>{width}}/{beat['total_steps']}  {share:>3}%")
    else:
        parts.append("waiting for the other nodes" if beat.get("waiting") else str(beat.get("phase", "starting")))
    if beat.get("loss") is not None:
        parts.append(f"loss {beat['loss']:.4f}")
    if beat.get("reward") is not None:
        parts.append(f"reward {beat['reward']:.4f}")
    if beat.get("learning_rate") is not None:
        parts.append(f"lr {beat['learning_rate']:.1e}")
    if not live:
        return "  ".join(parts) if beat.get("total_steps") else ""
    if beat.get("steps_per_second"):
        speed = beat["steps_per_second"]
        parts.append(f"{speed:.2f} steps/s" if speed >= 0.1 else f"{1 / speed:.0f} s/step")
    if beat.get("eta") is not None and beat.get("step") != beat.get("total_steps"):
        parts.append(f"ETA {duration(beat['eta'])}")
    if beat.get("total_steps") and beat.get("phase") in ("saving", "evaluating"):
        parts.append(beat["phase"])
    if beat.get("stored"):
        parts.append(f"stored {beat['stored']}")
    if beat.get("gpu") is not None:
        parts.append(f"gpu {beat['gpu']:.0f}%  {size(beat.get('gpu_memory', 0))}")
    elif beat.get("cpu") is not None:
        parts.append(f"cpu {beat['cpu']:.0f}%")
    if beat.get("memory"):
        parts.append(f"mem {size(beat['memory'])}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """0:58, 1:02:03, 2d 03:04:05."""
    days, rest = divmod(int(seconds + 0.5), 86400)
    hours, rest = divmod(rest, 3600)
    minutes, seconds = divmod(rest, 60)
    if days:
        return f"{days}d {hours:02}:{minutes:02}:{seconds:02}"
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def size(amount: float) -> str:
    """Bytes in powers of 1000: 812 MB, 1.2 GB."""
    return f"{amount / 1e9:.1f} GB" if amount >= 1e9 else f"{amount / 1e6:.0f} MB"


def log_entries(run: Run) -> list[dict[str, t.Any]]:
    """LLaMA-Factory's trainer_log.jsonl; a torn last line is left out."""
    entries = []
    try:
        lines = run.trainer_log.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for text in lines:
        try:
            entries.append(json.loads(text))
        except ValueError:
            continue
    return entries


def summary(run: Run) -> dict[str, t.Any]:
    """What a finished run came to: losses in nats per token, steps, seconds, where its results are."""
    entries = log_entries(run)
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    rewards = [entry["reward"] for entry in entries if "reward" in entry]
    evaluated = [entry["eval_loss"] for entry in entries if "eval_loss" in entry]
    totals = files.read_json(run.output / "all_results.json")
    state = files.read_json(run.state)
    weights = [name for name in ("adapter_model.safetensors", "model.safetensors") if (run.output / name).exists()]
    plots = sorted(path.name for path in run.output.glob("training_*.png"))
    return {
        "output": str(run.output),
        "weights": [str(run.output / name) for name in weights] or [str(run.output)],
        "plots": [str(run.output / name) for name in plots],
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "first_reward": rewards[0] if rewards else None,
        "last_reward": rewards[-1] if rewards else None,
        "eval_loss": evaluated[-1] if evaluated else totals.get("eval_loss"),
        "steps": entries[-1].get("current_steps") if entries else None,
        "train_runtime": totals.get("train_runtime"),
        "samples_per_second": totals.get("train_samples_per_second"),
        "finished": state.get("time"),
        "attempts": state.get("attempt"),
        "stored": _stored(run),
        "memory": memory.line(run),
    }


def has_results(run: Run, url: str) -> bool:
    """Whether the results are in S3, by what the sender wrote down."""
    told, wanted = files.read_json(run.stored), store.digest_of_results(files.read_json(run.artefacts))
    return bool(told.get("url") == url and told.get("results") == wanted)


def _stored(run: Run) -> str:
    """Where its results are besides, or that they are not there; empty where they are not to be."""
    launch, told = files.read_json(run.launch), files.read_json(run.stored)
    url = launch.get("store", {}).get("url", "")
    if not url or launch.get("node_rank"):
        return ""
    return f"{url}/results" if has_results(run, url) else f"not in {url}: {told.get('error') or 'it was not sent'}"


def summary_lines(facts: dict[str, t.Any]) -> list[str]:
    """The summary as a person reads it."""
    lines = []
    if facts.get("first_loss") is not None:
        text = f"loss      {facts['first_loss']:.4f} → {facts['last_loss']:.4f} over {facts['steps']} steps"
        if facts.get("eval_loss") is not None:
            text += f", held out {facts['eval_loss']:.4f}"
        lines.append(text)
    if facts.get("first_reward") is not None:
        lines.append(f"reward    {facts['first_reward']:.4f} → {facts['last_reward']:.4f}")
    if (facts.get("train_runtime") or 0) >= 0.5:  # an attempt that only ended the run made no steps
        lines.append(
            f"speed     {facts['samples_per_second']:.1f} samples/s, {duration(facts['train_runtime'])}"
            + (f" in the last of {facts['attempts']} attempts" if (facts.get("attempts") or 1) > 1 else "")
        )
    if facts.get("memory"):
        lines.append(f"memory    {facts['memory']}")
    lines += [f"weights   {path}" for path in facts.get("weights", [])]
    lines += [f"plot      {path}" for path in facts.get("plots", [])]
    lines += [f"stored    {facts['stored']}"] if facts.get("stored") else []
    return lines
