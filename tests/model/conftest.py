"""Models that several test files read, fitted once, and runs that others are compared with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.lanelm import LaneLM
from tests.model.small import CHANNELS, Blind, MemoryBank, config_with, fit, split_of
from tests.model.tiny import VARIED, Events, Numbers, run, tiny


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


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder for the features of tiny jobs."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> tuple[Numbers, Events]:
    """Give what a tiny job reads, undisturbed."""
    return run(tiny(), tmp_path_factory.mktemp("plain"), cache)


@pytest.fixture(scope="session")
def varied(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> tuple[Numbers, Events]:
    """Give what a tiny job of many parts reads, undisturbed."""
    return run(tiny(**VARIED), tmp_path_factory.mktemp("varied"), cache)
