"""CULane F1 against the published drawing rules' own figures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model import culane

ROWS = np.arange(589, 278, -10.0)


def lane(x0: float, slope: float = 0.0, rows: np.ndarray = ROWS) -> np.ndarray:
    return np.stack([x0 + (589 - rows) * slope, rows], axis=1)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float(culane.iou_matrix([a], [b])[0, 0])


@pytest.mark.parametrize(
    ("shift", "expected"),
    [
        (1, 0.934),
        (3, 0.824),
        (5, 0.715),
        (8, 0.585),
        (9, 0.547),
        (10, 0.508),
        (11, 0.469),
        (15, 0.342),
        (20, 0.211),
        (30, 0.014),
    ],
)
def test_iou_of_a_shifted_vertical_lane(shift: int, expected: float) -> None:
    assert round(iou(lane(800), lane(800 + shift)), 3) == expected


@pytest.mark.parametrize(("slope", "expected"), [(1, 0.489), (2, 0.633), (3, 0.725)])
def test_iou_of_a_shifted_slanted_lane(slope: int, expected: float) -> None:
    assert round(iou(lane(200, slope), lane(215, slope)), 3) == expected


@pytest.mark.parametrize(("points", "expected", "hit"), [(17, 0.522, 1), (14, 0.429, 0)])
def test_iou_of_a_lane_cut_to_a_part(points: int, expected: float, hit: int) -> None:
    """0.5 and 0.4 of a lane of 32 points, rounded, and the point where the cut is."""
    whole = lane(820, 0.5)[::-1]
    cut = whole[-points:]
    assert points == round(len(whole) * (0.5 if hit else 0.4)) + 1
    assert round(iou(whole, cut), 3) == expected
    assert culane.count([cut], [whole]).hits[0] == hit


def test_two_predictions_on_one_lane_are_one_hit_and_one_false_positive() -> None:
    counts = culane.count([lane(800), lane(803)], [lane(801)])
    assert (counts.hits[0], counts.false_positives[0], counts.false_negatives[0]) == (1, 1, 0)


def test_matching_is_one_to_one_for_the_largest_sum() -> None:
    """A greedy match by best IoU first could leave a lane without its prediction."""
    counts = culane.count([lane(806), lane(818)], [lane(800), lane(812)])
    assert counts.hits[0] == 2


def test_a_hit_needs_more_than_the_threshold() -> None:
    counts = culane.count([lane(800), lane(300)], [lane(800), lane(315)])
    assert counts.hits.tolist() == [1] * 10  # a perfect lane is above .95, .342 below .5
    shifted = culane.count([lane(800)], [lane(805)])  # IoU .715
    assert shifted.hits.tolist() == [1] * 5 + [0] * 5  # .5 .55 .6 .65 .7


def test_scores_come_from_the_summed_counts() -> None:
    perfect = culane.count([lane(800)], [lane(800)])
    crossroad = culane.count([lane(800), lane(400), lane(1200)], [])
    assert culane.f1([perfect, perfect]) == {"f1": 1.0, "f1_75": 1.0, "mf1": 1.0}
    assert crossroad.false_positives[0] == 3
    assert crossroad.false_negatives[0] == 0
    scores = culane.f1([perfect, crossroad])
    assert scores["f1"] == pytest.approx(2 * 1 / (4 + 1))  # not the mean of 1 and 0
    shifted = culane.count([lane(800)], [lane(805)])
    assert culane.f1([shifted]) == {"f1": 1.0, "f1_75": 0.0, "mf1": 0.5}


def test_nothing_on_either_side_has_no_score() -> None:
    assert culane.f1([culane.count([], [])]) == {}
    assert culane.f1([]) == {}
    assert culane.f1([culane.count([], [lane(800)])])["f1"] == 0.0


def test_one_point_lanes_and_repeated_points_do_no_harm() -> None:
    repeated = np.repeat(lane(800), 3, axis=0)
    assert iou(culane.clean(repeated), lane(800)) == 1.0
    single = np.array([[800.0, 500.0]])
    assert culane.count([single], [lane(800)]).predicted == 0
    assert culane.count([np.repeat(single, 4, axis=0)], [lane(800)]).predicted == 0
    assert culane.count([np.zeros((0, 2))], [single]).labelled == 0
    with_hole = lane(800)
    with_hole[5] = np.nan
    assert iou(culane.clean(with_hole), lane(800)) > 0.95


def test_three_points_make_a_curve_and_two_a_segment() -> None:
    bent = np.array([[700.0, 589.0], [800.0, 434.0], [700.0, 279.0]])
    assert len(culane.curve(bent)) == 11
    middle = culane.curve(bent)[[2, 8], 0]
    assert (middle > 741).all()  # the polyline would be at 740
    assert len(culane.curve(bent[:2])) == 2


def test_other_image_sizes_keep_the_lane_width_in_proportion() -> None:
    small = [np.array([[400.0, 0.0], [400.0, 319.0]])]
    moved = [small[0] + [5.0, 0.0]]
    assert culane.count(moved, small, (800, 320)).hits[0] == 1
    moved = [small[0] + [6.0, 0.0]]  # a hit if it were drawn 30 px wide
    assert culane.count(moved, small, (800, 320)).hits[0] == 0


point = st.tuples(st.floats(-1e7, 1e7), st.floats(-1e7, 1e7))


@settings(max_examples=40, deadline=None)
@given(st.lists(point, max_size=6), st.lists(point, max_size=6))
def test_any_points_can_be_scored(a: list, b: list) -> None:
    counts = culane.count([np.array(a).reshape(-1, 2)], [np.array(b).reshape(-1, 2)])
    assert (counts.hits >= 0).all()
    assert (counts.hits <= min(counts.predicted, 1)).all()
