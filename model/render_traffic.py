"""Other vehicles: they hide lane lines, whose labels go on under them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from model.render_brush import Draw, glow, polygon, shade
from model.render_light import Light
from model.render_road import HEIGHT, WIDTH, Road

_COLOURS = ((225, 225, 222), (180, 180, 178), (120, 120, 118), (45, 45, 44), (60, 50, 48),
            (58, 48, 150), (130, 82, 48), (96, 128, 150), (70, 84, 62))  # fmt: skip
_SLOPE = 0.13  # share of a car's length by which its rear window leans forward

Shares = Sequence[tuple[float | int, float | int]]


def traffic(road: Road, light: Light, rng: Generator, typical: bool) -> list[tuple[float, Draw]]:
    """Vehicles in the road's lanes as (z, draw)."""
    wanted = int(rng.choice([1, 2, 3]) if typical else rng.choice([0, 1, 2, 4, 7]))
    far = min(95.0, road.reach * 0.85)
    placed: list[_Vehicle] = []
    for _ in range(wanted if road.lanes else 0):
        lane, direction = road.lanes[rng.integers(len(road.lanes))]
        at = 9.0 + (far - 9.0) * rng.random() ** 1.6
        if abs(lane) < 1.5:
            at = max(at, 24.0 if typical else 11.0)
        elif not typical and rng.random() < 0.25:
            at = rng.uniform(4.5, 9)
        swerve = rng.choice([-1.5, 1.5]) if rng.random() < 0.12 else 0.0
        side = lane + swerve + rng.normal(0, 0.25)
        side = np.clip(side, road.left + 1.3, road.right - 1.3)  # within the pavement
        vehicle = _Vehicle.choose(rng, float(side), at, direction, typical)
        if not any(vehicle.meets(other) for other in placed):
            placed.append(vehicle)
    return [(vehicle.z, vehicle.painter(road, light)) for vehicle in placed]


@dataclass(frozen=True)
class _Vehicle:
    """A car or a lorry; lengths in m. `direction` is -1 if it comes towards the camera."""

    side: float
    z: float
    direction: int
    lorry: bool
    length: float
    width: float
    height: float
    taper: float  # how much narrower its roof is, as a share
    colour: np.ndarray
    braking: bool

    @classmethod
    def choose(
        cls, rng: Generator, side: float, z: float, direction: int, typical: bool
    ) -> _Vehicle:
        lorry = not typical and rng.random() < 0.18
        return cls(
            side=side,
            z=float(z),
            direction=direction,
            lorry=lorry,
            length=rng.uniform(8, 12) if lorry else rng.uniform(4.0, 4.9),
            width=rng.uniform(2.3, 2.5) if lorry else rng.uniform(1.7, 1.9),
            height=rng.uniform(2.8, 3.6) if lorry else rng.uniform(1.4, 1.8),
            taper=0.03 if lorry else rng.uniform(0.12, 0.2),
            colour=np.array(_COLOURS[rng.integers(len(_COLOURS))]) * rng.uniform(0.9, 1.1),
            braking=bool(rng.random() < 0.25),
        )

    def meets(self, other: _Vehicle) -> bool:
        beside = abs(self.side - other.side) < 2.6
        return beside and self.z < other.z + other.length + 3 and other.z < self.z + self.length + 3

    def painter(self, road: Road, light: Light) -> Draw:
        def draw(canvas: np.ndarray) -> None:
            self._shadow(canvas, road, light)
            if abs(self.side) > self.width / 2:
                self._flank(canvas, road, light)
            self._face(canvas, road, light)
            self._lamps(canvas, road, light)

        return draw

    def _on_face(self, road: Road, points: Shares) -> np.ndarray:
        """Points of the near end (share of half its width, share of its height) in px."""
        across, up = np.array(points, dtype=float).T
        lean = 0.0 if self.lorry else _SLOPE * self.length * np.clip((up - 0.6) / 0.4, 0, 1)
        z = np.minimum(self.z + lean, road.reach)
        return road.project(self.side + across * self.width / 2, up * self.height, z)

    def _on_flank(self, road: Road, points: Shares) -> np.ndarray:
        """Points of the visible side (share of its length, share of its height) in px."""
        along, up = np.array(points, dtype=float).T
        half = (1 - np.clip((up - 0.6) / 0.4, 0, 1) * self.taper) * self.width / 2
        z = np.minimum(self.z + along * self.length, road.reach)
        return road.project(self.side - np.sign(self.side) * half, up * self.height, z)

    def _flank(self, canvas: np.ndarray, road: Road, light: Light) -> None:
        paint = shade(self.colour * 0.74, light, self.z, 0.3)
        dark, glass = self._dark(light), shade((66, 60, 54), light, self.z, 0.35)
        polygon(
            canvas, self._on_flank(road, [(0.02, 0.02), (0.96, 0.02), (1, 0.3), (0, 0.3)]), dark
        )
        if self.lorry:
            polygon(canvas, self._on_flank(road, [(0, 0.2), (1, 0.2), (1, 1), (0, 1)]), paint)
        else:
            cabin = [(0, 0.55), (0, 0.6), (_SLOPE, 1), (0.62, 1), (0.78, 0.62), (1, 0.52)]
            polygon(canvas, self._on_flank(road, [(1, 0.14), (0, 0.14), *cabin]), paint)
            panes = [(0.1, 0.64), (_SLOPE + 0.06, 0.93), (0.6, 0.93), (0.71, 0.65)]
            polygon(canvas, self._on_flank(road, panes), glass)
        turn = np.linspace(0, 2 * np.pi, 14)
        for wheel in (0.18, 0.8):
            along = wheel + 0.33 / self.length * np.cos(turn)
            rim = np.stack([along, 0.33 * (1 + np.sin(turn)) / self.height], axis=1)
            polygon(canvas, self._on_flank(road, list(map(tuple, rim))), dark * 0.7)

    def _face(self, canvas: np.ndarray, road: Road, light: Light) -> None:
        body, dark = shade(self.colour, light, self.z, 0.5), self._dark(light)
        top = 1 - self.taper
        for left in (-0.93, 0.63):
            tyre = [(left, 0), (left + 0.3, 0), (left + 0.3, 0.3), (left, 0.3)]
            polygon(canvas, self._on_face(road, tyre), dark * 0.6)
        half = [(0.94, 0.13), (1.0, 0.28), (1.0, 0.56), (0.96, 0.62), (top, 0.96), (top * 0.9, 1.0)]
        hull = half + [(-across, up) for across, up in reversed(half)]
        polygon(canvas, self._on_face(road, hull), body)
        bumper = [(-0.94, 0.13), (0.94, 0.13), (0.99, 0.28), (-0.99, 0.28)]
        polygon(canvas, self._on_face(road, bumper), body * 0.55)
        if self.lorry and self.direction > 0:
            gap = [(-0.01, 0.2), (0.01, 0.2), (0.01, 0.98), (-0.01, 0.98)]  # of its doors
            polygon(canvas, self._on_face(road, gap), dark)
        else:
            base = 0.72 if self.lorry else 0.65
            pane = [(-0.82, base), (0.82, base), (top * 0.84, 0.94), (-top * 0.84, 0.94)]
            polygon(canvas, self._on_face(road, pane), shade((80, 72, 64), light, self.z, 0.45))
        plate = [(-0.17, 0.36), (0.17, 0.36), (0.17, 0.45), (-0.17, 0.45)]
        polygon(canvas, self._on_face(road, plate), shade((205, 210, 210), light, self.z, 0.4))

    def _dark(self, light: Light) -> np.ndarray:
        return shade((26, 24, 24), light, self.z, 0.3)

    def _lamps(self, canvas: np.ndarray, road: Road, light: Light) -> None:
        rear = self.direction > 0
        if rear:
            on, off, tint = (45.0, 40.0, 245.0), (40, 38, 150), (30, 20, 190)
        else:
            on, off, tint = (225.0, 250.0, 255.0), (190, 190, 190), (180, 215, 235)
        lit = light.lit_lights or (self.braking and rear)
        colour = np.array(on) if lit else shade(off, light, self.z, 0.5)
        for sign in (-1, 1):
            box = [(0.68, 0.46), (0.95, 0.46), (0.95, 0.58), (0.7, 0.58)]
            lamp = self._on_face(road, [(sign * across, up) for across, up in box])
            polygon(canvas, lamp, colour)
            if light.lit_lights:
                radius = (260 if rear else 900) / self.z + 3
                strength = 1.0 if self.braking or not rear else 0.7
                glow(canvas, lamp.mean(axis=0), radius, tint, strength)

    def _shadow(self, canvas: np.ndarray, road: Road, light: Light) -> None:
        """Darken the ground under the vehicle."""
        left, right = self._on_face(road, [(-1.06, 0), (1.06, 0)])
        back = road.project(self.side, 0.0, min(self.z + self.length, road.reach))
        depth = max((left[1] - back[1]) * 0.2, (right[0] - left[0]) * 0.03, 1.0)
        x0, x1 = int(max(left[0] - 2, 0)), int(min(right[0] + 3, WIDTH))
        y0, y1 = int(max(left[1] - 2 * depth, 0)), int(min(left[1] + depth + 2, HEIGHT))
        if x1 <= x0 or y1 <= y0:
            return
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        centre = ((left + right) / 2 - (x0, y0 + depth * 0.5)) * 16
        axes = (int((right[0] - left[0]) / 2 * 16), int(depth * 16))
        middle = (int(centre[0]), int(centre[1]))
        cv2.ellipse(mask, middle, axes, 0, 0, 360, 255, -1, cv2.LINE_AA, 4)
        part = canvas[y0:y1, x0:x1]
        depth_of_shade = 0.45 if light.lit_lights else 0.7
        canvas[y0:y1, x0:x1] = part * (1 - depth_of_shade * mask[..., None] / 255.0)
