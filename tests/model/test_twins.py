"""Jobs that differ in decoding alone train once and read what they would have read alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from model import train as training
from model import twins as twins_module
from model.checkpoint import load_checkpoint
from model.cohort import End, Member
from model.config import TrainConfig, settings_of
from model.outcome import Diverged, Interrupted
from model.train import train
from model.twins import train_twins
from model.workload import twinship
from tests.model.tiny import VARIED, Events, Numbers, numbers, run, tiny

TRAINED = VARIED | {"exposure__mode": "teacher_forcing", "exposure__input_noise": 0.0}
DECODED: list[dict[str, Any]] = [
    {},
    {"model__decode_shift": True},
    {"model__decode_y_offset": 1},
    {"decode__choice": "point"},
    {"decode__nms": 20.0},
]


def configs(**changes: Any) -> list[TrainConfig]:
    return [tiny(**{**TRAINED, **one, **changes}) for one in DECODED]


def name(**changes: Any) -> str | None:
    return twinship(settings_of(tiny(**changes)))


def test_twins_differ_in_decoding_alone() -> None:
    assert name() is not None
    assert {name(**one) for one in DECODED} == {name()}
    for change in ({"seed": 1}, {"optim__lr": 1e-5}, {"model__start": "leak"}):
        assert name(**change) != name(), change


def test_who_trains_on_own_tokens_has_no_twin() -> None:
    assert name(exposure__mode="scheduled_sampling") is None


def test_twins_read_to_the_bit_what_they_would_alone(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = configs()
    alone = [run(config, tmp_path / f"solo{i}", cache) for i, config in enumerate(whole)]
    steps: list[int] = []
    moving = training.move

    def counted(job: Any, step: int) -> Any:
        steps.append(step)
        return moving(job, step)

    monkeypatch.setattr(twins_module, "move", counted)
    members = [Member(c, Events(), tmp_path / f"twin{i}") for i, c in enumerate(whole)]
    ends = dict(train_twins(members, cache))
    assert steps == list(range(1, 9))
    assert len({metrics["final/px_error_max"] for metrics, _ in alone}) > 1
    for i, (metrics, events) in enumerate(alone):
        end, log = ends[i], members[i].log
        assert isinstance(end, dict)
        assert numbers(end) == numbers(metrics)
        assert isinstance(log, Events)
        assert [(s, numbers(m), e) for s, m, e in log.lines] == [
            (s, numbers(m), e) for s, m, e in events.lines
        ]
        solo, twin = (
            load_checkpoint(tmp_path / f"{kind}{i}" / "checkpoint.pt") for kind in ("solo", "twin")
        )
        assert solo["settings"] == twin["settings"]
        for key, weight in solo["model"].items():
            assert torch.equal(weight, twin["model"][key]), key


def same(ends: Mapping[int, End], alone: Mapping[int, Numbers]) -> None:
    """Look whether twins ended with the readings of their runs alone."""
    for i, metrics in alone.items():
        end = ends[i]
        assert isinstance(end, dict), end
        assert numbers(end) == numbers(metrics)


def stop_at(step: int) -> Callable[[], bool]:
    calls = iter(range(1000))
    return lambda: next(calls) >= step


def test_twins_that_stopped_apart_come_together_again(tmp_path: Path, cache: Path) -> None:
    whole = configs()
    alone = [run(config, tmp_path / f"solo{i}", cache)[0] for i, config in enumerate(whole)]
    for i, stop in enumerate([5, 2, 5, 0, 8]):  # after the last step there is no more to train
        if stop == 8:
            train(whole[i], Events(), tmp_path / str(i), cache)
            continue
        with pytest.raises(Interrupted):
            train(whole[i], Events(), tmp_path / str(i), cache, stop_at(stop))
    members = [Member(c, Events(), tmp_path / str(i)) for i, c in enumerate(whole)]
    ends = dict(train_twins(members, cache))
    same(ends, dict(enumerate(alone)))


def test_stopped_twins_go_on_where_each_was(tmp_path: Path, cache: Path) -> None:
    whole = configs()[:3]
    alone = [run(config, tmp_path / f"solo{i}", cache)[0] for i, config in enumerate(whole)]
    with pytest.raises(Interrupted):
        train(whole[0], Events(), tmp_path / "0", cache, stop_at(6))
    calls = iter(range(1000))

    def stop() -> bool:
        return next(calls) >= 9  # asked of each before every step: three times

    members = [Member(c, Events(), tmp_path / str(i), stop) for i, c in enumerate(whole)]
    ends = dict(train_twins(members, cache))
    assert all(isinstance(end, Interrupted) for end in ends.values())
    at = [
        load_checkpoint(tmp_path / str(i) / "checkpoint.pt")["progress"]["step"] for i in range(3)
    ]
    assert at == [6, 3, 3]
    members = [Member(c, Events(), tmp_path / str(i)) for i, c in enumerate(whole)]
    ends = dict(train_twins(members, cache))
    same(ends, dict(enumerate(alone)))


def test_one_whose_disk_is_full_leaves_the_others_their_weights(
    tmp_path: Path, cache: Path
) -> None:
    whole = configs()[:3]
    alone = [run(config, tmp_path / f"solo{i}", cache)[0] for i, config in enumerate(whole)]

    def full(step: int, metrics: Mapping[str, float], event: str | None = None) -> None:
        if step == 5:
            raise OSError("disk full")

    members = [Member(c, Events(), tmp_path / str(i)) for i, c in enumerate(whole)]
    members[0] = Member(whole[0], full, tmp_path / "0")  # who moved the weights
    ends = dict(train_twins(members, cache))
    assert isinstance(ends[0], OSError)
    same(ends, {i: alone[i] for i in (1, 2)})


def test_twins_diverge_alike(tmp_path: Path, cache: Path) -> None:
    wild = configs(optim__lr=30.0, optim__clip=None, optim__steps=200, optim__schedule="constant")
    with pytest.raises(Diverged) as alone:
        run(wild[1], tmp_path / "alone", cache)
    members = [Member(c, Events(), tmp_path / str(i)) for i, c in enumerate(wild[:2])]
    ends = dict(train_twins(members, cache))
    for end in ends.values():
        assert isinstance(end, Diverged)
        assert str(end) == str(alone.value)
    last = ends[1]
    assert isinstance(last, Diverged)
    assert numbers(last.metrics) == numbers(alone.value.metrics)
