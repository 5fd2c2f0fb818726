"""The lane map: where its target says a lane is, and that a token can learn to say it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.checkpoint import load_checkpoint
from model.lane_map import COLUMN, ROW, LaneMap, mapped
from model.lanelm import LaneLM
from model.presets import SettingError
from model.stacked import can_stack
from model.targets import make_targets
from tests.model.network import features_of, network, small, targets_for
from tests.model.tiny import run, tiny


def drawn(lane: list[list[float]], **settings: Any) -> Tensor:
    """Draw the target of one lane: (rows, columns)."""
    config = small(**settings)
    x = make_targets([[np.array(lane)]], config).x
    return mapped(x, config)[0]


@pytest.mark.parametrize("order", ["bottom_up", "top_down"])
@pytest.mark.parametrize("n_rows", [8, 5, 13])
def test_a_lane_is_drawn_where_it_passes(order: str, n_rows: int):
    rows = drawn([[20.0, 0], [100.0, 64]], tokenizer__row_order=order, tokenizer__n_rows=n_rows)
    assert rows.shape == (64 // ROW, 128 // COLUMN)
    last = int(64 / n_rows * (n_rows - 1))  # px of the lowest token row: below it nothing is known
    for row, line in enumerate(rows):
        if row * ROW > last:
            assert not line.any()
        else:
            assert line.argmax() == int((20 + 80 * row * ROW / 64) / COLUMN)
            assert line.max() == 1


def test_a_lane_fades_to_its_sides_and_ends_where_it_ends():
    rows = drawn([[50.0, 16], [50.0, 40]])
    assert rows.any(-1).tolist() == [False, False, True, True, True, True, False, False]
    assert rows[2].nonzero()[:, 0].tolist() == [10, 11, 12, 13, 14]
    assert rows[2, 10:15].tolist() == [0.25, 0.5, 1.0, 0.5, 0.25]


def test_lanes_that_meet_are_no_more_than_one():
    config = small()
    lanes = [np.array([[50.0, 0], [50.0 + d, 64]]) for d in (0, 8)]
    assert mapped(make_targets([lanes], config).x, config).max() == 1


@pytest.mark.parametrize("levels", ["p5", "p4p5", "full"])
def test_a_place_is_read_off_the_token_of_its_cell(levels: str):
    config = small(visual__levels=levels, loss__lane_map=1.0)
    lane_map = LaneMap(config)
    cells = sum(grid.cells for grid in lane_map.grids)
    content = torch.randn(1, 16, cells).requires_grad_()
    for norm in lane_map.norms:
        torch.nn.Module.register_forward_hook(norm, lambda _m, given, _out: given[0])
    first = 0
    for grid, logits in zip(lane_map.grids, lane_map(content), strict=True):
        assert logits.shape == (1, 64 // ROW, 128 // COLUMN)
        row, column = 5, 21  # px 40, 84
        (g,) = torch.autograd.grad(logits[0, row, column], content, retain_graph=True)
        (cell,) = g.abs().sum(1)[0].nonzero()[:, 0].tolist()
        stride = 8 << grid.level
        assert cell - first == row * ROW // stride * grid.width + column * COLUMN // stride
        first += grid.cells


def test_tokens_learn_to_say_where_the_lanes_are():
    config = small(visual__levels="full", visual__fold=True, loss__lane_map=1.0, visual__neck=1)
    model = network(config)
    assert model.lane_map is not None
    features, targets = features_of(model), targets_for(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(150):
        loss = model.lane_map.loss(model.encode(features).content, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3
    (logits,) = model.lane_map(model.encode(features).content)
    lanes = mapped(targets.x, config)
    assert ((logits > 0) == (lanes > 0.5)).float().mean() > 0.98


def test_without_it_the_model_has_no_such_part():
    assert network(small()).lane_map is None
    assert not [name for name in network(small()).state_dict() if "map" in name or "neck" in name]


def test_it_needs_every_cell():
    with pytest.raises(SettingError, match=r"visual\.stride=2"):
        small(loss__lane_map=1.0, visual__stride=2)


def test_training_teaches_the_map(tmp_path: Path):
    """Its head, which only the loss of the map reaches, moves."""
    config = tiny(loss__lane_map=10.0, visual__neck=1, batch__accumulate=2)
    run(config, tmp_path / "a", tmp_path)
    plain = LaneLM(config, (8, 8, 8)).state_dict()
    trained = load_checkpoint(tmp_path / "a" / "checkpoint.pt")["model"]
    heads = [name for name in trained if name.startswith("lane_map.heads")]
    assert heads
    assert all(not torch.equal(trained[name], plain[name]) for name in heads)


@pytest.mark.parametrize("setting", [{"visual__neck": 1}, {"loss__lane_map": 1.0}])
def test_a_cohort_does_not_take_what_it_cannot_stack(setting: dict[str, Any]):
    assert can_stack(small())
    assert not can_stack(small(**setting))
