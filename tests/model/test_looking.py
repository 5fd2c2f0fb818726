"""Uniformity on rows, attention made by hand, and the scale of what is seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.init import stream
from model.lanelm import LaneLM, Memory
from model.probe import looking_readings, uniformity
from tests.model.small import CHANNELS, MemoryBank, config_with, split_of


def test_uniformity_of_one_hot_and_of_uniform_rows() -> None:
    rows = torch.stack([torch.eye(250)[3], torch.full((250,), 1 / 250)])
    even, tokens = uniformity(rows, 250)
    assert even.tolist() == pytest.approx([0, 1], abs=1e-5)
    assert tokens.tolist() == pytest.approx([1, 250], rel=1e-4)


@pytest.mark.parametrize(("n", "expected"), [(250, 0.583), (5250, 0.731)])
def test_looking_at_a_tenth_of_the_tokens(n: int, expected: float) -> None:
    row = torch.zeros(n)
    row[: n // 10] = 10 / n
    even, tokens = uniformity(row, n)
    assert float(even) == pytest.approx(expected, abs=5e-4)
    assert float(tokens) == pytest.approx(n / 10, rel=1e-4)


def test_averaging_weights_before_the_entropy_would_inflate_it() -> None:
    rows = torch.eye(250)[torch.randint(250, (40,), generator=stream(1, "rows"))]
    assert float(uniformity(rows, 250)[0].mean()) == pytest.approx(0, abs=1e-6)
    assert float(uniformity(rows.mean(0), 250)[0]) == pytest.approx(0.656, abs=0.01)


def test_masked_keys_do_not_count() -> None:
    row = torch.tensor([0.25, 0.25, 0.25, 0.25, 0.0, 0.0])
    assert float(uniformity(row, 4)[0]) == pytest.approx(1)
    assert float(uniformity(row, 6)[0]) < 0.8
    assert float(uniformity(torch.ones(1), 1)[0]) == 0


class Looks(LaneLM):
    """Attention made by hand: block 0 looks at one token, block 1 evenly, except where told."""

    elsewhere: Tensor | None = None
    pool: Tensor | None = None

    def encode(self, features: Sequence[Tensor], padding: Tensor | None = None) -> Memory:
        memory = super().encode(features, padding)
        if self.pool is None:
            return memory
        pool = self.pool
        values = memory.selected.values[..., : pool.shape[1]]
        return replace(
            memory, selected=replace(memory.selected, values=values, weights=lambda: pool)
        )

    def look(
        self, memory: Memory, ids_in: Tensor, y_in: Tensor, lane_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        N = memory.tokens.shape[1]
        shape = (*ids_in.shape[:1], 2, *ids_in.shape[1:], N)  # (1, heads, L, T, N)
        one = torch.zeros(shape)
        one[..., 5] = 1
        even = torch.full(shape, 1 / N)
        if self.elsewhere is not None:
            one = torch.where(self.elsewhere[:, None, ..., None], one, even)
        return *self(memory, ids_in, y_in), [one, even]


def test_attention_is_averaged_over_blocks_heads_and_taught_queries(
    memory_bank: MemoryBank,
) -> None:
    config = config_with()
    model, split = Looks(config, CHANNELS), split_of(config, [0, 3])
    read, _ = looking_readings(model, memory_bank, split)
    assert read["uniformity_block0"] == pytest.approx(0, abs=1e-6)
    assert read["uniformity_block1"] == pytest.approx(1)
    assert read["uniformity"] == pytest.approx(0.5)
    assert read["effective_tokens"] == pytest.approx((1 + 24) / 2, rel=1e-4)
    assert "uniformity_slots" not in read
    model.elsewhere = split.targets.point[:1] | split.targets.first_end[:1]
    one_image, _ = looking_readings(model, memory_bank, split.first(1))
    assert one_image["uniformity_block0"] == pytest.approx(0, abs=1e-6)  # no other row counts


def test_pooled_attention_is_read_over_the_original_tokens(memory_bank: MemoryBank) -> None:
    config = config_with()
    model, split = Looks(config, CHANNELS), split_of(config, [0])
    model.pool = torch.full((1, 8, 24), 1 / 24)  # 8 slots, each the mean of all 24 tokens
    read, _ = looking_readings(model, memory_bank, split)
    assert read["uniformity"] == pytest.approx(1)  # even the block that looks at one slot
    assert read["uniformity_slots"] == pytest.approx(0.5)
    assert read["effective_tokens"] == pytest.approx(24, rel=1e-4)
    model.pool = torch.eye(24)[None, :8]  # each slot is one token
    read, _ = looking_readings(model, memory_bank, split)
    assert read["uniformity"] == pytest.approx(0.5 * math.log(8) / math.log(24))


def test_of_the_top_tokens_those_that_are_left_count(memory_bank: MemoryBank) -> None:
    """Even attention over K of 24 tokens is uniform: the others are no keys."""
    config = config_with(visual__select="topk", visual__select_tokens=8)
    read, _ = looking_readings(Looks(config, CHANNELS), memory_bank, split_of(config, [0]))
    assert read["uniformity_block0"] == pytest.approx(0, abs=1e-6)
    assert read["uniformity_block1"] == pytest.approx(1)
    assert read["effective_tokens"] == pytest.approx((1 + 8) / 2, rel=1e-4)


def test_an_untrained_model_looks_evenly(memory_bank: MemoryBank) -> None:
    config = config_with()
    read, _ = looking_readings(LaneLM(config, CHANNELS), memory_bank, split_of(config, [0, 1]))
    assert 0.9 < read["uniformity"] <= 1
    assert 12 < read["effective_tokens"] <= 24


def test_visual_readings(memory_bank: MemoryBank) -> None:
    config = config_with()
    model = LaneLM(config, CHANNELS)
    split = split_of(config, [1, 3])
    _, read = looking_readings(model, memory_bank, split)
    features = memory_bank.levels[2][[1, 3]]
    assert read["feature_mean"] == pytest.approx(float(features.mean()), abs=1e-5)
    assert read["feature_std"] == pytest.approx(float(features.std(correction=0)), rel=1e-5)
    tokens = model.encode([features]).tokens.detach()
    assert read["mean"] == pytest.approx(float(tokens.mean()), abs=1e-5)
    assert read["std"] == pytest.approx(float(tokens.std(correction=0)), rel=1e-5)
