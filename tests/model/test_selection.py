"""Pooled and chosen tokens: what they are made of, and that the choice can be learned."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from model.lanelm import Memory
from model.selection import Pool, TopK, make_selection
from tests.model.network import features_of, network, small


def selecting(kind: str, **settings: Any):
    config = small(visual__levels="p4p5", visual__select=kind, visual__select_tokens=6, **settings)
    model = network(config)
    tokens = model.visual(features_of(model))
    return model, tokens


def test_nothing_is_selected_by_default():
    assert make_selection(small()) is None


@pytest.mark.parametrize("kind", ["pool", "topk"])
def test_weights_say_what_tokens_are_made_of(kind: str):
    model, tokens = selecting(kind, visual__position="aligned")
    assert isinstance(model.selection, Pool | TopK)
    selected = model.selection(tokens)
    assert selected.weights is not None
    weights = selected.weights()
    assert weights.shape == (2, 6, 40)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 6))
    assert selected.place is not None
    assert tokens.place is not None
    places = (weights @ tokens.place.T).mT
    torch.testing.assert_close(selected.place.expand(2, -1, -1), places, rtol=1e-4, atol=1e-5)
    if kind == "pool":
        pooled = (weights @ tokens.values().mT).mT
        torch.testing.assert_close(selected.values, pooled, rtol=1e-4, atol=1e-5)


def test_pool_starts_as_an_even_grid():
    """At first a slot reads the cells around its own point, and slots differ."""
    config = small(
        data__width=800, data__height=320, visual__levels="p5", visual__select="pool",
        visual__select_tokens=10, model__d_model=64,
    )  # fmt: skip
    model = network(config)
    memory = model.encode(features_of(model, 1))
    assert memory.pool_weights is not None
    best = memory.pool_weights[0].argmax(-1)
    rows, columns = (best // 25).tolist(), (best % 25).tolist()
    assert len(set(zip(rows, columns, strict=True))) == 10
    assert {row // 5 for row in rows} == {0, 1}
    assert max(columns) > 20
    assert min(columns) < 5


def test_positions_flow_into_pooled_tokens():
    model, tokens = selecting("pool", visual__position="sinusoidal")
    assert isinstance(model.selection, Pool)
    blank = tokens.__class__(
        torch.zeros_like(tokens.content), tokens.position, None, tokens.padding
    )
    values = model.selection(blank).values.detach()
    assert float((values[:, :, 0] - values[:, :, -1]).abs().max()) > 0.1


def test_top_k_keeps_the_highest_scores():
    model, tokens = selecting("topk")
    assert isinstance(model.selection, TopK)
    with torch.no_grad():
        model.selection.score.weight.zero_()
        model.selection.score.weight[0, 0] = 1.0  # score = first channel
    content = torch.zeros_like(tokens.content)
    content[0, 0, [3, 9, 11, 20, 30, 39]] = 50.0
    content[1, 0, 10:16] = 50.0
    marked = tokens.__class__(content, tokens.position, None, None)
    weights = model.selection(marked).weights
    assert weights is not None
    kept = weights().argmax(-1).tolist()
    assert kept == [[3, 9, 11, 20, 30, 39], [10, 11, 12, 13, 14, 15]]


@pytest.mark.parametrize("kind", ["pool", "topk"])
def test_the_choice_is_learned(kind: str):
    model, tokens = selecting(kind)
    assert isinstance(model.selection, Pool | TopK)
    model.selection(tokens).values.square().sum().backward()
    for name, parameter in model.selection.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", ["pool", "topk"])
def test_padded_cells_are_not_selected(kind: str):
    model, _ = selecting(kind)
    features = features_of(model)
    padding = torch.zeros(2, 40, dtype=torch.bool)
    padding[0, 5:] = True  # five cells left: top-k keeps five
    memory = model.encode(features, padding)
    assert memory.pool_weights is not None
    if kind == "pool":
        assert memory.pool_weights[0, :, 5:].abs().max() == 0
        assert memory.padding is None
    else:
        assert memory.padding is not None
        assert (~memory.padding).sum(1).tolist() == [5, 6]


def test_attention_is_laid_out_over_the_cells():
    model, _ = selecting("pool")
    memory = model.encode(features_of(model))
    assert isinstance(memory, Memory)
    weights = torch.rand(2, 3, 6).softmax(-1)
    maps = memory.maps(0, weights)
    assert [tuple(m.shape) for m in maps] == [(2, 3, 4, 8), (2, 3, 2, 4)]
    total = maps[0].sum((-1, -2)) + maps[1].sum((-1, -2))
    torch.testing.assert_close(total, torch.ones(2, 3))
