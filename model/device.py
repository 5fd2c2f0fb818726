"""Which devices are here to train on."""

from __future__ import annotations

import torch


def missing(device: str) -> str:
    """Say why nothing trains here on `runtime.device`; "" if it can."""
    if device == "cpu":
        return ""
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not here:
        return f"runtime.device: given {device!r}, but no CUDA device is here; use cpu"
    index = int(device.partition(":")[2] or 0)
    if index < here:
        return ""
    allowed = ", ".join(["cpu", "cuda", *(f"cuda:{i}" for i in range(here))])
    return f"runtime.device: given {device!r}, no such CUDA device is here; allowed: {allowed}"
