"""Decoding that goes on from keypoints someone else found."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.init import stream
from model.lanelm import LaneLM
from model.metrics import px_readings
from model.prompt import FREE, first_keypoints, prompt_of
from model.tokenizer import make_tokenizer
from tests.model.small import CHANNELS, MemoryBank, config_with, fit, split_of

NAN = float("nan")


def test_blanks_before_the_first_keypoint_and_free_after_the_last() -> None:
    tokenizer = make_tokenizer(config_with().tokenizer, 256)  # 64 bins
    x = torch.full((1, 3, 12), NAN)
    x[0, 0, 2:9], x[0, 1, 0:9] = 100.0, 30.0
    prompt = prompt_of(tokenizer, first_keypoints(x, 2))
    at, left = tokenizer.bins(torch.tensor([100.0, 30.0])).tolist()
    assert prompt[0].tolist() == [
        [0, 0, at, at],
        [left, left, FREE, FREE],
        [FREE, FREE, FREE, FREE],  # whether there is a third lane is the model's to say
    ]
    assert prompt_of(tokenizer, first_keypoints(x, 0)).shape == (1, 3, 0)


def test_rows_between_two_keypoints_are_free() -> None:
    tokenizer = make_tokenizer(config_with().tokenizer, 256)
    x = torch.full((1, 1, 12), NAN)
    x[0, 0, 1], x[0, 0, 4] = 100.0, 130.0
    first, later = tokenizer.bins(torch.tensor([100.0, 130.0])).tolist()
    assert prompt_of(tokenizer, x)[0, 0].tolist() == [0, first, FREE, FREE, later]


@pytest.fixture(scope="module", params=["absolute", "relative_disjoint"])
def half_blind(request: pytest.FixtureRequest, memory_bank: MemoryBank) -> LaneLM:
    """A model fitted to images 0 and 2 alone; of image 1 it knows nothing."""
    config = config_with(tokenizer__mode=request.param)
    model = LaneLM(config, CHANNELS)
    fit(model, memory_bank, split_of(config, [0, 2]), 120)
    return model.eval()


def px_of(model: LaneLM, bank: MemoryBank, place: int, x: Tensor) -> float:
    split = split_of(model.config, [place])
    memory = model.encode(bank.batch([place], model.levels))
    prompt = prompt_of(model.tokenizer, x)
    ids = model.generate(memory, prompt=prompt)
    given = prompt != FREE
    assert torch.equal(ids[..., : prompt.shape[-1]][given], prompt[given])
    return px_readings(model.tokenizer.decode(ids).double().numpy(), split.truth)["px_error"]


def test_keypoints_bring_lanes_home(half_blind: LaneLM, memory_bank: MemoryBank) -> None:
    """On an image the model does not know; and +-5 px of noise costs no more than about that."""
    model, truth = half_blind, split_of(half_blind.config, [1]).targets.x
    px = [px_of(model, memory_bank, 1, first_keypoints(truth, k)) for k in (0, 1, 4)]
    assert px[2] < px[0]
    assert px[1] < px[0]
    noise = 10 * torch.rand(truth.shape, generator=stream(0, "noise")) - 5
    noisy = px_of(model, memory_bank, 1, first_keypoints(truth + noise, 4))
    assert noisy < px[0]
    assert noisy < px[2] + 6


def test_keypoints_with_a_gap_are_joined(half_blind: LaneLM, memory_bank: MemoryBank) -> None:
    model, split = half_blind, split_of(half_blind.config, [0])
    sparse = split.targets.x.clone()
    sparse[..., 1::3] = NAN
    prompt = prompt_of(model.tokenizer, sparse)
    ids = model.generate(model.encode(memory_bank.batch([0], model.levels)), prompt=prompt)
    own = px_readings(model.tokenizer.decode(ids).double().numpy(), split.truth)
    assert own["coverage"] > 0.9


def test_true_keypoints_leave_what_is_known_alone(
    half_blind: LaneLM, memory_bank: MemoryBank
) -> None:
    truth = split_of(half_blind.config, [0]).targets.x
    assert px_of(half_blind, memory_bank, 0, first_keypoints(truth, 3)) < 3
