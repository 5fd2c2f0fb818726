"""Rendered road scenes: the embedded default data, drawn with OpenCV from a seed.

A scene is a road (model/render_road.py) under a light, painted back to front: sky, skyline, ground
with its paint, then what stands beside and on the road. Its labels are the lines' own centres, so
they go on under worn paint, in the gaps of dashes and behind vehicles.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator

from model.config import DataConfig
from model.culane_data import culane_frame
from model.listing import Line, read_lines
from model.render_ground import paint_ground, survey
from model.render_light import Light, choose_light, textures
from model.render_road import HEIGHT, WIDTH, Road, drawn_road, road_through
from model.render_scenery import paint_sky, paint_skyline, roadside
from model.render_traffic import traffic
from model.scene import NO_PIXELS, DataError, Kind, Polyline, Scene, SceneRef, input_lanes
from model.tusimple_data import parse_label, tusimple_frame

GENERATOR_VERSION = 1
"""Raised by hand when the same seed draws another picture: every digest changes with it."""

_AT_DRAWN_SIZE = DataConfig(width=WIDTH, height=HEIGHT)
_SPLIT_OF_SHAPE = ("train", "train", "val", "test")  # in turn along the label file


@dataclass(frozen=True)
class RenderedRef(SceneRef):
    """One rendered scene: its split, seed and index say everything, the shape's label apart."""

    split: str
    seed: int
    index: int
    shape: Line | None = None  # a TuSimple label whose lanes the road takes

    @property
    def kind(self) -> Kind:
        return "rendered"

    @property
    def recipe(self) -> str:
        shape = self.shape.text if self.shape else ""
        return f"{GENERATOR_VERSION}/{self.split}/{self.seed}/{self.index}/{shape}"

    def check(self, config: DataConfig) -> None:
        if self.shape:
            _shape_lanes(self.shape)

    def load(self, config: DataConfig) -> Scene:
        image, lanes = render(*self._parts)
        if image.shape[:2] != (config.height, config.width):
            image = cv2.resize(image, (config.width, config.height), interpolation=cv2.INTER_AREA)
        return self._scene(image, lanes, config)

    def labels(self, config: DataConfig) -> Scene:
        return self._scene(NO_PIXELS, lanes_of(*self._parts), config)

    @property
    def _parts(self) -> tuple[str, bool, tuple[Polyline, ...] | None]:
        """What `render` takes."""
        shape = _shape_lanes(self.shape) if self.shape else None
        return self.recipe, (self.split, self.index) == ("train", 0), shape

    def _scene(self, image: np.ndarray, lanes: tuple[Polyline, ...], config: DataConfig) -> Scene:
        frame = culane_frame(config)
        drawn = replace(frame, input_width=WIDTH, input_height=HEIGHT)
        original = tuple(drawn.to_original(lane) for lane in lanes)
        return Scene(
            key=self.key,
            kind=self.kind,
            image=image,
            lanes=input_lanes(original, frame, config),
            frame=frame,
            original_lanes=original,
        )


def rendered_refs(config: DataConfig, split: str, count: int) -> tuple[RenderedRef, ...]:
    """The first `count` scenes of a split; with `data.geometry` they take the file's lane shapes.

    Raises:
        DataError: a label file that is missing, malformed or too short to part among the splits.
    """
    shapes = _shapes(Path(config.geometry), split) if config.geometry else None
    return tuple(
        RenderedRef(
            key=f"rendered/{split}/{config.seed}/{index}",
            split=split,
            seed=config.seed,
            index=index,
            shape=shapes[index % len(shapes)] if shapes else None,
        )
        for index in range(count)
    )


def render(recipe: str, typical: bool = False, shape: tuple[Polyline, ...] | None = None) -> tuple[
    np.ndarray, tuple[Polyline, ...]
]:  # fmt: skip
    """Draw the scene that `recipe` names.

    Args:
        recipe: Any text; its hash is the seed.
        typical: A scene by day with 3 or 4 lines, as the first picture of a new user should be.
        shape: Lanes (input px) to draw the road around.

    Returns:
        BGR (320, 800, 3) uint8, and the lanes in px of it, y ascending.
    """
    road, light_rng, place_rng, lens_rng = _laid_out(recipe, typical, shape)
    light = choose_light(light_rng, typical)
    canvas = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    paint_sky(canvas, road.top, light, place_rng)
    paint_skyline(canvas, road.top, light, place_rng)
    ground = survey(road, place_rng)
    canvas[ground.first :] = np.clip(paint_ground(road, ground, light, place_rng), 0, 255)
    things = roadside(road, light, place_rng) + traffic(road, light, place_rng, typical)
    for _, draw in sorted(things, key=lambda thing: -thing[0]):
        draw(canvas)
    return _through_lens(canvas, light, lens_rng), tuple(line.lane for line in road.lines)


def lanes_of(
    recipe: str, typical: bool = False, shape: tuple[Polyline, ...] | None = None
) -> tuple[Polyline, ...]:
    """Give the lanes of the scene that `render` draws, and draw nothing."""
    road, *_ = _laid_out(recipe, typical, shape)
    return tuple(line.lane for line in road.lines)


def _laid_out(
    recipe: str, typical: bool, shape: tuple[Polyline, ...] | None
) -> tuple[Road, Generator, Generator, Generator]:
    """The road of a scene, and the random streams of its light, its places and its lens."""
    seed = int.from_bytes(hashlib.sha256(recipe.encode()).digest()[:16], "little")
    streams = np.random.SeedSequence(seed).spawn(4)  # one part's draws do not shift another's
    shape_rng, light_rng, place_rng, lens_rng = map(np.random.default_rng, streams)
    road = road_through(shape, shape_rng) if shape else drawn_road(shape_rng, typical)
    return road, light_rng, place_rng, lens_rng


def _through_lens(canvas: np.ndarray, light: Light, rng: Generator) -> np.ndarray:
    """Blur, tone and sensor noise of a dash camera."""
    image = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.45, 0.8))
    gain, gamma = rng.uniform(0.9, 1.1), rng.uniform(0.9, 1.1)
    tone = 255 * np.clip(np.arange(256) / 255 * gain, 0, 1) ** gamma
    image = cv2.LUT(image, np.rint(tone).astype(np.uint8))
    top, left = rng.integers(0, 320), rng.integers(0, 800)
    noise = textures().sensor[top : top + HEIGHT, left : left + WIDTH]
    strength = light.noise * rng.uniform(0.7, 1.5) / 64
    return cv2.addWeighted(image, 1.0, noise, strength, 0, dtype=cv2.CV_8U)


def _shapes(path: Path, split: str) -> list[Line]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; data.geometry must be a TuSimple label file")
    lines = read_lines(path)
    if len(lines) < len(_SPLIT_OF_SHAPE):
        raise DataError(
            f"{path}: data.geometry needs at least {len(_SPLIT_OF_SHAPE)} labels to part among "
            f"train, val and test, given {len(lines)}"
        )
    places = [place for place, name in enumerate(_SPLIT_OF_SHAPE) if name == split]
    return [line for at, line in enumerate(lines) if at % len(_SPLIT_OF_SHAPE) in places]


def _shape_lanes(line: Line) -> tuple[Polyline, ...]:
    """The label's lanes that are long enough to build a road around, input px."""
    frame = tusimple_frame(_AT_DRAWN_SIZE)
    lanes = [frame.to_input(lane) for lane in parse_label(line).lanes]
    found = tuple(lane for lane in lanes if np.ptp(lane[:, 1]) > 20)
    if not found:
        raise DataError(f"{line.where}: no lane long enough to build a road around")
    return found
