"""What is done to decoded lanes afterwards, and that it is read apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.config import DecodeConfig
from model.lanelm import LaneLM
from model.probe import readings
from model.processing import process, processes, remove_hallucination, repeated, smooth
from tests.model.small import CHANNELS, MemoryBank, config_with, split_of

NAN = np.nan


def lane_with_steps(steps: list[float], before: int = 3, after: int = 2) -> np.ndarray:
    x = 100 + np.concatenate([[0.0], np.cumsum(steps)])
    return np.concatenate([np.full(before, NAN), x, np.full(after, NAN)])


def test_a_lane_is_cut_at_its_first_jump() -> None:
    lane = lane_with_steps([5, 5, 5, 5, 5, 5, 5, -40, 5, 5, 60, 5, 5, 5, 5, 5])
    cut = remove_hallucination(lane)
    assert np.isfinite(cut).sum() == 8  # up to where the jump starts
    assert np.array_equal(cut[:11], lane[:11], equal_nan=True)
    assert np.isnan(cut[11:]).all()


@pytest.mark.parametrize(("jump", "points"), [(10.0, 21), (10.1, 13)])
def test_a_jump_is_over_twice_the_85th_percentile(jump: float, points: int) -> None:
    steps = [5.0] * 12 + [jump] + [5.0] * 7  # P85 of |dx| is 5
    assert np.isfinite(remove_hallucination(lane_with_steps(steps))).sum() == points
    turned = remove_hallucination(-lane_with_steps(steps))
    assert np.isfinite(turned).sum() == points


def test_steps_that_grow_together_are_no_jump() -> None:
    lane = lane_with_steps([2, 2, 3, 3, 4, 4, 5, 6, 7, 8, 9, 10])
    assert np.array_equal(remove_hallucination(lane), lane, equal_nan=True)


@pytest.mark.parametrize(("points", "left"), [(10, 10), (11, 6)])
def test_lanes_of_ten_points_are_left_alone(points: int, left: int) -> None:
    steps = [1.0] * 5 + [50.0] + [1.0] * (points - 7)
    lane = lane_with_steps(steps)
    assert np.isfinite(lane).sum() == points
    assert np.isfinite(remove_hallucination(lane)).sum() == left


def test_nothing_decoded_stays_nothing() -> None:
    nothing = np.full((2, 3, 12), NAN)
    config = DecodeConfig(hallucination_removal=True, smooth=5)
    assert np.isnan(process(nothing, config)).all()


def test_smoothing_is_a_centred_mean() -> None:
    lane = lane_with_steps([3, -3, 3, -3, 3, -3])
    got = smooth(lane, 3)
    assert np.array_equal(np.isnan(got), np.isnan(lane))
    assert got[3] == lane[3]  # the ends stay
    assert got[9] == lane[9]
    assert got[4:9] == pytest.approx([lane[i - 1 : i + 2].mean() for i in range(4, 9)])
    wide = smooth(lane, 5)
    assert wide[4] == pytest.approx(lane[3:6].mean())  # narrower next to the end
    assert wide[5] == pytest.approx(lane[3:8].mean())


def test_smoothing_leaves_straight_lanes_and_single_points() -> None:
    straight = lane_with_steps([4.0] * 9)
    assert smooth(straight, 7) == pytest.approx(straight, nan_ok=True)
    point = lane_with_steps([])
    assert smooth(point, 7) == pytest.approx(point, nan_ok=True)


def test_the_cut_comes_before_the_smoothing() -> None:
    lane = lane_with_steps([5.0] * 7 + [90.0] + [5.0] * 8)
    both = DecodeConfig(hallucination_removal=True, smooth=3)
    got = process(lane[None, None], both)[0, 0]
    assert np.nanmax(got) == pytest.approx(135.0)  # no point was drawn towards the jump


def test_of_lanes_that_write_one_line_the_longest_stays() -> None:
    long = lane_with_steps([5.0] * 9, before=1, after=0)
    short = long + 20.0
    short[:4] = NAN
    far = long + 70.0
    none = np.full_like(long, NAN)
    assert repeated(np.stack([short, none, long, far]), 20.5).tolist() == [True, *[False] * 3]
    assert not repeated(np.stack([short, long, far]), 20.0).any()  # 20 px is not nearer than that
    assert repeated(np.stack([long, long]), 1.0).tolist() == [False, True]  # the first of equals
    # the third is near the second alone, which is dropped: it stays
    row = np.stack([long, long + 30.0, long + 60.0])
    assert repeated(row, 40.0).tolist() == [False, True, False]


def test_lanes_without_a_common_row_do_not_repeat_each_other() -> None:
    upper, lower = np.full((2, 8), NAN)
    upper[:4], lower[4:] = 100.0, 100.0
    assert not repeated(np.stack([upper, lower]), 500.0).any()
    assert not repeated(np.empty((0, 8)), 500.0).any()


def test_suppression_knows_an_image_s_lanes_from_another_s() -> None:
    lane = lane_with_steps([5.0] * 9)
    images = np.stack([np.stack([lane, lane + 9.0]), np.stack([lane + 300.0, lane])])
    got = process(images, DecodeConfig(nms=50.0))
    assert np.isnan(got[0, 1]).all()
    assert np.array_equal(got[0, 0], lane, equal_nan=True)
    assert np.array_equal(got[1], images[1], equal_nan=True)
    assert np.isfinite(images[0, 1]).any()  # a copy was changed


def test_off_is_off() -> None:
    assert not processes(DecodeConfig())
    lane = lane_with_steps([5.0] * 7 + [90.0] + [5.0] * 8)
    assert np.array_equal(process(lane[None], DecodeConfig())[0], lane, equal_nan=True)


def test_processed_lanes_are_read_apart_and_the_raw_readings_stay(memory_bank: MemoryBank) -> None:
    plain_config = config_with()
    config = config_with(decode__smooth=5, decode__hallucination_removal=True)
    model = LaneLM(plain_config, CHANNELS)
    with torch.no_grad():  # an untrained model that jumps about
        model.head_x.weight *= 8
        model.head_x.bias[0] = -100.0
    split = split_of(plain_config, [0, 1])
    for prefix in ("final", "val"):
        model.config = plain_config
        full = prefix == "final"
        plain = readings(model, memory_bank, split, prefix, donors=None, full=full)
        model.config = config
        read = readings(model, memory_bank, split, prefix, donors=None, full=full)
        assert {name: read[name] for name in plain} == plain
        more = set(read) - set(plain)
        assert {f"{prefix}/px_error_processed", f"{prefix}/coverage_processed"} <= more
        assert all(name.endswith("_processed") for name in more)
        assert read[f"{prefix}/coverage_processed"] < read[f"{prefix}/coverage"]
    assert "val/f1_processed" in more
