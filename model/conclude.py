"""What stands at the end of a run, or of any trained weights: every reading, and pictures."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import cv2
import torch
from torch import Tensor

from model.checkpoint import weights_of
from model.draw import Image
from model.lanelm import LaneLM
from model.material import Material, pixels
from model.passes import Known
from model.pictures import attention_sheet, overlays
from model.probe import always, readings, tokenizer_floor

PNG = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)
"""Two thirds of the time of the usual level 3, and smaller files of pictures like these."""

PICTURED = 2
"""Images of a split that are drawn."""


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

    Args:
        model: trained.
        material: the images.
        prefix: of the names.
        scored: told how the lanes lie in px; whether to score them by the data sets' rules too.
        known: what these weights wrote before; what they write now is added.
    """
    split = material.test if prefix == "test" else material.val
    bank = material.bank
    return readings(model, bank, split, prefix, donors=None, full=False, scored=scored, known=known)


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


def save_pictures(
    model: LaneLM, material: Material, folder: Path, known: Known | None = None
) -> None:
    """Draw decoded lanes over some training and validation images, and where the decoder looks."""
    folder.mkdir(exist_ok=True)
    bank, splits, data = material.bank, material.splits, model.config.data
    for name, split, refs in (
        ("train", material.shown.first(PICTURED), splits.train),
        ("val", material.val.first(PICTURED), splits.val),
    ):
        if not len(split):
            continue
        images = [pixels(ref, data) for ref in refs[: len(split)]]
        for i, drawn in enumerate(overlays(model, bank, split, images, known)):
            _write(folder / f"{name}_{i}.png", drawn)
        if name == "train":
            sheet = attention_sheet(model, bank, split, 0, images[0])
            if sheet is not None:
                _write(folder / "attention.png", sheet)


def _write(path: Path, image: Image) -> None:
    """Write a picture whole or not at all."""
    _, encoded = cv2.imencode(".png", image, PNG)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(encoded.tobytes())
    temporary.replace(path)


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
