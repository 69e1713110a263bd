# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The job that tries GPUs out, run by an environment's Python with torch. One line of JSON for each step that is done,
so that what was seen before a hang or a crash is not lost. The question is its argument, as JSON.

On `device: cpu` it does the same without a GPU, which tests its own arithmetic.
"""

from __future__ import annotations

import json
import os
import sys
import typing as t

BLOCK = 32 << 20
"""Numbers of eight bytes that are written and read at a time, unless that is more than a 64th."""
SIDE, ROUNDS = 1024, 20
PEER_BYTES = 64 << 20


def tell(what: str, ok: bool, **more: t.Any) -> bool:
    sys.stdout.write(json.dumps({"what": what, "ok": ok, **more}) + "\n")
    sys.stdout.flush()
    return ok


def step(what: str, work: t.Callable[[], dict[str, t.Any]], **more: t.Any) -> bool:
    """Do it and tell how it went. Whatever torch raises is the answer."""
    try:
        found = work()
    except Exception as error:
        said = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        return tell(what, False, why=said[0], **more)
    return tell(what, not found.get("why"), **found, **more)


def context(torch: t.Any, device: str) -> dict[str, t.Any]:
    """The first kernel: a driver that is too old, a fabric that is not up and wheels without code for the card end
    here."""
    if float(torch.ones(8, device=device).sum().item()) != 8.0:
        return {"why": "eight ones add up to something else"}
    if device == "cpu":
        return {"torch": str(torch.__version__)}
    major, minor = torch.cuda.get_device_capability(0)
    return {"torch": str(torch.__version__), "capability": float(f"{major}.{minor}")}


def memory(torch: t.Any, device: str, share: float, size: int) -> dict[str, t.Any]:
    """Every number is written with its own place and read back, then with all of its bits turned."""
    free = size if device == "cpu" else int(torch.cuda.mem_get_info(0)[0])
    length = max(1, min(BLOCK, (size or free) // 512))
    count = max(1, (size or int(free * share)) // (8 * length))
    blocks = [
        torch.arange(number * length, (number + 1) * length, dtype=torch.int64, device=device)
        for number in range(count)
    ]
    for turned in (False, True):
        for number, block in enumerate(blocks):
            wanted = torch.arange(number * length, (number + 1) * length, dtype=torch.int64, device=device)
            if turned:
                block.bitwise_not_()
                wanted.bitwise_not_()
            if not torch.equal(block, wanted):
                return {"why": f"what was written to block {number + 1} of {count} came back otherwise"}
    return {"bytes": count * length * 8, "free": free}


def product(torch: t.Any, device: str, kind: str) -> dict[str, t.Any]:
    """Small whole numbers, whose product every card must get right to the last bit, as the CPU does."""
    dtype = getattr(torch, kind)
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    dice = torch.Generator().manual_seed(0)
    left, right = (torch.randint(-3, 4, (SIDE, SIDE), generator=dice).float() for _side in range(2))
    wanted = (left @ right).to(dtype)
    here = [side.to(device=device, dtype=dtype) for side in (left, right)]
    for number in range(ROUNDS):
        found = (here[0] @ here[1]).cpu()
        if not torch.equal(found, wanted):
            wrong = int((found != wanted).sum())
            return {"why": f"{wrong} of {SIDE * SIDE} numbers of product {number + 1} are not the CPU's"}
    return {}


def peer(torch: t.Any, one: str, two: str, size: int) -> dict[str, t.Any]:
    """There and back, and both compared with what was sent."""
    sent = torch.arange(size // 8, dtype=torch.int64).mul_(2654435761)
    there = sent.to(one, copy=True).to(two, copy=True)
    if not torch.equal(there.cpu(), sent):
        return {"why": "bytes changed on the way there"}
    if not torch.equal(there.bitwise_not_().to(one, copy=True).cpu(), sent.bitwise_not_()):
        return {"why": "bytes changed on the way back"}
    if one == "cpu":
        return {}
    return {"direct": bool(torch.cuda.can_device_access_peer(*(int(name.rpartition(":")[2]) for name in (one, two))))}


def alone(torch: t.Any, device: str, share: float, size: int) -> None:
    """Each step stands on the one before: after a failure a context is of no more use."""
    if not step("context", lambda: context(torch, device)):
        return
    old = device != "cpu" and torch.cuda.get_device_capability(0)[0] < 8
    kinds = ("float32", "float16" if old else "bfloat16")
    if step("memory", lambda: memory(torch, device, share, size)):
        for kind in kinds:
            if not step(kind, lambda kind=kind: product(torch, device, kind)):  # type: ignore[misc]
                return


def together(torch: t.Any, device: str, count: int) -> None:
    names = [device if device == "cpu" else f"{device}:{number}" for number in range(count)]
    for two in range(count):
        for one in range(two):
            pair = [one, two]
            step("peer", lambda pair=pair: peer(torch, names[pair[0]], names[pair[1]], PEER_BYTES), pair=pair)  # type: ignore[misc]


def main() -> None:
    asked = json.loads(sys.argv[1])
    if asked["device"] != "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(asked["visible"])
    try:
        import torch
    except Exception as error:
        tell("context", False, why=f"torch cannot be used: {error}")
        return
    if asked["together"]:
        together(torch, asked["device"], len(asked["visible"]))
    else:
        alone(torch, asked["device"], asked["share"], asked["bytes"])


if __name__ == "__main__":
    main()
