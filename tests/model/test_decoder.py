"""Blocks: causal, cached, alike for every lane, and each setting does what it says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.decoder import Block, Cache, CrossAttention, KeysValues
from model.init import initialise

B, L, T, D, N = 2, 3, 5, 16, 7


def config(**settings: Any) -> ModelConfig:
    return ModelConfig(d_model=D, n_layers=1, n_heads=2, d_ff=24, **settings)


def block_of(aligned: bool = False, seed: int = 0, **settings: Any) -> Block:
    block = Block(config(**settings), aligned).eval()
    initialise(block, seed)
    return block


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def memory_of(block: Block, padding: Tensor | None = None, place: Tensor | None = None):
    return block.cross_attention.read(random(B, D, N), place, padding)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"attention": "qk_norm"},
    {"order": "cross_first"},
    {"norm": "post"},
    {"cross_heads": 4},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_later_row_never_changes_an_earlier_one(settings: dict[str, Any]):
    block = block_of(**settings)
    x = random(B, L, T, D)
    changed = x.clone()
    changed[:, :, 3] += 1
    a, b = (block(rows, memory_of(block)) for rows in (x, changed))
    assert torch.equal(a[:, :, :3], b[:, :, :3])
    assert not torch.allclose(a[:, :, 3:], b[:, :, 3:])


@pytest.mark.parametrize("settings", SETTINGS)
def test_row_by_row_with_a_cache_is_all_at_once(settings: dict[str, Any]):
    block = block_of(**settings)
    x, memory, cache = random(B, L, T, D), memory_of(block), Cache(T)
    rows = [block(x[:, :, t : t + 1], memory, None, cache) for t in range(T)]
    torch.testing.assert_close(torch.cat(rows, 2), block(x, memory), rtol=1e-4, atol=1e-5)


def test_lanes_do_not_read_each_other():
    block = block_of()
    x = random(B, L, T, D)
    alone = block(x[:, 1:2], memory_of(block))
    torch.testing.assert_close(block(x, memory_of(block))[:, 1:2], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS)
def test_padded_tokens_have_no_influence(settings: dict[str, Any]):
    block = block_of(**settings)
    padding = torch.zeros(B, N, dtype=torch.bool)
    padding[:, 4:] = True
    tokens = random(B, D, N)
    other = tokens.clone()
    other[:, :, 4:] = 100.0
    read = block.cross_attention.read
    x = random(B, L, T, D)
    masked = block(x, read(tokens, None, padding))
    assert torch.equal(masked, block(x, read(other, None, padding)))
    shorter = block(x, read(tokens[:, :, :4], None, None))
    torch.testing.assert_close(masked, shorter, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(masked, block(x, read(tokens, None, None)), atol=1e-3)


def test_cross_attention_is_multi_head_attention():
    cross = block_of().cross_attention
    reference = nn.MultiheadAttention(D, 2, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([cross.q.weight, cross.k.weight, cross.v.weight]))
        reference.in_proj_bias.zero_()
        reference.out_proj.load_state_dict(cross.out.state_dict())
    x, tokens = random(B, L, T, D), random(B, D, N)
    weights: list[Tensor] = []
    ours = cross(x, cross.read(tokens, None, None), None, weights)
    theirs, their_weights = reference(
        x.flatten(1, 2), tokens.mT, tokens.mT, average_attn_weights=False
    )
    torch.testing.assert_close(ours.flatten(1, 2), theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights[0].flatten(2, 3), their_weights, rtol=1e-4, atol=1e-5)
    assert weights[0].shape == (B, 2, L, T, N)


def weights_of(cross: CrossAttention, x: Tensor, memory: KeysValues) -> Tensor:
    weights: list[Tensor] = []
    cross(x, memory, None, weights)
    return weights[0]


def test_qk_norm_bounds_scores_by_a_learned_temperature():
    cross = block_of(attention="qk_norm", temperature=3.0).cross_attention
    x = random(B, L, T, D)
    memory = cross.read(random(B, D, N), None, None)
    scores = weights_of(cross, x, memory).log()
    assert (scores.amax(-1) - scores.amin(-1)).max() <= 2 * 3.0  # cosines lie in -1 .. 1
    longer = weights_of(cross, 50 * x, cross.read(50 * random(B, D, N), None, None)).log()
    torch.testing.assert_close(longer, scores, rtol=1e-3, atol=1e-3)
    assert cross.log_temperature is not None
    torch.testing.assert_close(cross.log_temperature.detach(), torch.full((2,), math.log(3.0)))
    cross(x, memory, None).square().sum().backward()
    assert cross.log_temperature.grad is not None
    assert cross.log_temperature.grad.abs().min() > 0


def test_aligned_places_draw_attention_to_each_other():
    cross = block_of(aligned=True).cross_attention
    place = F.normalize(random(D, N, seed=3), dim=0) * 8
    with torch.no_grad():
        for layer in (cross.q, cross.k):
            layer.weight.mul_(0.01)
    memory = cross.read(random(B, D, N), place[None], None)
    weights: list[Tensor] = []
    rows = place.T[:T].expand(B, L, T, D)  # row t is written where token t lies
    cross(random(B, L, T, D), memory, rows, weights)
    assert weights[0].mean((0, 1, 2)).argmax(-1).tolist() == list(range(T))


def test_order_and_norm_are_what_they_say():
    x = random(B, L, T, D)
    for settings in SETTINGS[:1] + SETTINGS[2:4]:
        block = block_of(**settings)
        memory = memory_of(block)
        h = x
        parts = [
            (block.norm_self, block.self_attention),
            (block.norm_cross, lambda rows: block.cross_attention(rows, memory, None)),  # noqa: B023
        ]
        if settings.get("order") == "cross_first":
            parts.reverse()
        for norm, part in [*parts, (block.norm_ff, block.ff)]:
            h = norm(h + part(h)) if settings.get("norm") == "post" else h + part(norm(h))
        torch.testing.assert_close(block(x, memory), h)


def test_dropout_only_while_training():
    block = block_of(dropout=0.5)
    x, memory = random(B, L, T, D), memory_of(block)
    assert torch.equal(block(x, memory), block(x, memory))
    block.train()
    assert not torch.equal(block(x, memory), block(x, memory))
