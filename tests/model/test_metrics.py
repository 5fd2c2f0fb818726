"""Pixel error, zigzag, collapse, movement and cross-entropy on lanes drawn by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from model import metrics

T = 40
ROWS = np.arange(T, dtype=float)
NAN = np.nan


def line(x0: float, slope: float = 0.0, start: int = 0, stop: int = T) -> np.ndarray:
    """A straight lane with points from row `start` to before `stop`."""
    return np.where((start <= ROWS) & (stop > ROWS), x0 + slope * ROWS, NAN)


NONE = np.full(T, NAN)


def lanes(*images: list[np.ndarray]) -> np.ndarray:
    return np.array(images)


# --- px error -----------------------------------------------------------------------------------


def test_perfect_lanes() -> None:
    truth = lanes([line(100, 2), line(300), NONE], [line(500, -3, 5, 30), NONE, NONE])
    assert metrics.px_readings(truth, truth) == {
        "px_error": 0.0,
        "px_error_p95": 0.0,
        "px_error_max": 0.0,
        "px_error_slot": 0.0,
        "coverage": 1.0,
        "points_ratio": 1.0,
        "length_error": 0.0,
        "lane_count_error": 0.0,
    }


def test_error_is_over_points_not_over_lanes() -> None:
    truth = lanes([line(100), line(300, stop=10)])
    decoded = lanes([line(104), line(312, stop=10)])
    read = metrics.px_readings(decoded, truth)
    assert read["px_error"] == pytest.approx((40 * 4 + 10 * 12) / 50)
    assert read["px_error_max"] == 12
    assert read["px_error_p95"] == 12


def test_lanes_are_paired_by_least_error_and_slots_by_id() -> None:
    truth = lanes([line(100), line(300)])
    decoded = lanes([line(302), line(101)])
    read = metrics.px_readings(decoded, truth)
    assert read["px_error"] == pytest.approx(1.5)
    assert read["px_error_slot"] == pytest.approx((202 + 199) / 2)


def test_pairing_is_the_best_in_sum_not_the_best_first() -> None:
    decoded, truth = np.array([line(110), line(96)]), np.array([line(106), line(119)])
    assert metrics.pair(decoded, truth) == [(0, 1), (1, 0)]  # 9 + 10, not 4 + 23


def test_only_common_rows_count_and_coverage_tells_the_rest() -> None:
    truth = lanes([line(100), NONE])
    decoded = lanes([line(103, stop=30), NONE])
    read = metrics.px_readings(decoded, truth)
    assert read["px_error"] == 3
    assert read["coverage"] == 0.75
    assert read["length_error"] == 10
    longer = metrics.px_readings(truth, decoded)
    assert longer["coverage"] == 1.0
    assert longer["length_error"] == 10


def test_lanes_too_many_or_too_few_are_counted() -> None:
    truth = lanes([line(100), NONE, NONE], [line(100), line(300), NONE])
    decoded = lanes([line(100), line(400), line(500)], [line(300), NONE, NONE])
    read = metrics.px_readings(decoded, truth)
    assert read["lane_count_error"] == 1.5
    assert read["px_error"] == 0  # the lane left over is in the count, not in the px error
    assert read["coverage"] == pytest.approx(2 / 3)


def test_nothing_decoded_has_no_px_error() -> None:
    read = metrics.px_readings(lanes([NONE, NONE]), lanes([line(100), NONE]))
    assert read == {"coverage": 0.0, "points_ratio": 0.0, "lane_count_error": 1.0}


def test_lanes_without_a_common_row_are_not_paired() -> None:
    read = metrics.px_readings(lanes([line(100, stop=10)]), lanes([line(100, start=20)]))
    assert read == {"coverage": 0.0, "points_ratio": 0.5, "lane_count_error": 0.0}


def test_images_without_lanes() -> None:
    empty = lanes([NONE, NONE])
    assert metrics.px_readings(empty, empty) == {"lane_count_error": 0.0}
    assert metrics.px_readings(lanes([line(5), NONE]), empty) == {"lane_count_error": 1.0}


# --- zigzag -------------------------------------------------------------------------------------


def rounded(x: np.ndarray, bin_width: float) -> np.ndarray:
    return (np.floor(x / bin_width) + 0.5) * bin_width


@pytest.mark.parametrize("bin_width", [4.0, 1.0])
def test_rounding_is_no_zigzag(bin_width: float) -> None:
    """Rounding alone changes the bend's direction on about half the rows."""
    slopes = np.random.default_rng(0).uniform(-20, 20, 200)
    reference = rounded(lanes([line(400, slope) for slope in slopes]), bin_width)
    read = metrics.zigzag(reference, reference, bin_width)
    assert read == {"zigzag": 0.0, "zigzag_flips": 0.0}
    bends = np.diff(reference[0], n=2, axis=-1)
    flips = sum(((s[s != 0][1:] * s[s != 0][:-1]) < 0).sum() for s in np.sign(bends))
    assert 0.42 < flips / (bends.shape[0] * (bends.shape[1] - 1)) < 0.55


def test_zigzag_is_in_excess_of_the_round_trip() -> None:
    reference = rounded(lanes([line(100, 2.7)]), 4.0)
    own = np.abs(np.diff(reference, n=2)).mean()
    wavy = lanes([line(100, 2.7) + 8 * (-1) ** ROWS])  # d2 = +-32 on every row
    read = metrics.zigzag(wavy, reference, 4.0)
    assert read["zigzag"] == pytest.approx(32 - own)
    assert read["zigzag_flips"] == 1.0
    smooth = metrics.zigzag(lanes([line(100, 2.7)]), reference, 4.0)
    assert smooth["zigzag"] == pytest.approx(-own)


def test_slow_zigzag_flips_too_and_small_bends_do_not() -> None:
    reference = lanes([line(0)])
    slow = lanes([12 * np.sin(ROWS * np.pi / 2)])  # 0 12 0 -12: a bend, a straight row, a bend
    read = metrics.zigzag(slow, reference, 4.0)
    assert read["zigzag_flips"] == pytest.approx(0.5, abs=0.03)
    small = lanes([1.4 * (-1) ** ROWS])  # |d2| = 5.6 px, under 6 px
    assert metrics.zigzag(small, reference, 1.0)["zigzag_flips"] == 0
    assert metrics.zigzag(small * 1.2, reference, 1.0)["zigzag_flips"] == 1
    assert metrics.zigzag(small * 1.2, reference, 8.0)["zigzag_flips"] == 0  # under 1.5 bins


def test_bends_are_not_measured_across_gaps_or_lanes() -> None:
    gap = line(100)
    gap[10:] += 200
    gap[10] = NAN
    two = lanes([gap, line(700)])
    assert metrics.zigzag(two, lanes([line(0), line(0)]), 4.0) == {
        "zigzag": 0.0,
        "zigzag_flips": 0.0,
    }


def test_zigzag_of_nothing() -> None:
    assert metrics.zigzag(lanes([NONE]), lanes([line(0)]), 4.0) == {}
    assert metrics.zigzag(lanes([line(0, stop=2)]), lanes([line(0)]), 4.0) == {}


# --- collapse and movement ----------------------------------------------------------------------


def test_collapse_to_one_line() -> None:
    truth = lanes([line(100), line(300), line(500)], [line(200), line(400), line(600)])
    assert metrics.collapse(truth, truth) == {
        "collapse_lanes": 1.0,
        "collapse_images": 1.0,
        "collapse": 1.0,
    }
    one = np.broadcast_to(line(350), truth.shape)
    assert metrics.collapse(one, truth)["collapse"] == 0
    memory = np.broadcast_to(truth.mean(0), truth.shape)  # the same lanes for every image
    read = metrics.collapse(memory, truth)
    assert read["collapse_lanes"] == pytest.approx(1)
    assert read["collapse_images"] == pytest.approx(0)
    assert read["collapse"] == read["collapse_images"]
    half = metrics.collapse((truth + one) / 2, truth)
    assert half["collapse_lanes"] == pytest.approx(0.5)


def test_collapse_of_one_image_is_between_its_lanes() -> None:
    truth = lanes([line(100), line(300), NONE])
    assert set(metrics.collapse(truth, truth)) == {"collapse_lanes", "collapse"}
    single = lanes([line(100), NONE, NONE])
    assert metrics.collapse(single, single) == {}
    assert metrics.collapse(lanes([NONE, NONE, NONE]), truth) == {}


def test_movement() -> None:
    before = lanes([line(100), line(300)])
    after = lanes([line(110, stop=20), NONE])
    assert metrics.movement(before, after) == {"px": 10.0, "kept": 0.25}
    assert metrics.movement(before, np.full_like(before, NAN)) == {"kept": 0.0}
    assert metrics.movement(np.full_like(before, NAN), after) == {}


# --- cross-entropy ------------------------------------------------------------------------------


@pytest.mark.parametrize(("vocab", "expected"), [(200, 5.30), (800, 6.68)])
def test_uniform_guessing(vocab: int, expected: float) -> None:
    logits, ids = torch.zeros(1, 1, 3, vocab), torch.tensor([[[0, 5, vocab - 1]]])
    assert metrics.cross_entropy(logits, ids).tolist() == [
        [[pytest.approx(expected, abs=0.005)] * 3]
    ]


def test_cross_entropy_of_a_known_distribution() -> None:
    logits = torch.log(torch.tensor([[[[0.7, 0.2, 0.1]]]]))
    assert metrics.cross_entropy(logits, torch.tensor([[[1]]])).item() == pytest.approx(
        -math.log(0.2)
    )


def test_loss_per_px_does_not_depend_on_the_bins() -> None:
    """Uniform guessing over the width is ln(800 px) whatever the bins."""
    for bins in (200, 800):
        assert metrics.loss_per_px(math.log(bins), 800 / bins) == pytest.approx(math.log(800))


def test_first_points() -> None:
    point = torch.tensor([[[0, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]]]).bool()
    expected = [[[0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]]
    assert metrics.first_points(point).int().tolist() == expected


def test_loss_trend() -> None:
    falling = metrics.loss_trend([2.0 * 0.97**i for i in range(100)])
    assert falling["loss_fall"] == pytest.approx(1 - 0.97**10)
    assert falling["loss_spikes"] == 0
    flat = [0.02 + 0.01 * (-1) ** i for i in range(100)]
    assert metrics.loss_trend(flat)["loss_fall"] == pytest.approx(0)
    assert metrics.loss_trend(flat)["loss_spikes"] == 0
    flat[50] = flat[80] = 1.0
    assert metrics.loss_trend(flat)["loss_spikes"] == pytest.approx(2 / 90)
    assert metrics.loss_trend([1.0] * 10) == {"loss_overshoot": 1.0}
    assert metrics.loss_trend([0.0] * 30) == {"loss_fall": 0.0, "loss_spikes": 0.0}
    assert metrics.loss_trend([5.0]) == {}
    assert metrics.loss_trend([5.0, 4.0, 7.5, 1.0])["loss_overshoot"] == 1.5


# --- any lanes ----------------------------------------------------------------------------------

maybe = st.one_of(st.just(NAN), st.floats(0, 800))


@given(
    hnp.arrays(float, (2, 3, 6), elements=maybe),
    hnp.arrays(float, (2, 3, 6), elements=maybe),
)
def test_readings_are_numbers_for_any_lanes(decoded: np.ndarray, truth: np.ndarray) -> None:
    read = (
        metrics.px_readings(decoded, truth)
        | metrics.zigzag(decoded, truth, 4.0)
        | metrics.collapse(decoded, truth)
        | metrics.movement(decoded, truth)
    )
    assert all(isinstance(value, float) and math.isfinite(value) for value in read.values())
    assert 0 <= read.get("coverage", 0) <= 1
    if "px_error" in read:
        assert read["px_error"] <= read["px_error_max"] + 1e-9  # a mean of equals is rounded


def test_trend_of_passes_over_unequal_images() -> None:
    """The last image of every three is ten times as hard: no spike of the loss."""
    losses = [0.1, 0.1, 1.0] * 20
    assert metrics.loss_trend(losses)["loss_spikes"] > 0.3
    passes = metrics.loss_trend(losses, 3)
    assert (passes["loss_fall"], passes["loss_spikes"]) == (0.0, 0.0)
    falling = [5.0, *np.repeat(np.arange(40.0, 0, -1), 3)]  # the first step makes no whole three
    assert metrics.loss_trend(falling, 3)["loss_fall"] == pytest.approx(1 - 2.5 / 6.5)
