"""What stands at the end of a run, or of any trained weights: every reading."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from model.checkpoint import weights_of
from model.lanelm import LaneLM
from model.material import Material
from model.passes import Known
from model.probe import always, prompted_readings, readings, tokenizer_floor


def final_readings(
    model: LaneLM,
    material: Material,
    y_weight: float | None = None,
    known: Known | None = None,
) -> dict[str, float]:
    """Take final/ of the weights in `model`, and floor/.

    Args:
        model: trained.
        material: the images; with one training image those of validation are its donors.
        y_weight: of the last step, for final/objective; None: the config's.
        known: what these weights wrote before; what they write now is added.
    """
    m = material
    found = readings(
        model,
        m.bank,
        m.shown,
        "final",
        donors=m.val,
        full=True,
        y_weight=y_weight,
        known=known,
    )
    return found | tokenizer_floor(m.train.targets, model.tokenizer, m.train.truth)


def held_out_readings(
    model: LaneLM,
    material: Material,
    prefix: Literal["val", "best", "test"],
    scored: Callable[[Mapping[str, float]], bool] = always,
    known: Known | None = None,
) -> dict[str, float]:
    """Take val/, best/ (on the validation images too) or test/ of the weights in `model`.

    Those of test/, which are taken once, say too how lanes go on whose first point is given.

    Args:
        model: trained.
        material: the images.
        prefix: of the names.
        scored: told how the lanes lie in px; whether to score them by the data sets' rules too.
        known: what these weights wrote before; what they write now is added.
    """
    split = material.test if prefix == "test" else material.val
    bank = material.bank
    own = readings(model, bank, split, prefix, donors=None, full=False, scored=scored, known=known)
    return own | prompted_readings(model, bank, split, prefix) if prefix == "test" else own


def renamed(found: Mapping[str, float], old: str, new: str) -> dict[str, float]:
    """Give the readings of prefix `old/` under `new/`."""
    return {
        f"{new}/{name.removeprefix(f'{old}/')}": value
        for name, value in found.items()
        if name.startswith(f"{old}/")
    }


@contextmanager
def other_weights(model: LaneLM, weights: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Put `weights` (None: its own) into the model for a while."""
    if weights is None:
        yield
        return
    own = weights_of(model)
    model.load_state_dict(dict(weights))
    try:
        yield
    finally:
        model.load_state_dict(own)


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory_mb` count from now on, where the system can."""
    if device.type == "cuda":
        torch.cuda.init()  # nothing of this process may have asked for the device yet
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # elsewhere than on Linux, or not allowed: the peak of the process
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """Largest memory since the reset: of the device's allocator, or resident when on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6  # bytes there, KiB here
