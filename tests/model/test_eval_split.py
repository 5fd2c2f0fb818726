"""Scoring in original px, against what was labelled."""

from __future__ import annotations

import numpy as np

from model.eval_split import EvalSplit, polylines
from model.lanelm import LaneLM
from model.probe import readings, tokenizer_floor
from model.scene import Frame, Scene, input_lanes
from model.tokenizer import make_tokenizer
from tests.model.small import FRAME, MemoryBank, config_with, split_of


class Keys:
    """A bank whose rows are the keys."""

    def index(self, key: str) -> int:
        return int(key)


KEYS = Keys()


def test_px_is_against_what_was_labelled_not_against_clipped_targets() -> None:
    """A lane that is clipped onto the crop's edge has a point there which nobody labelled."""
    frame = Frame(512, 292, 100, 256, 96)
    above = np.array([[400.0, 80.0], [100.0, 260.0]])  # meets the crop's edge, y 100, at x 366.7
    splits = {}
    for above_crop in ("cut", "clip"):
        config = config_with(data__above_crop=above_crop)
        lanes = input_lanes([above], frame, config.data)
        image = np.zeros((96, 256, 3), np.uint8)
        scene = Scene("0", "culane", image, lanes, frame, (above,))
        splits[above_crop] = EvalSplit.of([scene], KEYS, config)
    cut, clipped = splits["cut"], splits["clip"]
    assert cut.labels is None
    assert np.array_equal(cut.truth, clipped.truth, equal_nan=True)
    assert np.array_equal(clipped.first(1).select([0]).truth, cut.truth, equal_nan=True)
    tokenizer = make_tokenizer(config_with().tokenizer, 256)
    sound = tokenizer_floor(cut.targets, tokenizer, cut.truth)
    assert sound == tokenizer_floor(cut.targets, tokenizer)
    floor = tokenizer_floor(clipped.targets, tokenizer, clipped.truth)
    assert floor["floor/px_error_max"] > 3 * sound["floor/px_error_max"]
    assert floor["floor/beyond_bound"] > 0


def test_other_images_are_scored_officially(seeing: LaneLM, memory_bank: MemoryBank) -> None:
    split = split_of(seeing.config, [0, 1], "tusimple")
    read = readings(seeing, memory_bank, split, "val", donors=None, full=False)
    assert not any(name.startswith(("attention/", "visual/")) for name in read)
    assert read["val/f1"] == 1
    assert 0 < read["val/mf1"] < 1
    assert read["val/tusimple_accuracy"] > 0.8
    culane = readings(
        seeing, memory_bank, split_of(seeing.config, [0, 1]), "val", donors=None, full=False
    )
    assert "val/tusimple_accuracy" not in culane


def test_official_scores_are_in_original_px(memory_bank: MemoryBank) -> None:
    """Lanes that lie on the labels' rows go back through the frame onto the labels."""
    config = config_with()
    split = split_of(config, [0], "tusimple")
    lanes = polylines(split.targets.x[0].double().numpy(), config, FRAME)
    for got, label in zip(lanes, split.scenes[0].original_lanes, strict=True):
        assert (np.diff(got[:, 1]) > 0).all()
        assert np.allclose(got[:, 0], np.interp(got[:, 1], label[:, 1], label[:, 0]), atol=0.01)
        assert got[0, 1] >= 100
