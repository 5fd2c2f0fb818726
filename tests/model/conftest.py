"""Models that several test files read; fitted once."""

from __future__ import annotations

import pytest
import torch

from model.lanelm import LaneLM
from tests.model.small import CHANNELS, Blind, MemoryBank, config_with, fit, split_of


@pytest.fixture(scope="session")
def memory_bank() -> MemoryBank:
    torch.set_num_threads(1)
    return MemoryBank(4)


@pytest.fixture(scope="session")
def seeing(memory_bank: MemoryBank) -> LaneLM:
    """A model fitted to three images, which it must tell apart."""
    config = config_with()
    model = LaneLM(config, CHANNELS)
    fit(model, memory_bank, split_of(config, [0, 1, 2]), 120)
    return model


@pytest.fixture(scope="session")
def memorising(memory_bank: MemoryBank) -> LaneLM:
    """A model fitted to one image without seeing it."""
    config = config_with()
    model = Blind(config, CHANNELS)
    fit(model, memory_bank, split_of(config, [0]), 80)
    return model
