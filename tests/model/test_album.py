"""Pictures over the steps: few, at evaluations, and without a trace in the numbers."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from model.album import picture_steps
from tests.model.tiny import numbers, run, tiny


@pytest.mark.parametrize(
    ("steps", "every", "times", "drawn"),
    [
        (500, 100, 5, {0, 100, 200, 300, 400}),
        (2000, 100, 5, {0, 400, 800, 1200, 1600}),
        (500, 100, 2, {0, 200}),
        (500, 100, 1, {0}),
        (500, 100, 0, set()),
        (500, 500, 5, {0}),
        (50, 100, 5, {0}),
    ],
)
def test_pictures_are_few_and_spread_evenly(
    steps: int, every: int, times: int, drawn: set[int]
) -> None:
    assert picture_steps(steps, every, times) == drawn


def test_pictures_change_no_number_and_show_the_lanes_as_they_were(tmp_path: Path) -> None:
    read = {}
    for times in (0, 4):
        config = tiny(runtime__pictures=True, runtime__pictures_during=times, evaluation__every=2)
        read[times], _ = run(config, tmp_path / f"{times}", tmp_path / "cache")
    assert numbers(read[0]) == numbers(read[4])
    assert read[4]["cost/picture_seconds"] > 0.0 == read[0]["cost/picture_seconds"]
    names = {path.name for path in (tmp_path / "4" / "pictures").iterdir()}
    only_last = {path.name for path in (tmp_path / "0" / "pictures").iterdir()}
    steps = sorted(int(name.partition("step")[2][:6]) for name in names if "attention" in name)
    assert steps == [0, 2, 4, 6, 8]
    assert {name for name in names if "step000008" in name} == only_last
    first, last = (
        cv2.imread(str(tmp_path / "4" / "pictures" / f"train_0_step{step:06d}.webp"))
        for step in (0, 8)
    )
    assert first is not None
    assert last is not None
    assert np.abs(first.astype(int) - last).mean() > 0.5  # other lanes, other captions


def test_a_picture_during_training_is_that_of_the_same_weights_at_the_end(tmp_path: Path) -> None:
    long, short = (
        tiny(runtime__pictures=True, optim__steps=steps, evaluation__every=4) for steps in (8, 4)
    )
    for config, name in ((long, "long"), (short, "short")):
        run(config, tmp_path / name, tmp_path / "cache")
    for picture in ("train_0", "attention"):
        file = f"{picture}_step000004.webp"
        own, theirs = (tmp_path / name / "pictures" / file for name in ("long", "short"))
        assert own.read_bytes() == theirs.read_bytes()
