"""LaneLM overfits real images: one of each set, and all training images of both readers together.

LANELM_REAL_DATA names a folder with culane/ and tusimple/ roots, a few images each: the lanes of
more images than some dozens are not learned in 300 steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from model.presets import build
from tests.model.tiny import run
from tests.real.test_real_data import _PLACE, _root

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not _PLACE, reason="LANELM_REAL_DATA is not set: no real images to read"),
]

SOUND: dict[str, Any] = {
    "model.preset": "lanelm_128",
    "visual.levels": "p5",
    "optim.steps": 300,
    "optim.lr": 1e-3,
    "optim.schedule": "cosine",
    "optim.clip": 0.5,
    "data.val_images": 0,
    "batch.images": 16,  # every step sees all of them
    "evaluation.every": 300,
    "runtime.log_every": 100,
    "runtime.checkpoint_every": 1000,
    "runtime.pictures": False,
}

Trainer = Callable[..., dict[str, float]]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    cache = tmp_path_factory.mktemp("features")
    done: dict[str, dict[str, float]] = {}

    def train(sets: tuple[str, ...], images: int | str, **settings: Any) -> dict[str, float]:
        data = {"data.roots": [_root(name) for name in sets], "data.train_images": images}
        changes = {name.replace("__", "."): value for name, value in settings.items()}
        config = build(SOUND | data | changes)
        key = repr(config)
        if key not in done:
            torch.set_num_threads(1)
            done[key] = run(config, tmp_path_factory.mktemp("run"), cache)[0]
        return done[key]

    return train


def learned(metrics: dict[str, float]) -> None:
    assert metrics["final/loss"] < 0.1
    assert metrics["final/px_error"] < 2
    assert metrics["final/coverage"] > 0.98
    assert metrics["final/lane_count_error"] == 0


@pytest.mark.parametrize("name", ["culane", "tusimple"])
def test_one_image_is_learned(name: str, train: Trainer) -> None:
    learned(train((name,), 1))


def test_all_training_images_are_learned_together(train: Trainer) -> None:
    metrics = train(("culane", "tusimple"), "all")
    learned(metrics)


def test_attention_that_can_find_its_place_is_sharp_and_plain_attention_is_not(
    train: Trainer,
) -> None:
    """And both look: their lanes move when the images change places."""
    both = ("culane", "tusimple")
    plain = train(both, "all")
    sharp = train(
        both,
        "all",
        visual__position="aligned",
        model__attention="qk_norm",
        model__temperature=17.0,  # 20 starts at .545, which is sharp by construction
    )
    learned(sharp)
    assert sharp["final/uniformity"] < 0.55
    assert sharp["final/uniformity_init"] > 0.6  # brought about by learning
    assert plain["final/uniformity"] > sharp["final/uniformity"] + 0.2
    for metrics in (plain, sharp):
        assert metrics["final/swap_px"] > 0.5 * metrics["final/swap_px_labels"]
