"""Round trips within each mode's bound, the same support in all modes, legacy faults on show."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.config import TokenizerConfig
from model.tokenizer import MODES, Tokenizer, lane_to_rows, make_tokenizer, row_positions

WIDTH, T = 800, 40


def tokenizer_of(mode: str, n_bins: int = 200, max_abs_dx: int = 32) -> Tokenizer:
    extra = {} if mode == "absolute" else {"max_abs_dx": max_abs_dx}
    return make_tokenizer(TokenizerConfig(mode=mode, n_bins=n_bins, **extra), WIDTH)  # pyright: ignore


@st.composite
def lanes(draw: st.DrawFn, steepest: float = 60.0) -> Tensor:
    """A lane inside the image: contiguous support, wandering by up to `steepest` px per row."""
    first = draw(st.integers(0, T - 1))
    n = draw(st.integers(1, T - first))
    x = [draw(st.floats(0, WIDTH, exclude_max=True))]
    for step in draw(st.lists(st.floats(-steepest, steepest), min_size=n - 1, max_size=n - 1)):
        x.append(min(max(x[-1] + step, 0), WIDTH - 1e-3))
    lane = torch.full((T,), math.nan)
    lane[first : first + n] = torch.tensor(x)
    return lane


def straight(slope: float, start: float = 700.0) -> Tensor:
    return start - slope * torch.arange(T)


@pytest.mark.parametrize("mode", ["absolute", "relative_disjoint"])
@pytest.mark.parametrize("n_bins", [200, 800])
@given(lane=lanes(steepest=30.0))
def test_round_trip_within_the_bound(mode: str, n_bins: int, lane: Tensor):
    tokenizer = tokenizer_of(mode, n_bins)
    back = tokenizer.decode(tokenizer.encode(lane))
    assert torch.equal(back.isnan(), lane.isnan())
    assert (back - lane).abs().nan_to_num().max() <= tokenizer.bound_px + 1e-3


@pytest.mark.parametrize("mode", ["absolute", "relative_disjoint"])
@pytest.mark.parametrize(("n_bins", "mean", "largest"), [(200, 1.0, 2.01), (800, 0.25, 0.501)])
def test_floors_of_the_published_table(mode: str, n_bins: int, mean: float, largest: float):
    tokenizer = tokenizer_of(mode, n_bins)
    x = torch.rand(500, 1, generator=torch.Generator().manual_seed(0)) * 300 + 400
    lanes = x - torch.linspace(0.3, 9.0, 500)[:, None] * torch.arange(T)
    error = (tokenizer.decode(tokenizer.encode(lanes)) - lanes).abs()
    assert error.max() <= largest
    assert error.mean() == pytest.approx(mean, rel=0.02)


@given(lane=lanes(steepest=400.0))
def test_clipped_steps_are_made_good(lane: Tensor):
    """Closed loop: no row is further off than if each step since the last good one were full."""
    tokenizer = tokenizer_of("relative_disjoint", max_abs_dx=8)
    back = tokenizer.decode(tokenizer.encode(lane))
    error, reach = 0.0, 8 * tokenizer.bin_width
    previous = math.nan
    for x, x_back in zip(lane.tolist(), back.tolist(), strict=True):
        if math.isnan(x):
            assert math.isnan(x_back)
            continue
        jump = 0.0 if math.isnan(previous) else abs(x - previous)
        error = max(error + jump - reach, 0.0) if not math.isnan(previous) else 0.0
        assert abs(x - x_back) <= error + 2 * tokenizer.bin_width
        previous = x


@given(lane=lanes())
def test_all_modes_support_the_same_rows(lane: Tensor):
    for mode in MODES:
        tokenizer = tokenizer_of(mode)
        ids = tokenizer.encode(lane)
        assert torch.equal(ids > 0, ~lane.isnan()), mode
        assert torch.equal(tokenizer.decode(ids).isnan(), lane.isnan()), mode
        assert int(ids.max()) < tokenizer.vocab


def test_relative_ids_are_disjoint_from_bins():
    tokenizer = tokenizer_of("relative_disjoint")
    ids = tokenizer.encode(straight(10.0))
    assert 0 < ids[0] < 200
    assert bool((ids[1:] >= 200).all())
    assert tokenizer.vocab == 200 + 65 == tokenizer.bos
    assert tokenizer_of("absolute").vocab == 200


def test_clamped_codes_make_every_step_one_token():
    tokenizer = tokenizer_of("relative_clamped")
    lanes = torch.stack([straight(8.0), straight(3.0, 400.0), straight(12.0, 600.0)])
    ids = tokenizer.encode(lanes)
    assert ids[:, 1:].unique().tolist() == [199]
    assert (tokenizer.decode(ids) - lanes).abs().mean() > 100


def test_open_loop_drifts_where_closed_loop_does_not():
    lanes = torch.stack([straight(slope) for slope in np.linspace(0.5, 17.0, 60)])
    worst = {
        mode: float(
            (tokenizer_of(mode, 800).decode(tokenizer_of(mode, 800).encode(lanes)) - lanes)
            .abs()
            .max()
        )
        for mode in ("relative_disjoint", "relative_open_loop")
    }
    assert worst["relative_disjoint"] < 0.51
    assert 5 < worst["relative_open_loop"] < 20.1


@given(
    ids=st.lists(st.integers(-3, 280), min_size=T, max_size=T),
    mode=st.sampled_from(sorted(MODES)),
)
def test_decode_takes_any_ids(ids: list[int], mode: str):
    tokenizer = tokenizer_of(mode)
    x = tokenizer.decode(torch.tensor(ids))
    points = x[~x.isnan()]
    assert bool(((points > 0) & (points < WIDTH)).all())
    wrong = torch.tensor([not 0 < i < tokenizer.vocab for i in ids])
    assert bool(x[wrong].isnan().all())


def test_a_step_from_nowhere_is_no_point():
    tokenizer = tokenizer_of("relative_disjoint")
    step = int(tokenizer.step_id(torch.tensor(3)))  # pyright: ignore
    assert tokenizer.walk(torch.tensor([step, 0, 50, step, 0, step])).tolist() == [
        0,
        0,
        50,
        53,
        0,
        0,
    ]


@given(ids=st.lists(st.integers(-3, 270), min_size=1, max_size=T))
def test_each_step_starts_where_decoding_stands(ids: list[int]):
    """A step over the edge stops there; the way beyond it is not owed to the next ones."""
    tokenizer = tokenizer_of("relative_disjoint")
    zero = int(tokenizer.step_id(torch.tensor(0)))  # pyright: ignore
    wanted, at = [], 0
    for i in ids:
        if 0 < i < tokenizer.n_bins:
            at = i
        elif tokenizer.n_bins <= i < tokenizer.vocab and at:
            at = min(max(at + i - zero, 1), tokenizer.n_bins - 1)
        else:
            at = 0
        wanted.append(at)
    assert tokenizer.walk(torch.tensor(ids)).tolist() == wanted


def test_a_step_over_the_edge_is_not_remembered():
    tokenizer = tokenizer_of("relative_disjoint")
    zero = int(tokenizer.step_id(torch.tensor(0)))  # pyright: ignore
    ids = torch.tensor([[5, zero - 10, zero + 10], [5, zero - 3, zero + 10]])
    assert tokenizer.walk(ids).tolist() == [[5, 1, 11], [5, 2, 12]]


@given(lane=lanes(), mode=st.sampled_from(["absolute", "relative_disjoint"]))
def test_columns_hold_the_last_point(lane: Tensor, mode: str):
    tokenizer = tokenizer_of(mode)
    ids = tokenizer.encode(lane)
    expected, last = [], -1.0
    for x in tokenizer.decode(ids).tolist():
        last = last if math.isnan(x) else x
        expected.append(last)
    assert tokenizer.columns(ids).tolist() == pytest.approx(expected)


def test_rows_in_writing_order():
    down = row_positions(TokenizerConfig(n_rows=40, row_order="top_down"), 320)
    up = row_positions(TokenizerConfig(n_rows=40, row_order="bottom_up"), 320)
    assert down.tolist() == list(range(0, 320, 8))
    assert up.tolist() == down[::-1].tolist()


def test_a_lane_is_read_between_its_ends_and_inside_the_image():
    rows = np.arange(0.0, 100, 10)
    x = lane_to_rows(np.array([[0.0, 20], [40, 60]]), rows, 35)
    assert np.isnan(x[:2]).all()
    assert x[2:6].tolist() == [0, 10, 20, 30]
    assert np.isnan(x[6:]).all()  # 40 lies beside the image, then the lane ends


def test_a_lane_that_leaves_and_returns_keeps_its_longest_run():
    rows = np.arange(0.0, 100, 10)
    x = lane_to_rows(np.array([[50.0, 0], [-30, 20], [60, 50], [60, 90]]), rows, 100)
    assert np.flatnonzero(~np.isnan(x)).tolist() == [3, 4, 5, 6, 7, 8, 9]


def test_odd_lanes():
    rows = np.arange(0.0, 100, 10)
    assert np.isnan(lane_to_rows(np.zeros((0, 2)), rows, 100)).all()
    assert np.isnan(lane_to_rows(np.array([[5.0, 13]]), rows, 100)).all()
    on_a_row = lane_to_rows(np.array([[5.0, 20]]), rows, 100)
    assert np.flatnonzero(~np.isnan(on_a_row)).tolist() == [2]
    twice = lane_to_rows(np.array([[5.0, 20], [5, 20], [25, 40]]), rows, 100)
    assert twice[2:5].tolist() == [5, 15, 25]
