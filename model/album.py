"""The pictures that a job leaves: lanes over its images, and where it looks, over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from model.config import TrainConfig
from model.data import SceneRef
from model.draw import Image
from model.eval_split import EvalSplit
from model.lanelm import LaneLM
from model.material import Material, pixels
from model.passes import Known
from model.pictures import attention_sheet, lanes_over, overlays

PICTURED = 2
"""Images of a split that are drawn at the end; during training it is one."""
QUALITY = 80
"""Of WebP: a sixteenth of a PNG's bytes, in a third of its time."""


class Album:
    """Draws while a job trains, from lanes that its evaluations decode anyway, and at its end."""

    def __init__(self, config: TrainConfig, material: Material, folder: Path) -> None:
        self._material, self._folder = material, folder
        self._data = config.data
        optim, runtime = config.optim, config.runtime
        times = runtime.pictures_during if runtime.pictures else 0
        self.steps = picture_steps(optim.steps, config.evaluation.every, times)

    def during(self, model: LaneLM, step: int, known: Known) -> bool:
        """Draw the first image of a split if it is time to: what was written, where it looks."""
        if step not in self.steps:
            return False
        for name, split, refs in self._splits():
            if len(split) and (own := known.lanes.get(split.indices[0])) is not None:
                image = pixels(refs[0], self._data)
                drawn = lanes_over(own, split.truth[0], image, model.config)
                self._write(f"{name}_0", step, drawn)
        self._sheet(model, step)
        return True

    def last(self, model: LaneLM, step: int, known: Known) -> None:
        """Draw the first images of the splits."""
        for name, split, refs in self._splits():
            few = split.first(PICTURED)
            images = [pixels(ref, self._data) for ref in refs[: len(few)]]
            lanes = overlays(model, self._material.bank, few, images, known) if images else ()
            for i, drawn in enumerate(lanes):
                self._write(f"{name}_{i}", step, drawn)
        self._sheet(model, step)

    def _splits(self) -> list[tuple[str, EvalSplit, Sequence[SceneRef]]]:
        m = self._material
        return [("train", m.shown, m.splits.train), ("val", m.val, m.splits.val)]

    def _sheet(self, model: LaneLM, step: int) -> None:
        m = self._material
        image = pixels(m.splits.train[0], self._data)
        sheet = attention_sheet(model, m.bank, m.shown, 0, image)
        if sheet is not None:
            self._write("attention", step, sheet)

    def _write(self, name: str, step: int, image: Image) -> None:
        """Write a picture whole or not at all."""
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"{name}_step{step:06d}.webp"
        temporary = path.with_name(f".{path.name}.tmp")
        pixels = np.ascontiguousarray(image[..., ::-1])  # BGR
        Pillow.fromarray(pixels).save(temporary, "WEBP", quality=QUALITY, method=0)
        temporary.replace(path)


def picture_steps(steps: int, every: int, times: int) -> frozenset[int]:
    """Say when pictures are drawn: before the first step, then at evaluations spread evenly.

    The last step has pictures of its own.

    >>> sorted(picture_steps(500, 50, 5))
    [0, 100, 200, 300, 400]
    """
    if not times:
        return frozenset()
    evaluations = range(every, steps, every)
    wanted = min(times - 1, len(evaluations))
    spread = (len(evaluations) + 1) / (wanted + 1)
    return frozenset({0, *(evaluations[round(i * spread) - 1] for i in range(1, wanted + 1))})
