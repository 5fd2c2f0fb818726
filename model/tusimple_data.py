"""TuSimple: a label file holds one JSON object per line with raw_file, lanes and h_samples."""

from __future__ import annotations

import functools
import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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

WIDTH, HEIGHT, CROP_TOP = 1280, 720, 160
_RAW_FILE = re.compile(r'"raw_file"\s*:\s*"([^"]*)"')


@dataclass(frozen=True)
class TusimpleLabel:
    """One line of a label file: lanes in original px and the rows they are labelled at."""

    raw_file: str
    lanes: tuple[Polyline, ...]
    h_samples: tuple[int, ...]


@dataclass(frozen=True)
class TusimpleRef(SceneRef):
    """One TuSimple image with its label line."""

    root: Path
    line: Line

    @property
    def kind(self) -> Kind:
        return "tusimple"

    @property
    def files(self) -> tuple[Path, ...]:
        return (self._image(parse_label(self.line)),)

    @property
    def recipe(self) -> str:
        return self.line.text

    def check(self, config: DataConfig) -> None:
        check_image(self._image(parse_label(self.line)), (WIDTH, HEIGHT))

    def load(self, config: DataConfig) -> Scene:
        image = read_image(self._image(parse_label(self.line)), (WIDTH, HEIGHT))[CROP_TOP:]
        image = cv2.resize(image, (config.width, config.height))
        return replace(self.labels(config), image=image)

    def labels(self, config: DataConfig) -> Scene:
        label = parse_label(self.line)
        frame = tusimple_frame(config)
        return Scene(
            key=self.key,
            kind=self.kind,
            image=NO_PIXELS,
            lanes=input_lanes(label.lanes, frame, config),
            frame=frame,
            original_lanes=label.lanes,
            h_samples=label.h_samples,
        )

    def _image(self, label: TusimpleLabel) -> Path:
        path = self.root / label.raw_file.lstrip("/")
        if not path.is_file():
            raise DataError(f"{self.line.where}: no image file {path}")
        return path


def tusimple_frame(config: DataConfig) -> Frame:
    """TuSimple's frame: the rows from 160 down become the input."""
    return Frame(WIDTH, HEIGHT, CROP_TOP, config.width, config.height)


def is_tusimple(root: Path) -> bool:
    return any(root.glob("label_data_*.json")) or (root / "test_label.json").is_file()


def tusimple_listing(root: Path, split: str, prefix: str) -> Listing | None:
    """The images of a split, label files in name order, or None if the root has none for it."""
    if split == "train":
        paths, name = sorted(root.glob("label_data_*.json")), root / "label_data_*.json"
    elif split == "test":
        name = root / "test_label.json"
        paths = [name] if name.is_file() else []
    else:
        return None
    if not paths:
        return None
    lines = [line for path in paths for line in read_lines(path)]
    key = functools.partial(_key, prefix)
    return Listing(str(name), lines, key, lambda line: TusimpleRef(key(line), root, line))


def _key(prefix: str, line: Line) -> str:
    """The image's path; of a line without one (refused when it is parsed) its place."""
    found = _RAW_FILE.search(line.text)
    return prefix + (found.group(1).lstrip("/") if found else line.where)


def parse_label(line: Line) -> TusimpleLabel:
    """The lanes of a label line; negative x = no point, a lane without points is no lane.

    Raises:
        DataError: not such an object, or lanes and h_samples that do not fit each other.
    """
    try:
        label = json.loads(line.text)
    except ValueError as error:
        raise DataError(f"{line.where}: malformed JSON ({error})") from None
    if not isinstance(label, dict) or not isinstance(label.get("raw_file"), str):
        raise DataError(f"{line.where}: expected an object with raw_file, lanes and h_samples")
    rows = _numbers(line, "h_samples", label.get("h_samples"))
    lanes = label.get("lanes")
    if not isinstance(lanes, list):
        raise DataError(f"{line.where}: lanes must be a list of lists of x")
    polylines = []
    for index, lane in enumerate(lanes):
        xs = _numbers(line, f"lanes[{index}]", lane)
        if len(xs) != len(rows):
            raise DataError(
                f"{line.where}: lanes[{index}] has {len(xs)} values, expected {len(rows)}, "
                "one per h_samples row"
            )
        points = np.stack([xs, rows], axis=1)[xs >= 0]
        if len(points):
            polylines.append(ascending(points))
    return TusimpleLabel(label["raw_file"], tuple(polylines), tuple(int(row) for row in rows))


def _numbers(line: Line, name: str, values: Any) -> np.ndarray:
    if not isinstance(values, list):
        raise DataError(f"{line.where}: {name} must be a list of numbers")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
            raise DataError(f"{line.where}: {name} must hold numbers, given {str(value)[:40]!r}")
    return np.array(values, dtype=float)


def _finite(value: float | int) -> bool:
    return math.isfinite(value) and abs(value) < 1e9
