"""Runs that end before their last step: diverged, or good enough."""

import dataclasses
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from model.config import TrainConfig
from model.loss import compute_loss
from model.outcome import Diverged, Enough
from model.train import train
from tests.model.tiny import Events, numbers, run, tiny


def test_a_loss_that_is_not_finite_ends_the_run(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(1000))

    def poisoned(*args: Any, **kwargs: Any) -> Any:
        losses = compute_loss(*args, **kwargs)
        bad = math.nan if next(calls) == 5 else 1.0
        return dataclasses.replace(losses, objective=losses.objective * bad)

    monkeypatch.setattr("model.train.compute_loss", poisoned)
    for every in (1, 4):  # seen later, told right
        calls = iter(range(1000))
        with pytest.raises(Diverged) as caught:
            run(tiny(runtime__log_every=every), tmp_path / str(every), cache)
        assert caught.value.step == 6
        assert "step 6: objective is nan" in str(caught.value)
        assert all(math.isfinite(value) for value in caught.value.metrics.values())
        assert "train/loss" in caught.value.metrics
        assert "attention/uniformity" in caught.value.metrics


def test_endless_growth_ends_the_run(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(Diverged, match="running objective") as caught:
        run(tiny(optim__lr=30.0, optim__clip=None, optim__steps=200), tmp_path, cache)
    assert caught.value.step < 200
    assert caught.value.metrics["train/objective"] > 30


def test_a_high_but_bounded_loss_is_no_divergence(tmp_path: Path, cache: Path) -> None:
    metrics, _ = run(tiny(optim__lr=0.05, optim__steps=30), tmp_path, cache)
    assert math.isfinite(metrics["train/loss"])


def test_diverged_survives_the_way_out_of_a_worker() -> None:
    error = pickle.loads(pickle.dumps(Diverged(7, {"train/loss": 2.0}, "objective is nan")))
    assert (error.step, error.metrics) == (7, {"train/loss": 2.0})
    assert str(error) == "diverged at step 7: objective is nan"


def ended(
    folder: Path, cache: Path, config: TrainConfig, enough: Enough | None = None
) -> dict[str, float]:
    return train(config, Events(), folder, cache, enough=enough)


def test_a_run_ends_early_only_when_all_its_final_readings_say_so(
    tmp_path: Path, cache: Path
) -> None:
    asked: list[tuple[bool, set[str]]] = []

    def never(metrics: Mapping[str, float], *, whole: bool) -> bool:
        asked.append((whole, set(metrics)))
        return not whole

    whole = ended(tmp_path / "whole", cache, tiny())
    assert numbers(ended(tmp_path / "asked", cache, tiny(), enough=never)) == numbers(whole)
    assert [is_whole for is_whole, _ in asked] == [False, True]  # once, after step 4 of 8
    (_, cheap), (_, full) = asked
    assert {"final/coverage", "final/uniformity"} <= cheap
    assert {"final/loss", "final/uniformity_init"} <= full
    assert "final/loss" not in cheap


def test_a_run_that_ended_early_says_where_and_can_be_gone_on_with(
    tmp_path: Path, cache: Path
) -> None:
    def always(metrics: Mapping[str, float], *, whole: bool) -> bool:
        return True

    early = ended(tmp_path / "early", cache, tiny(), enough=always)
    assert early["final/step"] == 4
    short = tiny(optim__steps=4)
    same = {"final/loss", "final/uniformity", "final/coverage", "val/coverage", "val/f1"}
    wanted = ended(tmp_path / "short", cache, short)
    assert {n: early[n] for n in same} == {n: wanted[n] for n in same}
    # killed after its checkpoint: asked again there, it ends there again
    assert numbers(ended(tmp_path / "early", cache, tiny(), enough=always)) == numbers(early)
    whole = ended(tmp_path / "whole", cache, tiny())
    assert numbers(ended(tmp_path / "early", cache, tiny())) == numbers(whole)
    assert "final/step" not in whole


def test_a_run_that_ended_before_any_validation_reads_the_validation_images(
    tmp_path: Path, cache: Path
) -> None:
    early = ended(
        tmp_path, cache, tiny(evaluation__val_every=500), enough=lambda metrics, whole: True
    )
    assert early["final/step"] == early["best/step"] == 4
    assert early["best/px_error"] == early["val/px_error"]
