"""What a job takes: measured on a short one of its shape, told apart by settings alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from model import cost
from model.cost import measure
from model.workload import FREE, evaluations, shape_of
from tests.model.fake_roots import make_culane_root
from tests.model.tiny import tiny


@pytest.mark.parametrize(
    "changes",
    [
        {"optim__lr": 0.5, "optim__steps": 500, "seed": 3},
        {"optim__schedule": "cosine", "optim__warmup": 2},
        {"loss__y_weight": 0.0},
        {"evaluation__every": 7, "runtime__checkpoint_every": 7},
    ],
)
def test_rates_weights_and_counts_are_of_one_shape(changes: dict[str, object]) -> None:
    assert shape_of(tiny(**changes)) == shape_of(tiny())


@pytest.mark.parametrize(
    "changes",
    [
        {"model__d_model": 32},
        {"visual__levels": "full"},
        {"tokenizer__n_rows": 9},
        {"data__train_images": 3},
        {"model__dropout": 0.1},
        {"exposure__mode": "scheduled_sampling"},
        {"batch__accumulate": 2},
        {"runtime__device": "cuda"},
    ],
)
def test_what_changes_the_work_is_another_shape(changes: dict[str, object]) -> None:
    assert shape_of(tiny(**changes)) != shape_of(tiny())


def test_every_free_setting_is_a_setting() -> None:
    from model.presets import known_paths

    assert known_paths() >= FREE


@pytest.mark.parametrize(("steps", "every", "n"), [(8, 4, 2), (9, 4, 3), (3, 4, 1)])
def test_the_last_step_is_always_evaluated(steps: int, every: int, n: int) -> None:
    assert evaluations(tiny(optim__steps=steps, evaluation__every=every)) == n


def test_a_short_job_is_trained_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, train = [], cost.train

    def spy(config, *arguments):
        trained.append(config)
        return train(config, *arguments)

    monkeypatch.setattr(cost, "train", spy)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    whole = tiny(optim__steps=10_000, optim__lr=1e6, data__train_images=500, data__val_images=100)
    found = measure(whole, tmp_path / "cache")
    assert found.step_seconds > 0
    assert found.evaluation_seconds > 0
    assert found.other_seconds > 0
    assert found.memory_mb > 10
    for config in trained:
        assert config.optim.steps <= cost.MOST
        assert config.data.train_images == cost.TRAINED
        assert config.data.val_images == cost.HELD_OUT
        assert shape_of(config) == shape_of(
            tiny(data__train_images=cost.TRAINED, data__val_images=cost.HELD_OUT)
        )
    assert not list((tmp_path / "temporary").glob("lanelm-*"))


def test_readings_are_scaled_by_the_images_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 shown and 104 held-out images stand for the 8 and 8 that are read: 7.5 times as many."""
    ticks = iter(range(10_000))
    monkeypatch.setattr(cost._Clock, "now", lambda self: float(next(ticks)))
    few = measure(tiny(data__train_images=8, data__val_images=8), tmp_path)
    many = measure(tiny(data__train_images=500, data__val_images=104), tmp_path)
    assert few.step_seconds == many.step_seconds == 1.0
    assert many.evaluation_seconds == pytest.approx(7.5 * few.evaluation_seconds)


@pytest.mark.parametrize("mirror", [False, True])
def test_all_images_of_a_small_root_are_fewer_than_a_short_job_asks_for(
    tmp_path: Path, mirror: bool
) -> None:
    """Mirror images, of which there are as many again, are none of them."""
    root = make_culane_root(tmp_path / "root", n_train=3, n_test=2)
    images = dict.fromkeys(("data__train_images", "data__test_images"), "all")
    whole = tiny(data__roots=[str(root)], data__val_images=0, data__mirror=mirror, **images)
    found = measure(whole, tmp_path / "cache")
    assert found.step_seconds > 0
