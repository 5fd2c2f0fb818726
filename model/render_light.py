"""Times of day: what light falls on a rendered scene, and the noise textures all scenes share."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

Colour = tuple[float, float, float] | tuple[int, int, int]  # BGR; 0..255, or factors (light)


@dataclass(frozen=True)
class Light:
    """The light of a scene; colours are BGR, `sun` and `ambient` factors on surface colours."""

    name: str
    sun: Colour
    ambient: Colour
    sky_top: Colour
    sky_low: Colour
    haze: Colour
    sight: float  # m at which haze takes over
    shadows: bool
    headlights: float  # strength of the own car's beam
    lamps: float  # strength of street lamps
    lit_lights: bool  # other cars drive with their lights on
    noise: float  # standard deviation, grey levels


_LIGHTS = {
    "clear": Light("clear", (0.55, 0.61, 0.67), (0.52, 0.47, 0.43), (205, 150, 95),
                   (235, 225, 205), (225, 215, 200), 420.0, True, 0.0, 0.0, False, 2.0),
    "overcast": Light("overcast", (0.1, 0.1, 0.1), (0.78, 0.77, 0.76), (190, 182, 175),
                      (222, 220, 216), (205, 203, 200), 260.0, False, 0.0, 0.0, False, 2.5),
    "dusk": Light("dusk", (0.24, 0.34, 0.48), (0.42, 0.36, 0.33), (125, 90, 75),
                  (110, 165, 235), (120, 145, 190), 330.0, False, 0.25, 0.25, True, 4.0),
    "city night": Light("city night", (0.0, 0.0, 0.0), (0.17, 0.15, 0.15), (34, 24, 22),
                        (52, 48, 52), (44, 40, 44), 260.0, False, 0.65, 0.75, True, 6.0),
    "dark night": Light("dark night", (0.0, 0.0, 0.0), (0.07, 0.06, 0.055), (16, 11, 9),
                        (24, 20, 18), (18, 15, 14), 200.0, False, 1.05, 0.0, True, 7.0),
}  # fmt: skip


def choose_light(rng: Generator, typical: bool) -> Light:
    """Day, dusk or night; a typical scene is by day."""
    chances = [0.7, 0.3, 0, 0, 0] if typical else [0.38, 0.22, 0.18, 0.13, 0.09]
    return list(_LIGHTS.values())[int(rng.choice(len(_LIGHTS), p=chances))]


class Textures(NamedTuple):
    """Tiling noise of mean 0 and standard deviation 1 (sensor: int16, standard deviation 64)."""

    grain: np.ndarray  # (512, 512) float32, nearly white
    cloud: np.ndarray  # (512, 512, 3) float32, three independent fields of large blobs
    sensor: np.ndarray  # (640, 1600, 3) int16


@functools.cache
def textures() -> Textures:
    """The shared textures: constants of the generator, the same in every process."""
    rng = np.random.default_rng(20)
    grain = _noise(rng, 0.35)
    cloud = np.stack([_noise(rng, exponent) for exponent in (1.25, 1.0, 1.4)], axis=-1)
    luminance = rng.normal(0, 52, (640, 1600, 1))
    sensor = (luminance + rng.normal(0, 38, (640, 1600, 3))).astype(np.int16)
    for texture in (grain, cloud, sensor):
        texture.flags.writeable = False
    return Textures(grain, cloud, sensor)


def _noise(rng: Generator, exponent: float, size: int = 512) -> np.ndarray:
    """White noise filtered by 1/f**exponent in the frequency domain, so that it tiles."""
    fy, fx = np.meshgrid(np.fft.fftfreq(size), np.fft.rfftfreq(size), indexing="ij")
    frequency = np.hypot(fy, fx)
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.normal(size=(size, size))) / frequency**exponent
    field = np.fft.irfft2(spectrum, (size, size))
    return (field / field.std()).astype(np.float32)
