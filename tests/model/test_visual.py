"""Visual tokens: which cells, how they are normed and projected, and where they say they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.positions import Grid, codes, make_grids, sharp, weak
from model.visual import Level, VisualEncoder, fold
from tests.model.network import CHANNELS, features_of, network, small


def level_of(**settings: Any) -> tuple[Level, Tensor]:
    """Give P5's module and features of two images."""
    model = network(small(visual__levels="p5", **settings))
    level = model.visual.levels["p5"]
    assert isinstance(level, Level)
    return level, features_of(model)[0] * 3 + 1


@pytest.mark.parametrize(
    ("settings", "cells"),
    [
        ({"visual.levels": "p5"}, 250),
        ({"visual.levels": "p4p5"}, 1250),
        ({"visual.levels": "full"}, 5250),
        ({"visual.levels": "full", "visual.stride": 2}, 1500),
        ({"visual.levels": "p4p5", "visual.stride": 3}, 7 * 17 + 250),
        ({"visual.levels": "p4p5", "visual.fold": True}, 250),
        ({"visual.levels": "full", "visual.fold": True}, 250),
    ],
)
def test_token_counts(settings: dict[str, Any], cells: int):
    config = small(**{"data__width": 800, "data__height": 320, **settings})
    assert sum(grid.cells for grid in make_grids(config)) == cells


def test_stride_keeps_every_other_row_and_column():
    config = small(visual__levels="p4p5", visual__stride=2, visual__position="none")
    model = network(config)
    p4, p5 = features_of(model)
    tokens = model.visual([p4, p5])
    assert tokens.content.shape == (2, 16, 2 * 4 + 2 * 4)
    other = p4.clone()
    other[:, :, 1::2] += 1
    other[:, :, :, 1::2] += 1
    assert torch.equal(model.visual([other, p5]).content, tokens.content)
    assert make_grids(config)[0].rows().tolist() == [8, 40]
    assert make_grids(config)[0].columns().tolist() == [8, 40, 72, 104]


def test_layernorm_is_torch_s():
    level, f = level_of()
    assert level.norm is not None
    nn.init.normal_(level.norm.weight)
    nn.init.normal_(level.norm.bias)
    rows = F.layer_norm(f.flatten(2).mT, (9,), level.norm.weight, level.norm.bias)
    expected = F.linear(rows, level.projection.weight, level.projection.bias).mT
    torch.testing.assert_close(level(f), expected, rtol=1e-4, atol=1e-5)


def test_scale_comes_after_the_norm():
    level, f = level_of(visual__scale=0.1)
    plain, _ = level_of()
    plain.load_state_dict(level.state_dict())
    with torch.no_grad():
        level.projection.bias.fill_(0.7)
        plain.projection.bias.fill_(0.7)
    torch.testing.assert_close(level(f) - 0.7, 0.1 * (plain(f) - 0.7))


def test_standardize_uses_the_training_images():
    level, f = level_of(visual__norm="standardize")
    expected = F.linear(((f - 0.3) / 2).flatten(2).mT, level.projection.weight).mT
    torch.testing.assert_close(level(f), expected)
    assert {"mean", "std"} <= set(level.state_dict())  # they travel with the weights


def test_standardize_without_statistics_shows():
    config = small(visual__levels="p5", visual__norm="standardize")
    encoder = VisualEncoder(config, CHANNELS, None)
    assert encoder([torch.ones(1, 9, 2, 4)]).content.isnan().all()


def test_no_norm_is_the_projection_alone():
    level, f = level_of(visual__norm="none")
    torch.testing.assert_close(level(f), F.linear(f.flatten(2).mT, level.projection.weight).mT)


def test_residual_adds_an_mlp():
    level, f = level_of(visual__residual=True)
    plain, _ = level_of()
    h = plain(f)  # the same seed: the same projection
    grown = F.gelu(F.linear(h.mT, level.grow.weight, level.grow.bias))
    expected = h + F.linear(grown, level.shrink.weight, level.shrink.bias).mT
    torch.testing.assert_close(level(f), expected, rtol=1e-4, atol=1e-5)


def test_level_embedding_tells_levels_apart():
    model = network(small(visual__levels="p4p5", visual__position="none"))
    position = model.visual(features_of(model)).position
    assert position.shape == (16, 32 + 8)
    assert bool((position[:, :32] == position[:, :1]).all())
    assert bool((position[:, 32:] == position[:, -1:]).all())
    assert not torch.equal(position[:, 0], position[:, -1])
    without = network(
        small(visual__levels="p4p5", visual__position="none", visual__level_embedding=False)
    )
    assert without.visual(features_of(without)).position.abs().max() == 0


def nearest_neighbour(code: Tensor) -> float:
    """Give the largest cosine between different cells' codes (d, N)."""
    unit = F.normalize(code, dim=0)
    return float((unit.T @ unit).fill_diagonal_(-1).max())


def test_sharp_codes_tell_neighbours_apart_and_weak_ones_do_not():
    p3 = [Grid(0, 1, 40, 100)]
    assert nearest_neighbour(codes(sharp(128, 800), p3)) < 0.97
    assert nearest_neighbour(codes(weak(128, 320, 800), p3)) > 0.999


def test_codes_match_best_where_places_agree():
    """Scores peak at the cell that holds the place, in every head, and fall off around it."""
    basis, grid = sharp(64, 800, heads=4), Grid(2, 1, 10, 25)
    keys = codes(basis, [grid])
    for row, column in [(3, 7), (0, 0), (9, 24)]:
        y, x = grid.rows()[row], grid.columns()[column]
        query = basis.rows(y) + basis.columns(x)
        for head in range(4):
            part = slice(16 * head, 16 * (head + 1))
            scores = (query[part] @ keys[part]).view(10, 25)
            assert int(scores.argmax()) == row * 25 + column
            assert scores.max() == pytest.approx(8.0, abs=1e-3)


@pytest.mark.parametrize("position", ["sinusoidal", "learned", "aligned", "weak"])
def test_positions_differ_from_cell_to_cell(position: str):
    model = network(small(visual__levels="p5", visual__position=position))
    tokens = model.visual(features_of(model))
    assert nearest_neighbour(tokens.position.detach()) < 1 - 1e-7
    assert (tokens.place is not None) == (position == "aligned")


def test_learned_positions_are_shared_by_strides():
    """A cell keeps its vector when others are left out."""
    settings = {"visual__levels": "p4p5", "visual__position": "learned"}
    whole, half = (network(small(**settings, **more)) for more in ({}, {"visual__stride": 3}))
    of_whole = whole.visual(features_of(whole)).position[:, :32].view(16, 4, 8)
    of_half = half.visual(features_of(half)).position[:, :6].view(16, 2, 3)
    torch.testing.assert_close(of_whole[:, ::3, ::3], of_half)


def test_features_of_another_size_are_refused():
    model = network(small(visual__levels="p5"))
    with pytest.raises(ValueError, match=r"P5 has \(3, 4\) cells"):
        model.visual([torch.zeros(1, 9, 3, 4)])


def test_an_image_without_tokens_is_refused():
    model = network(small(visual__levels="p5"))
    padding = torch.tensor([[True] * 8, [False] * 8])
    with pytest.raises(ValueError, match="without a visual token"):
        model.encode(features_of(model), padding)


@pytest.mark.parametrize("norm", ["standardize", "layernorm"])
def test_a_folded_token_reads_its_own_cell_at_every_level_and_no_other(norm: str):
    model = network(small(visual__levels="full", visual__fold=True, visual__norm=norm))
    features = [f.requires_grad_() for f in features_of(model)]
    content = model.encode(features).content
    assert content.shape == (2, 16, 8)  # 2 x 4 cells of P5
    content[0, :, 6].square().sum().backward()  # second row, third column: px 32-64, 64-96
    for level, f in enumerate(features):
        assert f.grad is not None
        used, cells = f.grad[0].abs().sum(0) > 0, 4 >> level
        expected = torch.zeros_like(used)
        expected[cells : 2 * cells, 2 * cells : 3 * cells] = True
        assert torch.equal(used, expected)
        assert not f.grad[1].any()


def test_folded_features_are_standardized_channel_by_channel():
    config = small(visual__levels="p4p5", visual__fold=True, visual__norm="standardize")
    moments = [(torch.arange(c) + 1.0, torch.arange(c) * 0.5 + 1) for c in CHANNELS]
    level = VisualEncoder(config, CHANNELS, moments).levels["p5"]
    p4, p5 = (
        (mean + std)[:, None, None].expand(-1, *size)  # one std above the mean everywhere
        for (mean, std), size in zip(moments[1:], ((4, 8), (2, 4)), strict=True)
    )
    f = fold([p4[None], p5[None]]).flatten(2)
    ones = (f - level.get_buffer("mean")[:, None]) / level.get_buffer("std")[:, None]
    torch.testing.assert_close(ones, torch.ones(1, 4 * 7 + 9, 8))


def test_the_neck_looks_one_cell_further_with_each_convolution():
    for n in (0, 1, 2):
        model = network(small(visual__levels="p4p5", visual__neck=n, visual__position="none"))
        for level in model.visual.levels.values():
            assert isinstance(level, Level)
            for layer in level.neck:
                layer.norm = nn.Identity()  # which looks at the whole image
        p4, p5 = (f.requires_grad_() for f in features_of(model))
        model.encode([p4, p5]).content[0, :, 2 * 8 + 4].sum().backward()  # P4, row 2, column 4
        assert p4.grad is not None
        assert p5.grad is not None
        seen = p4.grad[0].abs().sum(0) > 0
        expected = torch.zeros_like(seen)
        expected[2 - min(n, 2) : 3 + n, 4 - n : 5 + n] = True
        assert torch.equal(seen, expected)
        assert not p5.grad.any()
