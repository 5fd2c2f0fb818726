"""The readers on real images; LANELM_REAL_DATA names a folder with culane/ and tusimple/ roots."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from model.config import DataConfig
from model.data import Splits, check_scenes, fingerprint, make_splits
from model.scene import Scene

_PLACE = os.environ.get("LANELM_REAL_DATA", "")

pytestmark = pytest.mark.skipif(
    not _PLACE, reason="LANELM_REAL_DATA is not set: no real images to read"
)


def _root(name: str) -> str:
    path = Path(_PLACE) / name
    if not path.is_dir():
        pytest.skip(f"LANELM_REAL_DATA holds no {name}/")
    return str(path)


def _all(name: str) -> tuple[DataConfig, Splits]:
    config = DataConfig(roots=(_root(name),), train_images="all", test_images="all")
    return config, make_splits(config)


@pytest.mark.parametrize("name", ["culane", "tusimple"])
def test_every_scene_is_whole(name: str) -> None:
    config, splits = _all(name)
    refs = [*splits.train, *splits.test]
    assert splits.train
    assert splits.test
    check_scenes(refs, config)
    for ref in refs:
        scene = ref.load(config)
        assert scene.kind == name
        assert scene.image.shape == (320, 800, 3)
        assert 2 <= len(scene.lanes) <= 4
        for lane in scene.lanes:
            assert (np.diff(lane[:, 1]) > 0).all()
            assert np.ptp(lane[:, 1]) > 30
        across = [_x_at(lane, 200.0) for lane in scene.lanes]
        assert across == sorted(across)


@pytest.mark.parametrize("name", ["culane", "tusimple"])
def test_labels_lie_on_bright_paint(name: str) -> None:
    config, splits = _all(name)
    gains = [_gain(ref.load(config)) for ref in (*splits.train, *splits.test)]
    assert np.mean(gains) > 1.0  # grey levels over the road to both sides
    assert np.mean(np.array(gains) > 0) > 0.7


def test_both_sets_together_have_one_fingerprint(tmp_path: Path) -> None:
    config = DataConfig(roots=(_root("culane"), _root("tusimple")), train_images="all")
    splits = make_splits(config)
    assert len({ref.key for ref in splits.train}) == len(splits.train)
    assert fingerprint(splits, tmp_path) == fingerprint(splits, tmp_path) == fingerprint(splits)


def _x_at(lane: np.ndarray, row: float) -> float:
    """The x of a lane at a row, prolonged as a straight line beyond its ends."""
    slope, start = np.polyfit(lane[:, 1], lane[:, 0], 1)
    inside = lane[0, 1] <= row <= lane[-1, 1]
    return float(np.interp(row, lane[:, 1], lane[:, 0]) if inside else slope * row + start)


def _gain(scene: Scene) -> float:
    """How much brighter the label's pixels are than those 14 px to either side, on average."""
    grey = scene.image.mean(axis=2)
    gains = []
    for lane in scene.lanes:
        rows = np.arange(max(np.ceil(lane[0, 1]), 60), min(lane[-1, 1], 200)).astype(int)
        x = np.interp(rows, lane[:, 1], lane[:, 0]).round().astype(int)
        rows, x = rows[(x > 20) & (x < 780)], x[(x > 20) & (x < 780)]
        if len(rows):
            beside = (grey[rows, x - 14] + grey[rows, x + 14]) / 2
            paint = np.max([grey[rows, x + d] for d in (-2, -1, 0, 1, 2)], axis=0)
            gains.append(float((paint - beside).mean()))
    return float(np.mean(gains))
