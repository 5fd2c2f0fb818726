"""First values hang on (seed, name) alone, so arms share what they have in common."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from model.lanelm import LaneLM
from tests.model.network import CHANNELS, network, small

BASE = LaneLM(small(), CHANNELS).state_dict()


@pytest.mark.parametrize(
    ("settings", "reshaped"),
    [
        ({"visual__levels": "p5"}, set()),
        ({"tokenizer__mode": "relative_disjoint"}, {"embed_x.weight", "head_x.weight"}),
        ({"visual__position": "aligned", "model__attention": "qk_norm"}, set()),
        ({"visual__select": "pool"}, set()),
        ({"visual__residual": True, "visual__norm": "none"}, set()),
        ({"model__n_layers": 4, "model__order": "cross_first"}, set()),
        ({"tokenizer__n_rows": 9}, {"embed_row.weight", "embed_y.weight", "head_y.weight"}),
    ],
)
def test_arms_share_every_parameter_they_both_have(settings: dict[str, Any], reshaped: set[str]):
    other = network(small(**settings)).state_dict()
    shared = BASE.keys() & other.keys()
    assert len(shared) > 30
    for name in shared - reshaped:
        if BASE[name].shape == other[name].shape:
            assert torch.equal(BASE[name], other[name]), name
        else:
            assert name.removesuffix("bias") + "weight" in reshaped, name


def test_another_seed_draws_other_values():
    other = LaneLM(small(seed=1), CHANNELS).state_dict()
    drawn = [name for name, value in BASE.items() if value.ndim == 2]
    assert len(drawn) > 20
    for name in drawn:
        assert not torch.equal(BASE[name], other[name]), name


def test_building_a_model_leaves_torch_s_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    LaneLM(small(), CHANNELS)
    assert torch.equal(torch.rand(3), expected)


def test_no_two_parameters_are_drawn_alike():
    drawn = [value.flatten()[:8] for value in BASE.values() if value.ndim == 2]
    for i, a in enumerate(drawn):
        assert not any(torch.equal(a, b) for b in drawn[:i])
