"""The geometry of a rendered road: a perspective of curves and hills, and the lines painted on it.

A road is a table over the distance z (m): image row v, px of its reference line, px per metre to
the side. All drawing goes through it, so what is painted and what is labelled cannot differ.
Columns and rows are px of an 800x320 input, a pixel's centre at whole numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from model.scene import Polyline

WIDTH, HEIGHT = 800, 320
_NEAR, _FAR = 1.4, 420.0  # m, ends of the table
_LABEL_FAR = 110.0  # m; people label lane lines about this far
_LABEL_GAP = 5.0  # px between a label's far end and the end of the visible road


@dataclass(frozen=True)
class LaneLine:
    """A painted line; `lane` is its centre as x, y px, y ascending (the label)."""

    lane: Polyline
    width: float  # m
    dash: tuple[float, float] | None = None  # m painted, m of one period
    phase: float = 0.0  # m
    double: bool = False
    yellow: bool = False
    strength: float = 1.0  # 1: new paint, 0: worn away


@dataclass(frozen=True)
class Road:
    """Tables over z (ascending), and what lies across the road (m right of the camera)."""

    z: np.ndarray  # m
    row: np.ndarray  # px, descending
    centre: np.ndarray  # px, the column of lateral 0
    scale: np.ndarray  # px per metre to the side
    rise: np.ndarray  # px per metre upwards
    left: float = -4.0  # edges of the pavement, m
    right: float = 4.0
    lines: tuple[LaneLine, ...] = ()
    lanes: tuple[tuple[float, int], ...] = ()  # middle of each traffic lane (m), direction +1, -1

    @property
    def top(self) -> float:
        """Row where the visible road ends: the horizon or a crest."""
        return float(self.row[-1])

    @property
    def reach(self) -> float:
        """Distance at which it ends, m."""
        return float(self.z[-1])

    def at_row(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(z, centre, scale) at rows; 1/z is what perspective makes linear in the row."""
        rows = self.row[::-1]
        z = 1.0 / np.interp(v, rows, 1.0 / self.z[::-1])
        centre = np.interp(v, rows, self.centre[::-1])
        return z, centre, np.interp(v, rows, self.scale[::-1])

    def project(
        self, side: np.ndarray | float, up: np.ndarray | float, z: np.ndarray | float
    ) -> np.ndarray:
        """Points (m right of the camera, m above the road, m ahead) to px (..., 2)."""
        tables = (self.row, self.centre, self.scale, self.rise)
        inverse = 1 / self.z[::-1]
        row, centre, scale, rise = (np.interp(1 / z, inverse, t[::-1]) for t in tables)
        return np.stack([centre + side * scale, row - up * rise], axis=-1)


def drawn_road(rng: Generator, typical: bool) -> Road:
    """A road of its own: 0 to 4 lines, curves, hills; `typical`: 3 or 4 lines, gentle shapes."""
    road = _perspective(rng, typical)
    lane_width = rng.uniform(3.0, 3.8)
    count = int(rng.choice(5, p=[0, 0, 0, 0.5, 0.5] if typical else [0.06, 0.06, 0.2, 0.32, 0.36]))
    to_left = _lines_left_of_camera(rng, count, typical)
    camera = rng.normal(0.0, 0.15 if typical else 0.3)  # m right of the middle of its lane
    offsets = (np.arange(count) - to_left + 0.5) * lane_width - camera
    shoulder_left, shoulder_right = rng.choice([0.3, 0.6, 1.2, 2.6], 2) * rng.uniform(0.8, 1.2, 2)
    if count < 2:  # the lanes are there, their edges are not marked
        half = rng.uniform(0.95, 1.3) * lane_width
        middle = offsets[0] if count else -camera - (lane_width / 2 if half > 3.6 else 0.0)
        left, right = middle - half, middle + half
    else:
        left, right = offsets[0] - shoulder_left, offsets[-1] + shoulder_right
    two_way = not typical and bool(count < 3 or rng.random() < 0.25)
    style = _LineStyle.choose(rng, two_way)
    lines = tuple(
        style.line(rng, road, offset, _role(index, count, to_left, two_way))
        for index, offset in enumerate(offsets)
    )
    return replace(
        road, left=left, right=right, lines=lines, lanes=_traffic(left, right, lane_width, camera,
                                                                  two_way)
    )  # fmt: skip


def road_through(lanes: Sequence[Polyline], rng: Generator) -> Road:
    """A flat road around given lanes (input px): u = u0 + c/(v - v0) + b_i (v - v0), fitted.

    v0 is the horizon, c the bend and b_i the place of lane i across the road; the lines keep
    exactly the given shapes.
    """
    usable = [lane for lane in lanes if np.ptp(lane[:, 1]) > 20] or list(lanes)
    highest = min(lane[0, 1] for lane in lanes)
    fits = (_fit(usable, v0) for v0 in np.arange(highest - 40.0, highest - 3.0, 3.0))
    _, v0, (u0, bend, *slopes) = min(fits, key=lambda fit: fit[0])
    slopes = np.sort(slopes)
    gaps = np.diff(slopes)
    per_metre = float(np.median(gaps)) / 3.6 if len(gaps) else 0.25  # px per m and row below v0
    per_metre = float(np.clip(per_metre, 0.08, 0.6))
    below = np.geomspace(HEIGHT + 60.0 - v0, 2.0, 300)
    z = 500.0 / (per_metre * below)
    road = Road(z, v0 + below, u0 + bend / below, per_metre * below, below / 1.5)
    offsets = slopes / per_metre
    style = _LineStyle.choose(rng, two_way=False)
    order = np.argsort([np.interp(HEIGHT - 60, lane[:, 1], lane[:, 0]) for lane in lanes])
    lines = tuple(
        replace(style.line(rng, None, 0.0, _role(place, len(lanes), 1, False)), lane=lanes[index])
        for place, index in enumerate(order)
    )
    left = min(offsets[0] - rng.uniform(0.6, 2.6), -2.5)
    right = max(offsets[-1] + rng.uniform(0.6, 2.6), 2.5)
    return replace(
        road, left=left, right=right, lines=lines, lanes=_traffic(left, right, 3.6, 0.0, False)
    )


def _fit(lanes: Sequence[Polyline], v0: float) -> tuple[float, float, np.ndarray]:
    """(squared residual, v0, [u0, c, b_0, ...]) of the least-squares road with horizon v0."""
    rows = []
    for index, lane in enumerate(lanes):
        below = lane[:, 1] - v0
        part = np.zeros((len(lane), 2 + len(lanes)))
        part[:, 0], part[:, 1], part[:, 2 + index] = 1.0, 1.0 / below, below
        rows.append(part)
    matrix, columns = np.concatenate(rows), np.concatenate([lane[:, 0] for lane in lanes])
    solution = np.linalg.lstsq(matrix, columns, rcond=1e-9)[0]
    return float(((matrix @ solution - columns) ** 2).sum()), float(v0), solution


def _perspective(rng: Generator, typical: bool) -> Road:
    """Tables of a pinhole camera over a road of varying curvature and height."""
    fy = rng.uniform(480, 640)
    fx = fy * rng.uniform(0.62, 0.92)
    height = rng.uniform(1.25, 1.65)
    u0 = WIDTH / 2 + rng.normal(0, 18)
    v0 = rng.uniform(35, 75) if typical else rng.choice([rng.uniform(18, 85), rng.uniform(-14, 18)],
                                                        p=[0.88, 0.12])  # fmt: skip
    z = np.geomspace(_NEAR, _FAR, 420)
    bends = ((900.0, 2500.0), (400.0, 900.0), (180.0, 400.0))  # radii, m
    sharp = int(rng.choice(3, p=[1, 0, 0] if typical else [0.45, 0.35, 0.2]))
    radius = rng.uniform(bends[sharp][0], bends[sharp][1])
    curvature = rng.choice([-1, 1]) / radius
    if rng.random() < 0.3:  # the bend begins or ends ahead
        begin, turn = rng.uniform(15, 60), rng.choice([-1.0, 0.0, 0.0])
        blend = np.clip((z - begin) / 40, 0, 1)
        curvature = curvature * (blend + turn * (1 - blend))
    step = np.diff(z, prepend=0.0)
    heading = np.radians(rng.normal(0, 0.6)) + np.cumsum(curvature * step)
    side = np.cumsum(np.clip(heading, -0.9, 0.9) * step)
    amplitude = 0.0 if typical or rng.random() < 0.45 else rng.uniform(-3.5, 3.5)
    wave = (1 - np.cos(2 * np.pi * z / rng.uniform(140, 420))) / 2
    while True:  # flatten the hill until its crest is not too near
        row = v0 + fy * (height - amplitude * wave) / z
        end = int(np.argmax(np.diff(row) >= -1e-6)) + 1 if (np.diff(row) >= -1e-6).any() else len(z)
        if z[end - 1] > 55:
            break
        amplitude *= 0.6
    keep = slice(0, end)
    tables = (z, row, u0 + fx * side / z, fx / z, fy / z)
    z, row, centre, scale, rise = (table[keep] for table in tables)
    return Road(z, row, centre, scale, rise)


def _lines_left_of_camera(rng: Generator, count: int, typical: bool) -> int:
    if count < 2:
        return count if rng.random() < 0.85 else 0
    if count == 2:
        return 1
    if count == 3:
        return int(rng.choice([1, 2]))
    return 2 if typical else int(rng.choice([1, 2, 3], p=[0.2, 0.6, 0.2]))


def _role(index: int, count: int, to_left: int, two_way: bool) -> str:
    """What a line of the road parts: its edge, traffic of both directions, or lanes."""
    if two_way and index == to_left - 1 and not (count == 2 and index == 0):
        return "middle"
    return "edge" if index in (0, count - 1) and count > 1 else "lane"


def _traffic(
    left: float, right: float, lane_width: float, camera: float, two_way: bool
) -> tuple[tuple[float, int], ...]:
    """Middles of the traffic lanes between the pavement's edges, and their direction."""
    first = -camera - lane_width * np.floor((-camera - left) / lane_width)
    middles = np.arange(first, right, lane_width)
    middles = middles[(middles - left > 1.2) & (right - middles > 1.2)]
    return tuple((float(m), -1 if two_way and m < -camera - 1 else 1) for m in middles)


@dataclass(frozen=True)
class _LineStyle:
    """The paint of one road: what its lines have in common."""

    width: float
    dash: tuple[float, float]
    phase: float
    yellow_left: bool
    yellow_middle: bool
    strength: float

    @classmethod
    def choose(cls, rng: Generator, two_way: bool) -> _LineStyle:
        dashes = ((3.0, 12.0), (6.0, 15.0), (2.0, 6.0), (4.0, 10.0), (3.0, 9.0))
        return cls(
            width=rng.uniform(0.11, 0.2),
            dash=dashes[rng.integers(len(dashes))],
            phase=rng.uniform(0, 15),
            yellow_left=not two_way and rng.random() < 0.45,
            yellow_middle=two_way and rng.random() < 0.6,
            strength=float(rng.choice([rng.uniform(0.8, 1.0), rng.uniform(0.35, 0.8)])),
        )

    def line(self, rng: Generator, road: Road | None, offset: float, role: str) -> LaneLine:
        solid = rng.random() < {"edge": 0.8, "middle": 0.5, "lane": 0.12}[role]
        left_edge = bool(role == "edge" and offset < 0)
        return LaneLine(
            lane=np.empty((0, 2)) if road is None else _label(road, offset),
            width=self.width * (1.0 if role == "edge" else rng.uniform(0.8, 1.0)),
            dash=None if solid else self.dash,
            phase=self.phase + (0.0 if rng.random() < 0.7 else rng.uniform(0, 15)),
            double=bool(solid and role == "middle" and rng.random() < 0.6),
            yellow=(self.yellow_left and left_edge) or (self.yellow_middle and role == "middle"),
            strength=self.strength * rng.uniform(0.75, 1.0),
        )


def _label(road: Road, offset: float) -> Polyline:
    """The centre of a line at `offset`, dense where perspective bends it most (near the top)."""
    first = max(road.top + _LABEL_GAP, float(np.interp(_LABEL_FAR, road.z, road.row)))
    dense = np.arange(first, first + 40.0, 1.0)
    rows = np.append(np.arange(dense[-1] + 4.0, HEIGHT - 1.0, 4.0), float(HEIGHT))
    rows = np.concatenate([dense, rows])
    _, centre, scale = road.at_row(rows)
    return np.stack([centre + offset * scale, rows], axis=1)
