"""TuSimple's accuracy, FP and FN against the benchmark's own figures."""

from __future__ import annotations

import numpy as np
import pytest

from model import tusimple

ROWS = tuple(range(160, 720, 10))  # 56
Y = np.array(ROWS, float)
HALF, FULL = 100 + 0.5 * Y, 400 + 1.0 * Y  # slopes .5 and 1
ABSENT = np.full(len(ROWS), tusimple.ABSENT)


def upper_half(lane: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(ROWS)) < len(ROWS) // 2, lane, tusimple.ABSENT)


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        pytest.param([HALF, FULL], (1, 0, 0), id="perfect"),
        pytest.param([HALF + 22, FULL], (1, 0, 0), id="shifted 22 px"),
        pytest.param([HALF + 23, FULL], (0.5, 0.5, 0.5), id="shifted 23 px"),
        pytest.param([HALF], (0.5, 0, 0.5), id="one of two"),
        pytest.param([], (0, 0, 1), id="none"),
        pytest.param([HALF, FULL, FULL], (1, 1 / 3, 0), id="duplicate"),
        pytest.param([upper_half(HALF), FULL], (0.75, 0.5, 0.5), id="half length"),
    ],
)
def test_two_lanes(predicted: list[np.ndarray], expected: tuple[float, float, float]) -> None:
    assert tusimple.score(predicted, [HALF, FULL], ROWS) == pytest.approx(expected)


def test_without_ground_truth() -> None:
    assert tusimple.score([HALF], [], ROWS) == (0, 1, 0)
    assert tusimple.score([], [], ROWS) == (0, 0, 0)


def test_too_many_predictions_score_nothing() -> None:
    assert tusimple.score([HALF] * 3, [HALF], ROWS) == pytest.approx((1, 2 / 3, 0))
    assert tusimple.score([HALF] * 4, [HALF], ROWS) == (0, 0, 1)


def test_a_fifth_lane_may_be_missed() -> None:
    lanes = [100 + 0.5 * Y + 150 * i for i in range(5)]
    assert tusimple.score(lanes[:4], lanes, ROWS) == pytest.approx((1, 0, 0))
    assert tusimple.score(lanes[:3], lanes, ROWS) == pytest.approx((0.75, 0, 0.25))
    assert tusimple.score(lanes, lanes, ROWS) == pytest.approx((1, 0, 0))


def test_the_threshold_follows_the_slope_of_the_label_alone() -> None:
    assert tusimple.distance_allowed(HALF, ROWS) == pytest.approx(20 * np.sqrt(1.25))
    assert tusimple.distance_allowed(FULL, ROWS) == pytest.approx(20 * np.sqrt(2))
    assert tusimple.distance_allowed(ABSENT, ROWS) == 20
    one = ABSENT.copy()
    one[3] = 500
    assert tusimple.distance_allowed(one, ROWS) == 20


def test_lanes_are_read_at_the_rows() -> None:
    line = np.array([[100.0, 205.0], [200.0, 305.0]])
    x = tusimple.at_rows(line, ROWS)
    assert (x[:5] == tusimple.ABSENT).all()
    assert (x[15:] == tusimple.ABSENT).all()
    assert x[5] == pytest.approx(105)
    assert x[14] == pytest.approx(195)
    assert (tusimple.at_rows(np.zeros((0, 2)), ROWS) == tusimple.ABSENT).all()
    assert (tusimple.at_rows(line - [150.0, 0.0], ROWS)[5:10] == tusimple.ABSENT).all()  # x < 0


def test_labels_are_not_filled_in() -> None:
    line = np.array([[100.0, 200.0], [120.0, 220.0]])
    x = tusimple.labelled_at_rows(line, ROWS)
    assert x[4] == 100
    assert x[5] == tusimple.ABSENT
    assert x[6] == 120


def test_the_report_is_the_mean_over_images() -> None:
    assert tusimple.report([(1.0, 0.0, 0.0), (0.5, 0.5, 0.5)]) == {
        "tusimple_accuracy": 0.75,
        "tusimple_fp": 0.25,
        "tusimple_fn": 0.25,
    }
    assert tusimple.report([]) == {}
