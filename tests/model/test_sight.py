"""Models that see react to another image; models that cannot, do not."""

from __future__ import annotations

import numpy as np
import pytest

from model.lanelm import LaneLM
from model.metrics import px_readings
from model.passes import decode
from model.probe import readings, sight_readings
from tests.model.small import CHANNELS, MemoryBank, config_with, fit, split_of


def test_a_model_that_cannot_see_does_not_react(
    memorising: LaneLM, memory_bank: MemoryBank
) -> None:
    config = memorising.config
    split, donors = split_of(config, [0]), split_of(config, [1, 2, 3])
    read = readings(memorising, memory_bank, split, "final", donors=donors, full=True)
    assert read["final/px_error"] < 3  # and yet
    assert read["final/swap_px"] == 0
    assert read["final/swap_kept"] == 1
    assert read["final/swap_px_labels"] > 20
    assert read["final/swap_px_donor"] == pytest.approx(read["final/swap_px_stay"], abs=3)
    for name in ("swap_loss", "swap_loss_first_token", "blank_loss", "shuffle_loss"):
        assert read[f"final/{name}"] == pytest.approx(0, abs=1e-6)


def test_without_another_image_there_is_no_swap(
    memorising: LaneLM, memory_bank: MemoryBank
) -> None:
    split = split_of(memorising.config, [0])
    for donors in (None, split_of(memorising.config, [])):
        assert set(sight_readings(memorising, memory_bank, split, donors)) == {
            "blank_loss",
            "shuffle_loss",
        }


def test_swapped_lanes_are_compared_image_by_image(seeing: LaneLM, memory_bank: MemoryBank) -> None:
    split = split_of(seeing.config, [0, 1, 2])
    own = decode(seeing, memory_bank, split).lanes
    over = own[[1, 2, 0]]  # a model that sees writes the other image's lanes
    both = np.isfinite(own) & np.isfinite(over)
    expected = np.abs(own - over)[both].mean()
    read = sight_readings(seeing, memory_bank, split)
    assert read["swap_px"] == pytest.approx(expected, rel=1e-6)
    labels = split.truth[[1, 2, 0]]  # what those images really show
    assert read["swap_px_donor"] == px_readings(over, labels)["px_error"]
    assert read["swap_donor_coverage"] == px_readings(over, labels)["coverage"]
    assert read["swap_px_stay"] == px_readings(split.truth, labels)["px_error"]
    assert read["swap_px_donor"] < 0.2 * read["swap_px_stay"]


def test_position_blind_features_survive_a_shuffle(memory_bank: MemoryBank) -> None:
    """Blank takes away what the images differ in; shuffle only where it was."""
    flat = MemoryBank(4)
    flat.levels = [x.mean((2, 3), keepdim=True).expand_as(x) for x in flat.levels]
    config = config_with()
    model, split = LaneLM(config, CHANNELS), split_of(config, [0, 1])
    fit(model, flat, split, 60)
    read = sight_readings(model, flat, split)
    assert read["shuffle_loss"] == pytest.approx(0, abs=1e-6)
    assert read["blank_loss"] > 0.1
