"""What stands around a rendered road: sky, skyline, trees, buildings, barriers, poles."""

from __future__ import annotations

import functools

import cv2
import numpy as np
from numpy.random import Generator

from model.render_brush import Draw, glow, polygon, shade, stamp
from model.render_light import Light, textures
from model.render_road import HEIGHT, WIDTH, Road

Things = list[tuple[float, Draw]]
"""What to draw, each with its distance z in m: the far ones come first."""


def paint_sky(canvas: np.ndarray, top: float, light: Light, rng: Generator) -> None:
    """Sky down to the horizon, with clouds."""
    rows = int(np.clip(np.ceil(top) + 2, 0, HEIGHT))
    if not rows:
        return
    height = np.linspace(max(0.0, 1 - rows / 110), 1, rows)[:, None, None] ** 1.6
    sky = np.array(light.sky_top) + height * (np.array(light.sky_low) - np.array(light.sky_top))
    at = rng.integers(0, 300, 2)
    cloud = textures().cloud[at[0] : at[0] + 60, at[1] : at[1] + 200, 0]
    cloud = cv2.resize(cloud, (WIDTH, 130), interpolation=cv2.INTER_CUBIC)[:rows, :, None]
    cover = np.clip(cloud * rng.uniform(0.1, 0.5) + rng.uniform(-0.2, 0.3), 0, 0.8)
    tint = np.array(light.sky_low) * 1.06
    canvas[:rows] = np.clip(sky + cover * (tint - sky), 0, 255)


def paint_skyline(canvas: np.ndarray, top: float, light: Light, rng: Generator) -> None:
    """Hills, woods or a town along the horizon."""
    if top < 2:
        return
    columns = np.arange(WIDTH)
    noise = textures().cloud[int(rng.integers(512)), :, :]
    coarse = np.interp(columns * rng.uniform(0.1, 0.25) % 512, np.arange(512), noise[:, 2])
    fine = np.interp(columns * 0.64 % 512, np.arange(512), noise[:, 1])
    if rng.random() < 0.6:
        hills = top - np.maximum(8 + coarse * 7, 0) * rng.uniform(0.6, 1.8)
        _silhouette(canvas, hills, top, shade((96, 92, 74), light, 300.0))
    if rng.random() < 0.4:
        _town(canvas, top, light, rng)
    woods = top - np.maximum(3 + coarse * 2 + fine * 1.5, 0.5) * rng.uniform(0.6, 1.6)
    _silhouette(canvas, woods, top, shade((46, 70, 54), light, 150.0))


def _silhouette(canvas: np.ndarray, edge: np.ndarray, top: float, colour: np.ndarray) -> None:
    base = [[WIDTH + 5, top + 3], [-5, top + 3]]
    polygon(canvas, np.concatenate([np.stack([np.arange(WIDTH), edge], axis=1), base]), colour)


def _town(canvas: np.ndarray, top: float, light: Light, rng: Generator) -> None:
    left = rng.uniform(-50, 200)
    while left < WIDTH:
        width, height = rng.uniform(14, 60), rng.uniform(6, 42)
        colour = shade(rng.uniform(70, 150) * rng.uniform(0.9, 1.1, 3), light, 220.0)
        box = np.array([[0, 0], [width, 0], [width, -height], [0, -height]])
        box = box + np.array([left, top + 2])
        polygon(canvas, box, colour)
        if light.lit_lights:
            for _ in range(int(width * height / 60)):
                x, y = rng.uniform((left + 1, top - height + 4), (left + width - 2, top))
                at = int(np.clip(x, 0, WIDTH - 2)), int(np.clip(y, 0, HEIGHT - 2))
                cv2.rectangle(canvas, at, (at[0] + 1, at[1]), (120, 190, 225), -1)
        left += width + rng.choice([0, rng.uniform(0, 90)])


def roadside(road: Road, light: Light, rng: Generator) -> Things:
    """Things beside the road as (z, draw); those far away must be drawn first."""
    things: Things = []
    for sign, edge in ((-1, road.left), (1, road.right)):
        kind = rng.choice(
            ["open", "rail", "wall", "bushes", "houses"], p=[0.25, 0.3, 0.2, 0.1, 0.15]
        )
        gap = rng.uniform(0.4, 1.4)
        if kind == "wall":
            height, grey = rng.uniform(0.7, 3.2), rng.uniform(110, 170)
            colour = np.array([grey * rng.uniform(0.7, 1.0), grey * 0.95, grey])
            things += _wall(road, edge + sign * gap, height, colour, light, sign)
        elif kind == "rail":
            things += _rail(road, edge + sign * gap, light)
        elif kind == "bushes":
            things += _plants(road, edge + sign * (gap + 0.8), sign, light, rng, (1.0, 2.2), 40)
        elif kind == "houses":
            things += _houses(road, edge + sign * rng.uniform(3, 8), sign, light, rng)
        trees = int(rng.choice([0, 6, 14, 26], p=[0.2, 0.25, 0.3, 0.25]))
        if kind != "houses":
            things += _plants(
                road, edge + sign * rng.uniform(3.5, 8), sign, light, rng, (4.0, 11.0), trees
            )
        if rng.random() < 0.55:
            things += _poles(road, edge + sign * (gap + 0.6), sign, light, rng)
    return things


def _stations(road: Road, near: float = 1.5, far: float = 250.0, count: int = 22) -> np.ndarray:
    return np.geomspace(near, min(far, road.reach * 0.98), count)


def _wall(
    road: Road, side: float, height: float, colour: np.ndarray, light: Light, sign: int
) -> Things:
    z = _stations(road, count=46)
    foot, band, head = (
        road.project(np.full_like(z, side), np.full_like(z, up), z)
        for up in (0, 0.12 * height, height)
    )
    back = road.project(np.full_like(z, side + 0.25 * sign), np.full_like(z, height), z)
    stains = textures().cloud[: len(z), 0, 1] * 0.05  # panels differ a little

    def panel(i: int) -> Draw:
        def draw(canvas: np.ndarray) -> None:
            stained = colour * (1 + stains[i])
            face = np.array([band[i], band[i + 1], head[i + 1], head[i]])
            polygon(canvas, face, shade(stained, light, z[i], 0.45))
            dirt = np.array([foot[i], foot[i + 1], band[i + 1], band[i]])
            polygon(canvas, dirt, shade(stained * 0.8, light, z[i], 0.4))
            cap = np.array([head[i], head[i + 1], back[i + 1], back[i]])
            polygon(canvas, cap, shade(stained * 1.15, light, z[i], 0.9))

        return draw

    return [(float(z[i]), panel(i)) for i in range(len(z) - 1)]


def _rail(road: Road, side: float, light: Light) -> Things:
    z = _stations(road)
    low, middle, high = (
        road.project(np.full_like(z, side), np.full_like(z, up), z) for up in (0.45, 0.6, 0.76)
    )
    posts = np.arange(2.0, min(90.0, road.reach * 0.98), 4.0)
    feet, heads, right = (
        road.project(np.full_like(posts, s), np.full_like(posts, up), posts)
        for s, up in ((side, 0), (side, 0.7), (side + 0.12, 0))
    )

    def post(i: int) -> Draw:
        across = np.array([max(right[i, 0] - feet[i, 0], 0.8), 0])
        quad = np.array([feet[i], feet[i] + across, heads[i] + across, heads[i]])
        return lambda canvas: polygon(canvas, quad, shade((95, 95, 95), light, posts[i], 0.4))

    def bar(i: int) -> Draw:
        def draw(canvas: np.ndarray) -> None:
            for under, over, grey in ((low, middle, 140), (middle, high, 185)):
                face = np.array([under[i], under[i + 1], over[i + 1], over[i]])
                polygon(canvas, face, shade((grey, grey, grey - 4), light, z[i], 0.6))

        return draw

    return [(float(posts[i]) + 0.01, post(i)) for i in range(len(posts))] + [
        (float(z[i]), bar(i)) for i in range(len(z) - 1)
    ]


def _poles(road: Road, side: float, sign: int, light: Light, rng: Generator) -> Things:
    gap, height = rng.uniform(18, 40), rng.uniform(6, 9)
    arm = -sign * rng.uniform(1.2, 2.6)
    things = []
    for at in np.arange(rng.uniform(8, 30), min(160.0, road.reach * 0.98), gap):
        foot, head, tip = road.project(
            np.array([side, side, side + arm]), np.array([0, height, height + 0.3]), np.full(3, at)
        )
        thickness = max(0.16 * float(np.interp(at, road.z, road.scale)), 0.8)

        def draw(canvas, foot=foot, head=head, tip=tip, thickness=thickness, at=at) -> None:
            colour = shade((92, 92, 90), light, at, 0.5)
            across = np.array([thickness / 2, 0])
            polygon(canvas, np.array([foot - across, foot + across, head + across * 0.6,
                                      head - across * 0.6]), colour)  # fmt: skip
            up = np.array([0, max(thickness * 0.4, 0.5)])
            polygon(canvas, np.array([head - up, tip - up, tip + up, head + up]), colour)
            if light.lit_lights:
                glow(canvas, tip, 700 / at + 3, (120, 190, 235), 0.9)

        things.append((float(at), draw))
    return things


def _houses(road: Road, side: float, sign: int, light: Light, rng: Generator) -> Things:
    things = []
    at = rng.uniform(6, 16)
    end = min(150.0, road.reach * 0.95)
    while at < end:
        length, height = rng.uniform(8, 26), rng.uniform(4, 16)
        until = min(at + length, end + 8, road.reach * 0.98)
        colour = rng.uniform(85, 185) * rng.uniform(0.85, 1.05, 3)
        things.append(_house(road, side, sign, at, until, height, colour, light, rng))
        at = until + rng.choice([0.5, rng.uniform(3, 18)])
    return things


def _house(
    road: Road,
    side: float,
    sign: int,
    near: float,
    far: float,
    height: float,
    colour: np.ndarray,
    light: Light,
    rng: Generator,
) -> tuple[float, Draw]:
    floors, bays = max(int(height / 3), 1), max(int((far - near) / 3), 1)
    lit = rng.random((floors, bays)) < 0.3

    def quad(z0: float, z1: float, up0: float, up1: float) -> np.ndarray:
        return road.project(
            np.full(4, side), np.array([up0, up0, up1, up1]), np.array([z0, z1, z1, z0])
        )

    front = road.project(
        np.array([side, side + sign * 14, side + sign * 14, side]),
        np.array([0, 0, height, height]),
        np.full(4, near),
    )

    def draw(canvas: np.ndarray) -> None:
        polygon(canvas, quad(near, far, 0.0, height), shade(colour, light, near, 0.35))
        polygon(canvas, front, shade(colour, light, near, 0.75))
        for floor in range(floors):
            for bay in range(bays):
                z0 = near + (bay + 0.25) * (far - near) / bays
                pane = quad(z0, z0 + 0.5 * (far - near) / bays, floor * 3 + 1.0, floor * 3 + 2.4)
                glass = shade((95, 85, 75), light, near, 0.3)
                if light.lit_lights and lit[floor, bay]:
                    glass = np.array((110.0, 185.0, 225.0))
                polygon(canvas, pane, glass)

    return float(near), draw


@functools.cache
def _tree_sprites() -> tuple[np.ndarray, ...]:
    """Trees and bushes as (96, 96, 2) float32: brightness and opacity, the foot at the bottom."""
    rng = np.random.default_rng(7)
    noise = textures().cloud
    y, x = np.mgrid[0:96, 0:96].astype(np.float32) / 95
    sprites = []
    for _ in range(8):
        at = rng.integers(0, 512 - 192, 2)
        patch = noise[at[0] : at[0] + 192 : 2, at[1] : at[1] + 192 : 2]
        wide, tall = rng.uniform(0.3, 0.46), rng.uniform(0.3, 0.42)
        radius = np.hypot((x - 0.5) / wide, (y - tall - 0.04) / tall)
        crown = np.clip((1.0 - radius + 0.22 * patch[..., 1]) * 7, 0, 1)
        light = 0.8 + 0.3 * patch[..., 1] + 0.35 * (tall - y) + 0.15 * (0.5 - x)
        trunk = (np.abs(x - 0.5) < 0.025) & (y > tall)
        sprite = np.stack([np.where(crown > 0.2, light, 0.45), np.maximum(crown, trunk)], axis=-1)
        sprites.append(sprite.astype(np.float32))
    return tuple(sprites)


def _plants(
    road: Road,
    side: float,
    sign: int,
    light: Light,
    rng: Generator,
    heights: tuple[float, float],
    count: int,
) -> Things:
    sprites = _tree_sprites()
    hue = np.array((46.0, 82.0, 66.0)) * rng.uniform(0.75, 1.2)
    things = []
    for at in 9.0 * 20.0 ** rng.random(count):
        at = float(min(at, road.reach * 0.97))
        height = rng.uniform(*heights)
        place = side + sign * rng.uniform(0, 9 if heights[0] > 2 else 0.6)
        foot, head = road.project(np.full(2, place), np.array([-0.2, height]), np.full(2, at))
        sprite = sprites[rng.integers(len(sprites))]
        if heights[0] <= 2:
            sprite = sprite[: int(96 * 0.7)]
        colour = hue * rng.uniform(0.8, 1.2, 3)
        wide = height * rng.uniform(0.7, 1.1) * float(np.interp(at, road.z, road.scale))

        def draw(canvas, foot=foot, head=head, sprite=sprite, colour=colour, wide=wide, at=at):
            stamp(canvas, sprite, foot, head[1], wide, shade(colour, light, at, 0.7))

        things.append((at, draw))
    return things
