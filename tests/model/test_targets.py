"""Every step of every slot has exactly one role, and lanes keep their order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.presets import build
from model.targets import make_targets
from model.tokenizer import make_tokenizer, row_positions

CONFIG = build({"tokenizer.n_rows": 8, "data.height": 64, "data.width": 128, "data.max_lanes": 3})
ROWS = [56, 48, 40, 32, 24, 16, 8, 0]


def lane(x: float, top: float, bottom: float) -> np.ndarray:
    return np.array([[x, top], [x, bottom]])


def test_roles_of_present_and_absent_lanes():
    targets = make_targets([[lane(10, 20, 50), lane(90, 0, 60)], []], CONFIG)
    assert targets.present.tolist() == [[True, True, False], [False] * 3]
    x = targets.x[0, 0].nan_to_num(-1).tolist()
    assert x == [-1, 10, 10, 10, 10, -1, -1, -1]  # rows 48 .. 24
    assert targets.y[0, 0].tolist() == [8, 1, 2, 3, 4, 8, 8, 8]
    assert targets.lead[0, 0].tolist() == [True] + [False] * 7
    assert targets.first_end[0, 0].nonzero().flatten().tolist() == [5]
    assert targets.first_end[0, 1].sum() == 0  # it reaches the last row
    for image, slot in [(0, 2), (1, 0)]:
        assert targets.ids[image, slot].sum() == 0
        assert targets.first_end[image, slot].nonzero().flatten().tolist() == [0]
        assert targets.lead[image, slot].tolist() == [False] + [True] * 7


@given(
    ends=st.lists(st.tuples(st.floats(0, 63), st.floats(0, 63)).map(sorted), min_size=0, max_size=3)
)
def test_each_step_has_at_most_one_role(ends: list[list[float]]):
    targets = make_targets([[lane(40 * i, *end) for i, end in enumerate(ends)]], CONFIG)
    roles = targets.point.int() + targets.first_end.int() + targets.lead.int()
    assert int(roles.max()) <= 1
    assert torch.equal(targets.point, targets.ids > 0)
    assert torch.equal(targets.point.any(-1), targets.present)
    after = roles == 0  # only what follows the end has no role
    assert bool((targets.first_end.cumsum(-1)[after] > 0).all())
    tokenizer = make_tokenizer(CONFIG.tokenizer, CONFIG.data.width)
    assert torch.equal(tokenizer.encode(targets.x), targets.ids)


def test_a_lane_that_meets_no_row_takes_no_slot():
    targets = make_targets([[lane(10, 1, 7), lane(90, 0, 60)]], CONFIG)
    assert targets.present.tolist() == [[True, False, False]]
    assert targets.x[0, 0, 0] == 90


def test_in_ego_order_an_empty_lane_keeps_its_slot():
    config = CONFIG.model_copy(
        update={"data": CONFIG.data.model_copy(update={"lane_order": "ego"})}
    )
    targets = make_targets([[np.empty((0, 2)), lane(10, 1, 7), lane(90, 0, 60)]], config)
    assert targets.present.tolist() == [[False, False, True]]
    assert targets.x[0, 2, 0] == 90


def test_too_many_lanes_are_refused():
    with pytest.raises(ValueError, match=r"image 0 has 4 lanes, data\.max_lanes is 3"):
        make_targets([[lane(10 * i, 0, 60) for i in range(4)]], CONFIG)


def test_select_takes_images_in_order():
    targets = make_targets([[lane(x, 0, 60)] for x in (10, 20, 30)], CONFIG)
    chosen = targets.select([2, 0])
    assert chosen.x[:, 0, 0].tolist() == [30, 10]
    assert chosen.point.shape == (2, 3, 8)


def test_steps_follow_the_rows():
    assert row_positions(CONFIG.tokenizer, 64).tolist() == ROWS
    slanted = make_targets([[np.array([[0.0, 0], [60, 60]])]], CONFIG)
    assert slanted.x[0, 0].tolist() == [float(row) for row in ROWS]
