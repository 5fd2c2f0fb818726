"""The few strokes that rendered things are drawn with, onto a uint8 BGR canvas, in place."""

from __future__ import annotations

import functools
from collections.abc import Callable

import cv2
import numpy as np

from model.render_light import Colour, Light
from model.render_road import HEIGHT, WIDTH

Draw = Callable[[np.ndarray], None]
"""Draws one thing onto the canvas."""

_SHIFT = 4  # fractional bits of OpenCV's drawing coordinates


def polygon(canvas: np.ndarray, points: np.ndarray, colour: np.ndarray) -> None:
    """Fill an anti-aliased polygon; points (n, 2) px."""
    fixed = np.rint(np.clip(points, -4000, 4000) * (1 << _SHIFT)).astype(np.int32)
    cv2.fillPoly(canvas, [fixed], colour.tolist(), cv2.LINE_AA, _SHIFT)


def shade(colour: np.ndarray | Colour, light: Light, z: float, sun: float = 0.6) -> np.ndarray:
    """A surface's colour under the scene's light at distance z; `sun`: share of sun it gets."""
    factor = np.array(light.ambient) * 1.15 + sun * np.array(light.sun)
    near = np.clip(1 - z / 70, 0, 1) * 0.35 * light.headlights
    lit = np.array(colour) * (factor + near)
    haze = 1 - np.exp(-z / light.sight)
    return np.clip(lit + haze * (np.array(light.haze) - lit), 0, 255)


def stamp(
    canvas: np.ndarray,
    sprite: np.ndarray,
    foot: np.ndarray,
    top: float,
    width: float,
    colour: np.ndarray,
) -> None:
    """Blend a sprite (brightness, opacity) that stands at `foot`, up to row `top`; px."""
    left, right = int(foot[0] - width / 2), int(foot[0] + width / 2) + 1
    upper, lower = int(top), int(foot[1]) + 1
    x0, x1, y0, y1 = max(left, 0), min(right, WIDTH), max(upper, 0), min(lower, HEIGHT)
    if x1 <= x0 or y1 <= y0:
        return
    columns = (np.arange(x0, x1, dtype=np.float32) + 0.5 - left) / (right - left)
    rows = (np.arange(y0, y1, dtype=np.float32) + 0.5 - upper) / (lower - upper)
    at_x, at_y = np.meshgrid(columns * sprite.shape[1] - 0.5, rows * sprite.shape[0] - 0.5)
    part = cv2.remap(sprite, at_x, at_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    target = canvas[y0:y1, x0:x1]
    blended = target + part[..., 1:] * (part[..., :1] * colour.astype(np.float32) - target)
    canvas[y0:y1, x0:x1] = np.clip(blended, 0, 255)


def glow(
    canvas: np.ndarray, at: np.ndarray, radius: float, colour: Colour, strength: float
) -> None:
    """Add light around a lamp at px `at`."""
    size = int(np.clip(radius, 2, 90))
    x, y = int(at[0]), int(at[1])
    x0, x1, y0, y1 = max(x - size, 0), min(x + size, WIDTH), max(y - size, 0), min(y + size, HEIGHT)
    if x1 <= x0 or y1 <= y0:
        return
    blob = cv2.resize(_glow_sprite(), (2 * size, 2 * size))
    blob = blob[y0 - y + size : y1 - y + size, x0 - x + size : x1 - x + size, None]
    lit = canvas[y0:y1, x0:x1] + blob * (np.array(colour, np.float32) * strength)
    canvas[y0:y1, x0:x1] = np.minimum(lit, 255)


@functools.cache
def _glow_sprite() -> np.ndarray:
    y, x = np.mgrid[-1:1:49j, -1:1:49j]
    return (np.clip(1 - np.hypot(x, y), 0, 1) ** 2.2).astype(np.float32)
