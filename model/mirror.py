"""Mirror images of scenes: the same camera on a road that bends the other way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from model.config import DataConfig
from model.scene import Kind, Scene, SceneRef, input_lanes


@dataclass(frozen=True)
class MirroredRef(SceneRef):
    """The left-right mirror image of another scene."""

    of: SceneRef

    @property
    def kind(self) -> Kind:
        return self.of.kind

    @property
    def files(self) -> tuple[Path, ...]:
        return self.of.files

    @property
    def recipe(self) -> str:
        return f"mirrored/{self.of.recipe}"

    def check(self, config: DataConfig) -> None:
        self.of.check(config)

    def load(self, config: DataConfig) -> Scene:
        scene = self.of.load(config)
        return replace(
            self._mirrored(scene, config), image=np.ascontiguousarray(scene.image[:, ::-1])
        )

    def labels(self, config: DataConfig) -> Scene:
        return self._mirrored(self.of.labels(config), config)

    def _mirrored(self, scene: Scene, config: DataConfig) -> Scene:
        """Mirror the labels about the middle of the input: column u becomes width - 1 - u."""
        frame = scene.frame
        last = (frame.input_width - 1) / frame.scale[0]  # original px of the last input column
        lanes = tuple(lane * (-1.0, 1.0) + (last, 0.0) for lane in scene.original_lanes)
        return replace(
            scene, key=self.key, lanes=input_lanes(lanes, frame, config), original_lanes=lanes
        )


def with_mirror_images(refs: Iterable[SceneRef]) -> tuple[SceneRef, ...]:
    """Give the scenes, and after them the mirror image of each."""
    refs = tuple(refs)
    return refs + tuple(MirroredRef(f"mirrored/{ref.key}", ref) for ref in refs)
