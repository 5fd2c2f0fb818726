"""What a data set is made of: a frame, a scene with its lanes, a reference that can load it."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from model.config import DataConfig

Kind = Literal["rendered", "culane", "tusimple"]
Polyline = Float[np.ndarray, "_ 2"]

NO_PIXELS = np.empty((0, 0, 3), np.uint8)
NO_PIXELS.flags.writeable = False
_SLOPE_SPAN = 40.0  # px of a lane's lower end that give its direction towards the bottom


class DataError(ValueError):
    """Data that cannot be used: one line names the path[:line], what is wrong, what is allowed."""

    def __init__(self, message: str) -> None:
        """Keep the message on one line, whatever a path or a label holds."""
        super().__init__(" ".join(message.splitlines()))


@dataclass(frozen=True)
class Frame:
    """The original image, the rows cut from its top, and the input it becomes; all px."""

    width: int
    height: int
    crop_top: int
    input_width: int
    input_height: int

    @property
    def scale(self) -> tuple[float, float]:
        """Input px per original px, (x, y)."""
        rows = self.height - self.crop_top
        return self.input_width / self.width, self.input_height / rows

    def to_input(self, points: Polyline) -> Polyline:
        """Original px to input px; points outside the crop land outside the input."""
        return (points - (0.0, self.crop_top)) * self.scale

    def to_original(self, points: Polyline) -> Polyline:
        """Input px to original px."""
        return points / self.scale + (0.0, self.crop_top)


@dataclass(frozen=True)
class Scene:
    """One image and its lanes.

    `image` is BGR (height, width, 3) uint8 at input size. `lanes` are (P, 2) float64 polylines of
    x, y in input px, y strictly ascending, all of it inside the image, ordered and limited as the
    DataConfig says. `original_lanes` are all labelled lanes in original px, uncut, y ascending,
    for the official metrics. `h_samples` are TuSimple's labelled rows in original px. Of labels
    alone (`SceneRef.labels`) the image is `NO_PIXELS`.
    """

    key: str
    kind: Kind
    image: np.ndarray
    lanes: tuple[Polyline, ...]
    frame: Frame
    original_lanes: tuple[Polyline, ...]
    h_samples: tuple[int, ...] | None = None


@dataclass(frozen=True)
class SceneRef(ABC):
    """A scene that is not read yet; `key` is unique within its Splits."""

    key: str

    @property
    @abstractmethod
    def kind(self) -> Kind: ...

    @abstractmethod
    def load(self, config: DataConfig) -> Scene:
        """Read or draw the scene; raises DataError."""

    @abstractmethod
    def labels(self, config: DataConfig) -> Scene:
        """Give what `load` does without reading or drawing a pixel; raises DataError.

        An image that is missing, damaged or of another size is for `check` and `load` to find.
        """

    @abstractmethod
    def check(self, config: DataConfig) -> None:
        """Open what `load` would; raises DataError."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files whose whole content makes the scene."""
        return ()

    @property
    @abstractmethod
    def recipe(self) -> str:
        """The rest of what makes the scene; no path, so that moved data keeps its digest."""

    def digest(self, file_hash: Callable[[Path], str] | None = None) -> str:
        """Content hash of image and label; independent of where the files lie."""
        hashes = map(file_hash or hash_file, self.files)
        return hashlib.sha256("\n".join([self.kind, self.recipe, *hashes]).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def ascending(points: Polyline) -> Polyline:
    """Sort a labelled lane by y and keep the first point of a repeated row."""
    _, first = np.unique(points[:, 1], return_index=True)
    return points[first]


def input_lanes(
    lanes: Sequence[Polyline], frame: Frame, config: DataConfig
) -> tuple[Polyline, ...]:
    """Lanes in input px: cut at the image's edges, ordered, at most `max_lanes`.

    Lane order is left to right where the lanes meet the bottom row, prolonged if they end above
    it; of more than `max_lanes` those nearest to the middle stay (legacy `label`: the first ones).
    What is left of a lane with fewer than two points is dropped.

    With `ego` empty lanes before them move the others so far right that the first one right of the
    image's middle is the `max_lanes // 2`-th, or as far as there is room (SCNN's slots; Pan et al.,
    2018).
    """
    found: list[tuple[float, Polyline]] = []
    for lane in lanes:
        points = frame.to_input(lane)
        if len(points) < 2:
            continue
        bottom = _x_at_bottom(points, frame.input_height)
        if config.above_crop == "clip":  # the topmost point wins row 0, as in the legacy code
            points = ascending(np.maximum(points, (-np.inf, 0.0)))
        points = cut(points, frame.input_width, frame.input_height)
        if len(points) >= 2:
            found.append((bottom, points))
    middle = frame.input_width / 2
    if config.lane_order != "label":
        found.sort(key=lambda lane: abs(lane[0] - middle))
        found = sorted(found[: config.max_lanes], key=lambda lane: lane[0])
    kept = tuple(points for _, points in found[: config.max_lanes])
    if config.lane_order == "ego":
        left = sum(bottom < middle for bottom, _ in found)
        free = config.max_lanes - len(kept)
        return (np.empty((0, 2)),) * min(max(config.max_lanes // 2 - left, 0), free) + kept
    return kept


def cut(points: Polyline, width: int, height: int) -> Polyline:
    """The part of a polyline inside [0, width) x [0, height), ending where it meets the edge.

    Of a polyline that leaves the image and comes back, the longest part stays (in rows), because a
    lane's rows are contiguous. Returns (0, 2) if nothing is inside.
    """
    last = np.nextafter((width, height), 0.0)
    index = np.arange(len(points), dtype=float)
    stations = [index]  # places along the polyline: the points, then its crossings of the edges
    for axis in (0, 1):
        values = points[:, axis]
        for edge in (0.0, last[axis]):
            before = np.flatnonzero((values[:-1] - edge) * (values[1:] - edge) < 0)
            stations.append(
                before + (edge - values[before]) / (values[before + 1] - values[before])
            )
    along = np.unique(np.concatenate(stations))
    line = np.stack([np.interp(along, index, points[:, axis]) for axis in (0, 1)], axis=1)
    inside = ((line >= -1e-9) & (line <= last + 1e-9)).all(axis=1)  # crossings are rounded
    edges = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]]).astype(np.int8)))
    runs = edges.reshape(-1, 2)
    if not len(runs):
        return np.empty((0, 2))
    start, stop = max(runs, key=lambda run: line[run[1] - 1, 1] - line[run[0], 1])
    return ascending(np.clip(line[start:stop], 0.0, last))


def _x_at_bottom(points: Polyline, height: int) -> float:
    """The x at which a lane meets the bottom row, prolonged from its lower end if need be."""
    x, y = points.T
    if y[-1] >= height:
        return float(np.interp(height, y, x))
    first = min(int(np.searchsorted(y, y[-1] - _SLOPE_SPAN)), len(y) - 2)
    slope = (x[-1] - x[first]) / (y[-1] - y[first])
    return float(x[-1] + slope * (height - y[-1]))
