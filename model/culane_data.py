"""CULane: `list/*.txt` names the images, `<image>.lines.txt` holds a lane per line as x y pairs."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from model.config import DataConfig
from model.image_file import check_image, read_image
from model.listing import Line, Listing, read_lines
from model.scene import (
    NO_PIXELS,
    DataError,
    Frame,
    Kind,
    Polyline,
    Scene,
    SceneRef,
    ascending,
    input_lanes,
)

WIDTH, HEIGHT, CROP_TOP = 1640, 590, 270
_LISTS = {"train": ("train_gt.txt", "train.txt"), "val": ("val_gt.txt", "val.txt"),
          "test": ("test.txt",)}  # fmt: skip
_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class CulaneRef(SceneRef):
    """One CULane image; `named_at` is the list's path:line, for messages."""

    image: Path
    label: Path
    named_at: str

    @property
    def kind(self) -> Kind:
        return "culane"

    @property
    def files(self) -> tuple[Path, ...]:
        return self.image, self.label

    @property
    def recipe(self) -> str:
        return ""

    def check(self, config: DataConfig) -> None:
        self._require_files()
        read_lanes(self.label)
        check_image(self.image, (WIDTH, HEIGHT))

    def load(self, config: DataConfig) -> Scene:
        labels = self.labels(config)
        image = read_image(self.image, (WIDTH, HEIGHT))[CROP_TOP:]
        return replace(labels, image=cv2.resize(image, (config.width, config.height)))

    def labels(self, config: DataConfig) -> Scene:
        self._require_files()
        frame = culane_frame(config)
        original = read_lanes(self.label)
        return Scene(
            key=self.key,
            kind=self.kind,
            image=NO_PIXELS,
            lanes=input_lanes(original, frame, config),
            frame=frame,
            original_lanes=original,
        )

    def _require_files(self) -> None:
        for what, path in (("image", self.image), ("label", self.label)):
            if not path.is_file():
                raise DataError(f"{self.named_at}: no {what} file {path}")


def culane_frame(config: DataConfig) -> Frame:
    """CULane's frame: the rows from 270 down become the input."""
    return Frame(WIDTH, HEIGHT, CROP_TOP, config.width, config.height)


def is_culane(root: Path) -> bool:
    return (root / "list").is_dir()


def culane_listing(root: Path, split: str, prefix: str) -> Listing | None:
    """The images of a split in list order, or None if the root has no list for it."""
    for name in _LISTS[split]:
        path = root / "list" / name
        if path.is_file():
            key = functools.partial(_key, prefix)
            return Listing(str(path), read_lines(path), key, functools.partial(_parse, root, key))
    return None


def _relative(line: Line) -> str:
    return line.text.split(maxsplit=1)[0].lstrip("/")


def _key(prefix: str, line: Line) -> str:
    return prefix + _relative(line)


def _parse(root: Path, key: functools.partial[str], line: Line) -> CulaneRef:
    relative = _relative(line)
    if not relative.lower().endswith(_SUFFIXES):
        raise DataError(
            f"{line.where}: malformed line, expected an image path (*.jpg) first, "
            f"given {line.text[:60]!r}"
        )
    image = root / relative
    return CulaneRef(key(line), image, image.with_suffix(".lines.txt"), line.where)


def read_lanes(path: Path) -> tuple[Polyline, ...]:
    """The lanes of a `.lines.txt` in original px, in file order; an empty file has none.

    x may lie outside the image. A negative y marks a point that is not there (all -2: no lane).

    Raises:
        DataError: unreadable, or a line that is not x y pairs of finite numbers.
    """
    lanes = []
    for line in read_lines(path):
        values = _numbers(line)
        if len(values) % 2:
            raise DataError(f"{line.where}: expected x y pairs, given {len(values)} numbers")
        points = np.array(values).reshape(-1, 2)
        points = points[points[:, 1] >= 0]
        if len(points):
            lanes.append(ascending(points))
    return tuple(lanes)


def _numbers(line: Line) -> list[float]:
    values = []
    for word in line.text.split():
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(f"{line.where}: expected numbers (x y pairs), given {word[:40]!r}")
        values.append(value)
    return values
