"""How lanes go on whose beginning is given."""

from __future__ import annotations

import numpy as np

from model.lanelm import LaneLM
from model.metrics import first_points
from model.passes import go_on
from model.probe import prompted_readings
from tests.model.small import MemoryBank, split_of


def test_given_all_its_points_a_lane_is_the_labels_round_trip(
    seeing: LaneLM, memory_bank: MemoryBank
) -> None:
    split = split_of(seeing.config, [0, 1, 2, 3])
    lanes = go_on(seeing, memory_bank, split, k=seeing.config.tokenizer.n_rows)
    trip = seeing.tokenizer.decode(seeing.tokenizer.encode(split.targets.x)).double().numpy()
    known = np.isfinite(trip)
    assert np.array_equal(lanes[known], trip[known])


def test_the_first_point_is_given_and_no_other(seeing: LaneLM, memory_bank: MemoryBank) -> None:
    split = split_of(seeing.config, [0, 1])
    lanes = go_on(seeing, memory_bank, split)
    one = first_points(split.targets.point).numpy()
    assert np.abs(lanes - split.truth)[one].max() <= seeing.tokenizer.bound_px + 1e-3
    read = prompted_readings(seeing, memory_bank, split, "test")
    assert set(read) == {"test/px_error_prompted", "test/coverage_prompted"}
    both = np.isfinite(lanes) & np.isfinite(split.truth)
    error = np.abs(lanes - split.truth)[both].mean()
    assert read["test/px_error_prompted"] <= error + 1e-9  # paired by slot or better
    assert prompted_readings(seeing, memory_bank, split_of(seeing.config, []), "test") == {}
