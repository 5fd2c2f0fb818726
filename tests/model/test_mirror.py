"""Mirror images: pixels and lanes agree, and only training has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model.config import DataConfig
from model.data import check_scenes, fingerprint, make_splits
from model.mirror import MirroredRef
from tests.model.fake_roots import make_culane_root

CONFIG = DataConfig(train_images=3, val_images=2, test_images=1, mirror=True)


def test_training_images_come_twice_and_no_others():
    splits, plain = make_splits(CONFIG), make_splits(CONFIG.model_copy(update={"mirror": False}))
    assert splits.train[:3] == plain.train
    assert [ref.key for ref in splits.train[3:]] == [f"mirrored/{r.key}" for r in plain.train]
    assert (splits.val, splits.test) == (plain.val, plain.test)
    assert len({ref.digest() for ref in splits.train}) == 6
    assert fingerprint(splits) != fingerprint(plain)
    check_scenes(splits.train, CONFIG)


@pytest.mark.parametrize("kind", ["rendered", "culane"])
def test_lanes_lie_on_the_mirrored_pixels(kind: str, tmp_path: Path):
    config = CONFIG
    if kind == "culane":
        root = make_culane_root(tmp_path / "root", 4, 1)
        config = config.model_copy(update={"roots": (str(root),), "val_images": 0})
    ref = make_splits(config).train[0]
    was, now = ref.load(config), MirroredRef("m", ref).load(config)
    assert (now.image == was.image[:, ::-1]).all()
    assert (now.kind, now.frame, len(now.lanes)) == (was.kind, was.frame, len(was.lanes))
    for before, after in zip(was.lanes, now.lanes[::-1], strict=True):
        rows = np.arange(np.ceil(before[0, 1]) + 1, np.floor(before[-1, 1]) - 1)
        x = [np.interp(rows, lane[:, 1], lane[:, 0]) for lane in (before, after)]
        inside = (x[0] > 2) & (x[0] < 797)
        np.testing.assert_allclose(x[1][inside], 799 - x[0][inside], atol=1e-6)
    labels = MirroredRef("m", ref).labels(config)
    for a, b in zip(labels.original_lanes, now.original_lanes, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_mirror_image_s_mirror_image_is_the_image():
    ref = make_splits(CONFIG).train[0]
    twice = MirroredRef("mm", MirroredRef("m", ref)).load(CONFIG)
    once = ref.load(CONFIG)
    assert (twice.image == once.image).all()
    for a, b in zip(twice.lanes, once.lanes, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
