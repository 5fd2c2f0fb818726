"""The readings that stand at the end of a run, or of any trained weights."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoint import weights_of
from model.lanelm import LaneLM
from model.material import Material
from model.probe import readings, tokenizer_floor


def final_readings(
    model: LaneLM,
    material: Material,
    *,
    y_weight: float | None = None,
    best: Mapping[str, Tensor] | None = None,
) -> dict[str, float]:
    """Take every reading: final/ and val/ of the weights in `model`, best/ and test/ of `best`.

    Args:
        model: trained; unchanged in the end.
        material: the images.
        y_weight: of the last step, for final/objective; None: the config's.
        best: weights chosen by validation px; None: those in `model`.
    """
    m, donors = material, material.val
    final = readings(model, m.bank, m.shown, "final", donors=donors, full=True, y_weight=y_weight)
    found = final | tokenizer_floor(m.train.targets, model.tokenizer)
    if len(m.val):
        found |= readings(model, m.bank, m.val, "val", donors=None, full=True)
    last = weights_of(model)
    try:
        if best is not None:
            model.load_state_dict(dict(best))
            if len(m.val):
                found |= readings(model, m.bank, m.val, "best", donors=None, full=True)
        else:
            chosen = {n: v for n, v in found.items() if n.startswith("val/")}
            found |= {f"best/{n.removeprefix('val/')}": v for n, v in chosen.items()}
        if len(m.test):
            found |= readings(model, m.bank, m.test, "test", donors=None, full=True)
    finally:
        model.load_state_dict(last)
    return found


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory_mb` count from now on, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # elsewhere than on Linux, or not allowed: the peak of the process
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """Largest memory since the reset: of the device's allocator, or resident when on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6  # bytes there, KiB here
