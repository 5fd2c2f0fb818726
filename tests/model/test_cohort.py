"""Jobs that train as one stacked model end as they would alone."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from model.cohort import End, Member, kinship, train_cohort
from model.config import TrainConfig
from model.outcome import Diverged, Interrupted
from model.stacked import Stack
from model.train import train
from tests.model.network import features_of, network, small, targets_for
from tests.model.tiny import Events, tiny

TOLERANCE = 2e-3
"""Float rounding that some steps of training have passed through, relative or absolute."""


def together(configs: list[TrainConfig], folder: Path, cache: Path, **options: Any) -> list[End]:
    """Train configs as one cohort, each in its own folder; their ends in order."""
    members = [
        Member(config, Events(), folder / f"fused{i}", **options.get(str(i), {}))
        for i, config in enumerate(configs)
    ]
    ends = dict(train_cohort(members, cache))
    return [ends[i] for i in range(len(configs))]


def alone(config: TrainConfig, folder: Path, cache: Path) -> dict[str, float]:
    return train(config, Events(), folder, cache)


def assert_alike(fused: End, solo: dict[str, float]) -> None:
    assert isinstance(fused, dict), fused
    names = [name for name in solo if not name.startswith("cost/")]
    assert set(names) == {name for name in fused if not name.startswith("cost/")}
    for name in names:
        assert math.isclose(fused[name], solo[name], rel_tol=TOLERANCE, abs_tol=TOLERANCE), name


def long(shape: dict[str, Any]) -> Any:
    return pytest.param(shape, marks=pytest.mark.long)


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"model__dropout": 0.2, "batch__accumulate": 2, "tokenizer__mode": "relative_disjoint"},
        long({"visual__levels": "full", "visual__residual": True, "batch__images": 2}),
        long({"model__attention": "qk_norm", "visual__position": "aligned"}),
        long({"model__norm": "post", "model__order": "cross_first", "visual__norm": "standardize"}),
        long({"visual__levels": "p4p5", "model__memory": "per_level", "model__n_layers": 2}),
    ],
    ids=["p5", "dropout", "full", "aligned", "post", "per_level"],
)
def test_members_agree_with_solo_runs(shape: dict[str, Any], tmp_path: Path, cache: Path) -> None:
    configs = [
        tiny(**shape, seed=0),
        tiny(**shape, seed=1, optim__lr=1e-3, optim__schedule="cosine"),
        tiny(**shape, seed=2, optim__clip=0.1, loss__y_weight=0.0, optim__steps=5),
        tiny(
            **shape,
            seed=3,
            loss__y_schedule="staged",
            loss__y_threshold=100.0,
            loss__y_patience=2,
            loss__y_hold=2,
            loss__y_ramp=2,
            exposure__input_noise=0.5,
        ),
    ]
    assert len({kinship(config) for config in configs}) == 1
    for i, end in enumerate(together(configs, tmp_path, cache)):
        assert_alike(end, alone(configs[i], tmp_path / f"solo{i}", cache))


def test_a_members_divergence_leaves_the_others_untouched(tmp_path: Path, cache: Path) -> None:
    healthy = [tiny(seed=0), tiny(seed=1)]
    lost = tiny(seed=2, optim__lr=1e4, optim__clip=None)
    ends = together([healthy[0], lost, healthy[1]], tmp_path, cache)
    assert isinstance(ends[1], Diverged)
    for end, config, name in zip(ends[::2], healthy, "ab", strict=True):
        assert_alike(end, alone(config, tmp_path / name, cache))


def test_a_member_that_diverges_when_all_are_stopped_takes_nobody_with_it(
    tmp_path: Path, cache: Path
) -> None:
    """Its last steps are looked at when it is asked to keep a checkpoint."""
    asked: list[None] = []

    def stop() -> bool:
        asked.append(None)
        return len(asked) > 4

    lost = tiny(seed=0, optim__lr=1e4, optim__clip=None, runtime__log_every=1000)
    first, second = together(
        [lost, tiny(seed=1)], tmp_path, cache, **{"0": {"stop": stop}, "1": {"stop": stop}}
    )
    assert isinstance(first, Diverged)
    assert isinstance(second, Interrupted)
    assert (tmp_path / "fused1" / "checkpoint.pt").exists()


def test_members_share_the_time_they_took(tmp_path: Path, cache: Path) -> None:
    begin = time.perf_counter()
    ends = together([tiny(seed=i, optim__steps=6) for i in range(4)], tmp_path, cache)
    elapsed = time.perf_counter() - begin
    booked = []
    for end in ends:
        assert isinstance(end, dict)
        assert "cost/peak_memory_mb" not in end  # the process holds all four
        booked.append(end["cost/seconds"])
    assert sum(booked) <= elapsed


def test_a_member_that_is_stopped_goes_on_alone_or_in_another_cohort(
    tmp_path: Path, cache: Path
) -> None:
    configs = [tiny(seed=0), tiny(seed=1)]
    asked: list[None] = []

    def stop() -> bool:
        asked.append(None)
        return len(asked) > 4

    first, second = together(configs, tmp_path, cache, **{"0": {"stop": stop}})
    assert isinstance(first, Interrupted)
    solo = alone(configs[0], tmp_path / "solo", cache)
    assert_alike(second, alone(configs[1], tmp_path / "solo1", cache))
    third = tiny(seed=2)
    again = [
        Member(configs[0], Events(), tmp_path / "fused0"),
        Member(third, Events(), tmp_path / "third"),
    ]
    ends = dict(train_cohort(again, cache))
    assert_alike(ends[0], solo)
    assert_alike(ends[1], alone(third, tmp_path / "solo2", cache))


def test_a_checkpoint_of_a_member_is_no_larger_than_a_solo_one(tmp_path: Path, cache: Path) -> None:
    together([tiny(seed=i, optim__steps=3) for i in range(3)], tmp_path, cache)
    alone(tiny(seed=0, optim__steps=3), tmp_path / "solo", cache)
    fused, solo = (
        (tmp_path / name / "checkpoint.pt").stat().st_size for name in ("fused0", "solo")
    )
    assert fused < 1.05 * solo


def test_gradients_of_a_stack_are_those_of_its_members() -> None:
    configs = [small(seed=seed) for seed in range(3)]
    models = [network(config).train() for config in configs]
    targets = targets_for(configs[0])
    ids_in, y_in = models[0].shift(targets.ids)
    features = [features_of(model, seed=i) for i, model in enumerate(models)]
    wanted = []
    for model, own in zip(models, features, strict=True):
        logits_x, logits_y = model(model.encode(own), ids_in, y_in)
        (logits_x.square().sum() + logits_y.square().sum()).backward()
        wanted.append({name: p.grad for name, p in model.named_parameters()})
        model.zero_grad()
    stack = Stack(models)
    side_by_side = [torch.cat(levels) for levels in zip(*features, strict=True)]
    logits_x, logits_y = stack(side_by_side, ids_in.repeat(3, 1, 1), y_in.repeat(3, 1, 1))
    (logits_x.square().sum() + logits_y.square().sum()).backward()
    stack.hand_out_gradients([(), (), ()])
    for model, gradients in zip(models, wanted, strict=True):
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            size = float(
                gradients[name].abs().max()
            )  # small elements are differences of large ones
            torch.testing.assert_close(
                parameter.grad, gradients[name], rtol=1e-3, atol=1e-5 * max(size, 10.0)
            )


def test_what_changes_a_shape_or_needs_passes_of_its_own_is_no_kin() -> None:
    base = kinship(tiny())
    assert base is not None
    assert kinship(tiny(seed=7, optim__lr=1.0, loss__label_smoothing=0.1)) == base
    assert kinship(tiny(model__d_ff=48)) not in (base, None)
    assert kinship(tiny(data__train_images=4)) not in (base, None)
    assert kinship(tiny(exposure__mode="rollout")) is None
    assert kinship(tiny(loss__entropy_penalty=0.1)) is None
    assert kinship(tiny(visual__select="pool", visual__select_tokens=4)) is None
    assert kinship(tiny(visual__position="learned")) is None
