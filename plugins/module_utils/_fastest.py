# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What train_fit: fastest makes of a run: of all ways to do it that its author left open, the fastest that fits. Pure.

The samples of an optimizer step stay. What was chosen is recorded with the run, and kept.
"""

from __future__ import annotations

import typing as t
from dataclasses import replace

from . import _memory, _parallel
from ._errors import FinetuneError
from ._memory import Wrong
from ._ranks import Facts
from ._vram import advise, choose
from ._vram.choose import ACCUMULATION, BITS, FUSED, MICRO, PLAIN, Choice, Run, Tried
from ._vram.estimate import gib
from ._vram.keys import DEFAULTS
from ._wish.wish import ASKED, Wish

ORIGIN = "train_fit"
CHOSEN = tuple(sorted((MICRO, ACCUMULATION, PLAIN, FUSED, BITS)))
"""Keys that it may set; in the order in which a record has them, so that files come out the same."""
SHOWN = 3
"""Ways that were passed over."""
_BEGUN = ("interrupted", "stopped", "failed")

Resolved = t.Dict[str, t.Any]
Origins = t.Dict[str, str]


class Fit(t.NamedTuple):
    resolved: Resolved
    origins: Origins
    told: list[str]
    """Lines for people."""
    notices: t.Sequence[str] = ()


def settle(
    wish: Wish,
    record: Resolved,
    resolved: Resolved,
    origins: Origins,
    facts: t.Mapping[str, Facts],
    run: t.Mapping[str, t.Any],
    wrong: Wrong | None,
) -> Fit:
    """Choose, unless that was done and is recorded. run: what the first node knows of it; wrong: what stands against a
    run that is resolved so, None where it would not start."""
    if wish.fit == ASKED or (wrong is None and not record):
        return Fit(resolved, origins, [])
    if not record and wrong is not None:
        return _fit(wish, resolved, origins, facts, run, wrong)
    changed = [key for key in CHOSEN if record["arguments"].get(key) != resolved["arguments"].get(key)]
    origins = {**origins, **{key: ORIGIN for key in changed if key in record["arguments"]}}
    told = ["fit     as recorded"]
    try:
        now = _fit(wish, resolved, origins, facts, run, wrong).resolved if wrong else record
    except FinetuneError:  # nothing fits today; whether the record does is seen elsewhere
        now = record
    return Fit(resolved, origins, told, _drift(record, now))


def _drift(record: Resolved, now: Resolved) -> list[str]:
    """What would be chosen today in the place of what is recorded."""
    keys = [key for key in CHOSEN if record["arguments"].get(key) != now["arguments"].get(key)]
    changed = [f"{key} {now['arguments'].get(key)}" for key in keys]
    changed += [f"engine {now['engine']}"] if record["engine"] != now["engine"] else []
    return [f"Drift: train_resolve=refresh would choose {', '.join(changed)}."] if changed else []


def _fit(
    wish: Wish,
    resolved: Resolved,
    origins: Origins,
    facts: t.Mapping[str, Facts],
    run: t.Mapping[str, t.Any],
    wrong: Wrong,
) -> Fit:
    device = _memory.smallest(wish, facts)
    if device is None:
        return Fit(resolved, origins, [])
    found = _memory.asked(wish, resolved, facts, device)
    if isinstance(found, str) or isinstance(_memory.needed(found), str):
        return Fit(resolved, origins, ["fit     as asked: without an estimate nothing is chosen"])
    found = _opened(wish, resolved, facts, run, _memory.taken(resolved, facts, wrong), found)
    choice = choose.choose(found)
    if choice.chosen is None:
        if wish.risks:
            return Fit(resolved, origins, ["fit     as asked: nothing fits"])
        leanest = min(choice.tried, key=lambda tried: tried.estimate.bound)
        lean = choose.as_option(found, leanest.option)
        allowed = _memory.taken(_with(resolved, origins, leanest.option)[0], facts, wrong)
        how = f"also as {leanest.option.words()}, which needs least of {choice.possible} ways, "
        raise _memory.refusal(lean, leanest.estimate, "train_model, train_args, train_fit", device, allowed, how)
    chosen = _with(resolved, origins, choice.chosen.option)
    if wrong(chosen[0]):  # each part of it was tried alone
        return Fit(resolved, origins, [f"fit     as asked: {choice.chosen.option.words()} is refused"])
    return Fit(*chosen, _told(choice, choice.chosen))


def _opened(
    wish: Wish,
    resolved: Resolved,
    facts: t.Mapping[str, Facts],
    run: t.Mapping[str, t.Any],
    possible: advise.Taken,
    asked: Run,
) -> Run:
    """With what the author left open, as far as nothing else stands against it. A run that has begun keeps its engine,
    which its checkpoints are of."""
    given = resolved["arguments"]
    opened = {key for key in (PLAIN, FUSED) if key not in given and possible({key: True}, "")}
    if not {MICRO, ACCUMULATION} & wish.args.keys() and not given.get("auto_find_batch_size"):
        largest = max(size for size in range(1, choose.LARGEST + 1) if asked.per_rank % size == 0)
        opened |= {MICRO} if possible({MICRO: largest, ACCUMULATION: asked.per_rank // largest}, "") else set()
    if wish.quantizes and not given.get(BITS) and possible({BITS: 4}, ""):
        opened.add(BITS)
    engines: tuple[str, ...] = ()
    if run.get("state") in _BEGUN and run.get("resolved"):
        kept = "ddp" if run["resolved"]["engine"] == "single" else run["resolved"]["engine"]
        engines = (kept,) if kept in choose.ENGINES else ()
    elif wish.engine == _parallel.AUTO and resolved["engine"] in ("single", "ddp"):
        engines = tuple(name for name in choose.ENGINES if possible({}, name))
    situation = replace(asked.situation, engine=_parallel.AUTO) if engines else asked.situation
    host = min((_share(node, wish) for node in facts.values()), default=0)
    return replace(asked, open=frozenset(opened), engines=engines, situation=situation, host=host)


def _share(node: Facts, wish: Wish) -> int:
    """Bytes of the host's memory for each rank; 0 where unknown."""
    ranks = len(_memory.used(wish, node)) or 1
    return int(node.get("memory") or 0) // ranks


def _with(resolved: Resolved, origins: Origins, option: choose.Option) -> tuple[Resolved, Origins]:
    arguments, origins = dict(resolved["arguments"]), dict(origins)
    values = option.over({})
    for key in CHOSEN:
        if values[key] != arguments.get(key, DEFAULTS[key]):
            arguments[key], origins[key] = values[key], ORIGIN
    engine = _parallel.pick(option.engine, arguments, resolved["world_size"])
    return {**resolved, "arguments": arguments, "engine": engine}, origins


def _told(choice: Choice, chosen: Tried) -> list[str]:
    passed = [tried for tried in choice.tried if not tried.fits][-SHOWN:]
    width = max(len(tried.option.words()) for tried in (chosen, *passed))
    lines = [
        f"fit     {chosen.option.words():<{width}}  {_seconds(chosen)}, {gib(chosen.estimate.bound)}: chosen of "
        f"{choice.possible}"
    ]
    lines += [
        f"        {tried.option.words():<{width}}  {_seconds(tried)}, {gib(tried.estimate.bound)}: too much"
        for tried in reversed(passed)
    ]
    return [*lines, "        seconds of a step are predicted from data sheets, not measured: good for an order"]


def _seconds(tried: Tried) -> str:
    return f"{tried.seconds:.1f} s" if tried.seconds >= 0.1 else f"{tried.seconds * 1000:.0f} ms"
