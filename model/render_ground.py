"""The ground of a rendered scene: pavement, verges and paint, under the scene's light."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from model.render_light import Colour, Light, textures
from model.render_road import HEIGHT, WIDTH, LaneLine, Road

_SPAN, _TEXEL = 48.0, 0.03  # the cross-section reaches this far to each side, m; m per texel
_SUBROWS = 4  # paint is averaged over this many lines per row
_WHITE, _YELLOW = (226.0, 230.0, 230.0), (70.0, 175.0, 225.0)


@dataclass(frozen=True)
class Ground:
    """What of the image is ground: rows from `first` down, seen in metres."""

    first: int
    z: np.ndarray  # (R, 1) m
    side: np.ndarray  # (R, WIDTH) m right of the camera
    scale: np.ndarray  # (R, 1) px per m
    cloud: np.ndarray  # (R, WIDTH, 3) noise of patches fixed to the ground
    grain: np.ndarray  # (R, WIDTH) fine noise, faded where a pixel covers much of it


def survey(road: Road, rng: Generator) -> Ground:
    """Map every ground pixel to metres and look up the noise there."""
    first = int(np.clip(np.ceil(road.top), 0, HEIGHT - 1))
    rows = np.arange(first, HEIGHT, dtype=np.float64)
    z, centre, scale = (table.astype(np.float32)[:, None] for table in road.at_row(rows))
    side = (np.arange(WIDTH, dtype=np.float32) - centre) / scale
    shift = rng.uniform(0, 512, 4).astype(np.float32)
    noise = textures()
    cloud = _look_up(noise.cloud, side * 9 + shift[0], z * 3.5 + shift[1])
    footprint = z * z / (road.rise[0] * road.z[0]) / 1.5  # m of road under a row, roughly
    grain = _look_up(noise.grain, side * 45 + shift[2], z * 28 + shift[3])
    grain *= 1 / (1 + footprint * 14)
    return Ground(first, z, side, scale, cloud, grain)


def _look_up(texture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # remap wraps too, but slowly, and only 16-bit coordinates
    columns, rows = (
        at - size * np.floor(at * np.float32(1 / size))
        for at, size in ((x, texture.shape[1]), (y, texture.shape[0]))
    )
    rows = np.ascontiguousarray(np.broadcast_to(rows, columns.shape))
    return cv2.remap(texture, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def paint_ground(road: Road, ground: Ground, light: Light, rng: Generator) -> np.ndarray:
    """The ground's pixels, (R, WIDTH, 3) float32 BGR, lit and hazy."""
    *planes, rough = cv2.split(_by_side(_cross_section(road, rng), ground))
    surface = cv2.merge(planes)
    factor = (
        1 + ground.grain * rng.uniform(0.06, 0.12) + ground.cloud[..., 0] * rng.uniform(0.02, 0.05)
    )
    factor += rough * ground.cloud[..., 1]
    if rng.random() < 0.3:  # slabs of concrete, or repairs across the road
        factor *= 1 - 0.3 * _bands(road, ground, rng.uniform(4, 12), 0.05, rng.uniform(0, 9))
    surface *= cv2.merge([factor] * 3)
    for line in road.lines:
        _paint(surface, road, ground, line, rng)
    lit = _sunlit(road, ground, light, rng)
    beams = _lamps(road, ground, light, rng)
    haze = 1 - np.exp(-ground.z / light.sight)
    planes = []
    for plane, sun, ambient, haze_colour in zip(
        cv2.split(surface), light.sun, light.ambient, light.haze, strict=True
    ):
        plane = plane * (ambient + lit * sun + beams)
        planes.append(plane + haze * (haze_colour - plane))
    return cv2.merge(planes)


def _cross_section(road: Road, rng: Generator) -> np.ndarray:
    """BGR colour and roughness (1, n, 4) across the road, a texel each `_TEXEL` m."""
    side = np.arange(-_SPAN, _SPAN, _TEXEL, dtype=np.float32)
    colour = np.empty((1, len(side), 3), np.float32)
    rough = np.full((1, len(side), 1), 0.16, np.float32)
    grass = _jitter(rng, ((62, 112, 98), (58, 96, 84), (92, 138, 152), (96, 118, 128)))
    colour[0] = grass
    grey = rng.uniform(78, 150)
    pavement = np.array([grey * rng.uniform(0.97, 1.03), grey, grey * rng.uniform(0.97, 1.06)])
    soil = _jitter(rng, ((112, 128, 138), (128, 136, 140), (104, 116, 120)))
    for edge, sign in ((road.left, -1), (road.right, 1)):
        beyond = (side - edge) * sign
        margin = rng.uniform(0.3, 1.6)
        colour[0, (beyond >= 0) & (beyond < margin)] = soil
        if rng.random() < 0.35:  # kerb and pavement for walkers
            colour[0, (beyond >= 0) & (beyond < 0.25)] = 175
            colour[0, (beyond >= 0.25) & (beyond < rng.uniform(2, 4))] = soil * 1.1
    inside = (side > road.left) & (side < road.right)
    colour[0, inside] = pavement
    rough[0, inside] = rng.uniform(0.02, 0.07)
    wheel, oil = rng.uniform(-0.10, 0.06), rng.uniform(-0.10, 0.02)
    for middle, _ in road.lanes:  # polished wheel tracks and the oily middle
        for track, depth, width in ((-0.8, wheel, 0.28), (0.8, wheel, 0.28), (0.0, oil, 0.35)):
            bump = depth * np.exp(-(((side - middle - track) / width) ** 2))
            colour[0] *= (1 + bump * inside)[:, None]
        if rng.random() < 0.5:  # seam between the lanes' pavements, not a lane line
            seam = np.abs(side - middle - 1.7 - rng.uniform(-0.2, 0.2)) < 0.05
            colour[0, seam & inside] *= rng.uniform(0.55, 0.8)
    return np.concatenate([colour, rough], axis=-1)


def _jitter(rng: Generator, colours: tuple[Colour, ...]) -> np.ndarray:
    colour = np.array(colours[rng.integers(len(colours))])
    return (colour * rng.uniform(0.85, 1.15) + rng.uniform(-8, 8, 3)).astype(np.float32)


def _by_side(profile: np.ndarray, ground: Ground) -> np.ndarray:
    """Spread a cross-section over the ground, averaged over what a pixel covers (a mip map)."""
    levels = 7
    stack = [profile]
    for _ in range(levels - 1):
        stack.append(cv2.blur(stack[-1], (2 ** len(stack) + 1, 1)))
    columns = (ground.side + _SPAN) / _TEXEL
    level = np.clip(np.log2(1 / (ground.scale * _TEXEL)), 0, levels - 1)
    rows = np.ascontiguousarray(np.broadcast_to(level.astype(np.float32), columns.shape))
    pyramid = np.concatenate(stack)
    return cv2.remap(pyramid, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _bands(road: Road, ground: Ground, period: float, width: float, phase: float) -> np.ndarray:
    """Share of each row (R, 1) that periodic bands across the road cover."""
    edges = np.arange(ground.first - 0.5, HEIGHT + 0.4)
    far_to_near = road.at_row(edges)[0]
    return _covered(far_to_near[1:], far_to_near[:-1], width, period, phase)[:, None].astype(
        np.float32
    )


def _covered(
    near: np.ndarray, far: np.ndarray, length: float, period: float, phase: float
) -> np.ndarray:
    """Share of [near, far] that dashes of `length` every `period` cover."""

    def total(z: np.ndarray) -> np.ndarray:
        whole, part = np.divmod(z + phase, period)
        return whole * length + np.minimum(part, length)

    return (total(far) - total(near)) / np.maximum(far - near, 1e-9)


def _paint(surface: np.ndarray, road: Road, ground: Ground, line: LaneLine, rng: Generator) -> None:
    """Paint a line where its label is, by the exact share of each pixel it covers."""
    rows = np.arange(ground.first, HEIGHT)
    sub = rows[:, None] + (np.arange(_SUBROWS) + 0.5) / _SUBROWS - 0.5  # (R, S)
    x, y = line.lane.T
    middle = np.interp(sub, y, x)
    shown = (sub >= y[0] - 0.5) & (sub <= y[-1] + 0.5)
    if line.dash is not None:
        step = 0.5 / _SUBROWS
        near, far = road.at_row(sub + step)[0], road.at_row(sub - step)[0]
        shown = shown * _covered(near, far, *line.dash, line.phase)
    scale = ground.scale.astype(float)
    stripes = ((-0.12, 0.09), (0.12, 0.09)) if line.double else ((0.0, line.width),)
    base = np.rint(middle.mean(axis=1)).astype(int)[:, None]
    spread = np.ptp(middle, axis=1).max() / 2 + 0.25 * float(scale.max())
    reach = np.arange(-int(spread) - 2, int(spread) + 3)
    columns = base + reach  # (R, K)
    cover = np.zeros(columns.shape)
    for place, width in stripes:
        centre = middle + place * scale
        half = np.maximum(width * scale, 0.7) / 2  # a lens spreads thin lines a little
        left, right = (centre - half)[..., None], (centre + half)[..., None]
        pixel = columns[:, None, :]
        share = np.minimum(pixel + 0.5, right) - np.maximum(pixel - 0.5, left)
        cover += (np.clip(share, 0, 1) * shown[..., None]).mean(axis=1)
    inside = (columns >= 0) & (columns < WIDTH)
    row = np.broadcast_to(np.arange(len(rows))[:, None], columns.shape)[inside]
    column, cover = columns[inside], cover[inside]
    wear = ground.cloud[row, column, 2] * 0.45 + ground.grain[row, column] * 0.25
    cover *= np.clip(line.strength + (1.05 - line.strength) * (wear - 0.25), 0.0, 1.0)
    colour = np.array(_YELLOW if line.yellow else _WHITE) * rng.uniform(0.88, 1.02)
    under = surface[row, column]
    surface[row, column] = under + cover[:, None].astype(np.float32) * (colour - under)


def _sunlit(road: Road, ground: Ground, light: Light, rng: Generator) -> np.ndarray | float:
    """Share of the sun that reaches each pixel: shadows of trees, buildings and bridges."""
    if not light.shadows:
        return 1.0
    lit = np.ones_like(ground.side)
    kind = rng.random()
    if kind < 0.45:  # trees: dappled, from one side
        sign, edge = (1, road.left) if rng.random() < 0.5 else (-1, road.right)
        depth = rng.uniform(1.0, 7.0) + 2.2 * ground.cloud[..., 0]
        margin = (ground.side - edge) * sign - depth
        dapple = ground.cloud[..., 2] * 1.6 + ground.cloud[..., 1] * 0.8
        lit *= np.clip(margin * 1.5 + 0.5 + np.maximum(dapple - 0.6, 0), 0.0, 1.0)
    elif kind < 0.6:  # poles, gantries or a bridge: bands across
        slant = rng.uniform(-0.7, 0.7)
        along = ground.z + slant * ground.side
        for _ in range(rng.integers(1, 4)):
            start, length = rng.uniform(5, 40), rng.choice([0.4, 1.0, 9.0])
            soft = 4 / (0.3 + 0.02 * start)
            inside = np.minimum(along - start, start + length - along) * soft
            lit *= 1 - np.clip(inside + 0.5, 0, 1)
    return lit


def _lamps(road: Road, ground: Ground, light: Light, rng: Generator) -> np.ndarray | float:
    """Light of the own headlights and of street lamps, as a factor on surface colours."""
    if not light.headlights:
        return 0.0
    z = ground.z
    along = light.headlights * np.exp(-((np.log(z / 13.0)) ** 2) / 0.9) * rng.uniform(0.75, 1.15)
    wide = 2.4 + 0.13 * z
    beams = along * cv2.exp(-((ground.side / wide) ** 2)) * (1 + 0.15 * ground.cloud[..., 1] * 0.3)
    if light.lamps:
        gap, phase = rng.uniform(22, 38), rng.uniform(0, 38)
        offset = road.right + 1.0 if rng.random() < 0.6 else road.left - 1.0
        pools = sum(np.exp(-(((z - (phase + gap * i)) / 8.5) ** 2)) for i in range(-1, 9))  # (R, 1)
        beams += light.lamps * pools * cv2.exp(-(((ground.side - offset) / 8.0) ** 2))
    return beams
