# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What NVML tells where there is no nvidia-smi, by nvidia-ml-py. A program of its own: a driver that hangs must not
hang its caller. Prints JSON; what a card does not tell is left out.
"""

from __future__ import annotations

import json
import sys
import typing as t


def told(nvml: t.Any, name: str, *arguments: t.Any) -> t.Any:
    """A value of NVML's; None where this card or driver has none."""
    try:
        value = getattr(nvml, name)(*arguments)
    except Exception:
        return None
    return value.decode() if isinstance(value, bytes) else value


def memory(nvml: t.Any, handle: t.Any) -> dict[str, int]:
    found = told(nvml, "nvmlDeviceGetMemoryInfo", handle)
    return {"memory": int(found.total), "memory_free": int(found.free), "memory_used": int(found.used)} if found else {}


def slices(nvml: t.Any, handle: t.Any) -> list[dict[str, t.Any]]:
    found = []
    for number in range(told(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
        one = told(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, number)
        if one is not None:
            sizes = {key: size for key, size in memory(nvml, one).items() if key != "memory_used"}
            found.append({"index": number, "uuid": told(nvml, "nvmlDeviceGetUUID", one) or "", **sizes})
    return found


def card(nvml: t.Any, index: int, handle: t.Any) -> dict[str, t.Any]:
    capability = told(nvml, "nvmlDeviceGetCudaComputeCapability", handle)
    mig = told(nvml, "nvmlDeviceGetMigMode", handle)
    bus = told(nvml, "nvmlDeviceGetPciInfo", handle)
    address = getattr(bus, "busId", "")
    return {
        "index": index,
        "uuid": told(nvml, "nvmlDeviceGetUUID", handle) or "",
        "name": told(nvml, "nvmlDeviceGetName", handle) or "",
        "pci": address.decode() if isinstance(address, bytes) else str(address),
        "compute_capability": float(f"{capability[0]}.{capability[1]}") if capability else 0.0,
        "mig": bool(mig[0]) if mig else None,
        "slices": slices(nvml, handle) if mig and mig[0] else [],
        **memory(nvml, handle),
    }


def main() -> None:
    import pynvml as nvml

    nvml.nvmlInit()
    cuda = told(nvml, "nvmlSystemGetCudaDriverVersion") or 0
    cards = []
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = told(nvml, "nvmlDeviceGetHandleByIndex", index)
        cards.append(card(nvml, index, handle) if handle is not None else {"index": index, "lost": "GPU is lost"})
    driver = told(nvml, "nvmlSystemGetDriverVersion") or ""
    json.dump(
        {"driver": driver, "cuda": f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else "", "gpus": cards}, sys.stdout
    )


if __name__ == "__main__":
    main()
