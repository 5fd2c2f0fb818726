import math
from pathlib import Path
from typing import Any

import pytest
import torch

from model import job as job_module
from model.checkpoint import load_checkpoint
from model.conclude import reset_peak_memory
from model.config import TrainConfig
from model.init import stream
from model.loss import YWeight
from model.metrics import loss_trend
from tests.model.tiny import VARIED, Events, Numbers, numbers, run, tiny

AGREED = [
    "final/loss",
    "final/objective",
    "final/loss_y",
    "final/uniformity",
    "final/uniformity_init",
    "final/coverage",
    "final/lane_count_error",
    "val/coverage",
    "val/f1",
    "best/coverage",
    "best/f1",
    "floor/px_error",
    "floor/px_error_max",
    "train/loss",
    "attention/uniformity",
    "visual/std",
    "cost/seconds",
    "cost/steps_per_second",
    "cost/peak_memory_mb",
]


def test_a_run_logs_and_returns_what_is_agreed(plain: tuple[Numbers, Events]) -> None:
    metrics, events = plain
    for name in ("loss", "loss_x", "loss_y", "objective", "lr", "grad_norm", "clipped_share"):
        assert list(events.of(f"train/{name}")) == list(range(1, 9)), name
    assert set(events.of("train/y_weight").values()) == {0.3}
    for name in ("attention/uniformity", "attention/effective_tokens", "visual/mean", "visual/std"):
        assert list(events.of(name)) == [0, 4, 8], name
    assert list(events.of("val/lane_count_error")) == [4, 8]
    for name in AGREED:
        assert name in metrics, name
    assert metrics["final/uniformity_init"] == events.of("attention/uniformity")[0]
    assert metrics["attention/uniformity"] == pytest.approx(metrics["final/uniformity"], rel=1e-5)
    assert all(math.isfinite(value) for value in metrics.values())
    assert events.lines[-1][0] == 8


def test_two_undisturbed_runs_differ_in_cost_alone(
    tmp_path: Path, cache: Path, varied: tuple[Numbers, Events]
) -> None:
    first, log = varied
    second, again = run(tiny(**VARIED), tmp_path, cache)
    assert numbers(first) == numbers(second)
    assert [(s, numbers(m), e) for s, m, e in log.lines] == [
        (s, numbers(m), e) for s, m, e in again.lines
    ]


def test_the_seed_makes_another_run(
    tmp_path: Path, cache: Path, plain: tuple[Numbers, Events]
) -> None:
    other, _ = run(tiny(seed=1), tmp_path, cache)
    assert plain[0]["train/loss"] != other["train/loss"]


def test_how_often_it_logs_and_saves_changes_no_number(
    tmp_path: Path, cache: Path, varied: tuple[Numbers, Events]
) -> None:
    rarely = tiny(**VARIED, runtime__log_every=5, runtime__checkpoint_every=100)
    assert numbers(run(rarely, tmp_path, cache)[0]) == numbers(varied[0])


@pytest.mark.parametrize("lanes", [None, 5])
def test_accumulation_is_the_large_batch(tmp_path: Path, cache: Path, lanes: int | None) -> None:
    def losses(images: int, accumulate: int) -> tuple[list[float], torch.Tensor]:
        config = tiny(
            data__train_images=4,
            optim__steps=5,
            evaluation__every=5,
            batch__images=images,
            batch__accumulate=accumulate,
            loss__ends_weight=0.3,
        )
        folder = tmp_path / f"{images}x{accumulate}"
        _, events = run(config, folder, cache)
        weights = load_checkpoint(folder / "checkpoint.pt")["model"]["head_x.weight"]
        return list(events.of("train/objective").values()), weights

    large, small = losses(4, 1), losses(2, 2)
    assert small[0] == pytest.approx(large[0], rel=1e-5)
    assert torch.allclose(small[1], large[1], atol=1e-5)
    assert losses(1, 4)[0] == pytest.approx(large[0], rel=1e-5)


def test_y_stages_are_told_and_a_stage_never_reached_too(tmp_path: Path, cache: Path) -> None:
    staged = {
        "loss__y_schedule": "staged",
        "loss__y_patience": 2,
        "loss__y_hold": 2,
        "loss__y_ramp": 2,
    }
    metrics, events = run(tiny(**staged, loss__y_threshold=50.0), tmp_path / "a", cache)
    assert [(step, event[:9]) for step, event in events.events] == [
        (2, "y stage 2"),
        (4, "y stage 3"),
    ]
    weights = [events.of("train/y_weight")[step] for step in range(1, 9)]
    assert weights == pytest.approx([0, 0, 0.1, 0.1, 0.2, 0.3, 0.3, 0.3])
    assert metrics["train/y_stage"] == 3
    metrics, events = run(tiny(**staged, loss__y_threshold=1e-6), tmp_path / "b", cache)
    assert metrics["train/y_stage"] == 1
    assert events.events[-1][0] == 8
    assert "never reached" in events.events[-1][1]


@pytest.mark.parametrize("soft", [{}, {"loss__soft_bins": 2.0}, {"loss__label_smoothing": 0.2}])
def test_the_first_y_stage_waits_for_the_loss_of_hard_targets(
    soft: dict[str, float], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A softened target costs its own entropy at best, over any threshold that one would set."""
    seen = []
    monkeypatch.setattr(YWeight, "observe", lambda own, step, loss: seen.append(loss))
    weights = {"loss__ends_weight": 0.1}  # what the objective's x part weighs otherwise
    config = tiny(loss__y_schedule="staged", optim__steps=2, **weights, **soft)
    _, events = run(config, tmp_path, cache)
    name = "train/loss" if soft else "train/loss_x"
    assert seen == list(events.of(name).values())
    assert events.of("train/loss") != events.of("train/loss_x")


def test_best_is_chosen_by_validation_px_not_by_training_loss(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = job_module.held_out_readings, []
    px = iter([9.0, 3.0, 6.0, 7.0])

    def scripted(
        model: Any, material: Any, prefix: Any, scored: Any, known: Any
    ) -> dict[str, float]:
        seen.append({name: w.clone() for name, w in model.state_dict().items()})
        px_now = {"val/px_error": next(px), "val/coverage": 1.0}
        return real(model, material, prefix, lambda _: scored(px_now)) | px_now

    monkeypatch.setattr(job_module, "held_out_readings", scripted)
    metrics, events = run(tiny(evaluation__every=2), tmp_path, cache)
    assert metrics["best/step"] == 4
    assert [step for step, read, _ in events.lines if "val/f1" in read and step < 8] == [2, 4]
    assert {"best/f1", "val/f1"} <= set(metrics)  # of the best and of the last weights
    kept = load_checkpoint(tmp_path / "checkpoint.pt")
    assert kept["progress"]["best_step"] == 4
    for name, weight in kept["progress"]["best_weights"].items():
        assert torch.equal(weight, seen[1][name])
    assert torch.equal(kept["model"]["head_x.weight"], seen[3]["head_x.weight"])
    assert (metrics["best/px_error"], metrics["val/px_error"]) == (3.0, 7.0)


def test_few_rows_well_met_are_not_best() -> None:
    score = job_module._score
    assert score({"val/px_error": 4.0, "val/coverage": 1.0}) < score(
        {"val/px_error": 1.0, "val/coverage": 0.1}
    )
    assert score({"val/coverage": 0.0}) == math.inf


def test_without_validation_images_there_are_no_such_readings(tmp_path: Path, cache: Path) -> None:
    metrics, events = run(tiny(data__val_images=0), tmp_path, cache)
    names = {*metrics, *(name for _, m, _ in events.lines for name in m)}
    assert not [name for name in names if name.startswith(("val/", "best/", "test/"))]
    assert "final/loss" in metrics


def test_test_images_are_read_once_at_the_end(tmp_path: Path, cache: Path) -> None:
    metrics, events = run(tiny(data__test_images=1), tmp_path, cache)
    assert "test/coverage" in metrics
    assert list(events.of("test/coverage")) == [8]


def test_evaluated_training_images_are_bounded(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = job_module.readings

    def counted(model: Any, bank: Any, split: Any, prefix: str, **options: Any) -> Any:
        sizes.append(len(split)) if prefix == "train" else None
        return real(model, bank, split, prefix, **options)

    monkeypatch.setattr(job_module, "readings", counted)
    run(tiny(data__train_images=5, evaluation__train_images=2), tmp_path, cache)
    assert set(sizes) == {2}


@pytest.mark.parametrize(
    "changes",
    [
        {"optim__precision": "bf16"},
        {"optim__optimizer": "adam"},
        {"loss__entropy_penalty": 5.0},
        {"loss__soft_bins": 1.0},
        {"loss__ends": "ignored"},
        {"exposure__mode": "rollout", "exposure__rollout_rows": 2, "exposure__maximum": 1.0},
        {"visual__norm": "standardize"},
        {"optim__clip": None},
        {"visual__select": "pool", "visual__select_tokens": 4, "loss__entropy_penalty": 1.0},
    ],
)
def test_a_setting_changes_the_run(
    tmp_path: Path, cache: Path, changes: dict[str, Any], plain: tuple[Numbers, Events]
) -> None:
    metrics, _ = run(tiny(**changes), tmp_path, cache)
    assert metrics["final/loss"] != plain[0]["final/loss"]
    assert all(math.isfinite(value) for value in metrics.values())


def test_validation_images_read_more_seldom_change_no_training(tmp_path: Path, cache: Path) -> None:
    often, events = run(tiny(optim__steps=14), tmp_path / "a", cache)
    seldom, fewer = run(tiny(optim__steps=14, evaluation__val_every=6), tmp_path / "b", cache)
    assert list(events.of("val/px_error")) == [4, 8, 12, 14]
    assert list(fewer.of("val/px_error")) == [8, 12, 14]  # the first at or after 6 and 12
    assert list(fewer.of("train/px_error")) == list(events.of("train/px_error"))
    assert seldom["final/loss"] == often["final/loss"]
    assert seldom["val/px_error"] == often["val/px_error"]
    assert seldom["best/step"] in (8, 12, 14)


def test_entropy_penalty_lowers_uniformity(tmp_path: Path, cache: Path) -> None:
    steps = {"optim__steps": 60, "optim__lr": 0.003, "evaluation__every": 60}
    plain, _ = run(tiny(**steps), tmp_path / "a", cache)
    metrics, _ = run(tiny(**steps, loss__entropy_penalty=5.0), tmp_path / "b", cache)
    assert metrics["final/uniformity"] < plain["final/uniformity"] - 0.05


def test_entropy_penalty_is_of_the_tokens_that_are_left(tmp_path: Path, cache: Path) -> None:
    """As the reading: even attention to the top K is 1, not ln K / ln N."""
    objectives = []
    for penalty in (0.0, 1.0):
        top = {"visual__select": "topk", "visual__select_tokens": 4}
        config = tiny(optim__steps=1, loss__entropy_penalty=penalty, **top)
        metrics, _ = run(config, tmp_path / str(penalty), cache)
        objectives.append(metrics["train/objective"])
    assert metrics["final/uniformity_init"] > 0.9
    assert objectives[1] - objectives[0] == pytest.approx(metrics["final/uniformity_init"], abs=0.1)


def test_how_the_loss_went_is_read_of_every_step(tmp_path: Path, cache: Path) -> None:
    steps = {"optim__steps": 60, "evaluation__every": 60, "runtime__checkpoint_every": 60}
    metrics, events = run(tiny(**steps, optim__lr=0.003), tmp_path / "a", cache)
    losses = list(events.of("train/loss").values())
    assert len(losses) == 60
    trend = {f"train/{name}": value for name, value in loss_trend(losses).items()}
    assert {name: metrics[name] for name in trend} == pytest.approx(trend)
    assert metrics["train/loss_fall"] > 0
    rarely, _ = run(tiny(**steps, optim__lr=0.003, runtime__log_every=7), tmp_path / "b", cache)
    assert numbers(rarely) == numbers(metrics)


def test_own_tokens_are_logged(tmp_path: Path, cache: Path) -> None:
    config = tiny(exposure__mode="scheduled_sampling", exposure__ramp=1.0, exposure__maximum=1.0)
    _, events = run(config, tmp_path, cache)
    shares = events.of("train/own_tokens")
    assert shares[1] == 0
    assert shares[8] > 0


def test_the_global_random_state_is_left_alone(tmp_path: Path, cache: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(tiny(model__dropout=0.2), tmp_path, cache)
    assert torch.equal(torch.rand(3), expected)


def test_it_learns_an_image_by_heart(tmp_path: Path, cache: Path) -> None:
    config = tiny(
        data__train_images=1,
        data__val_images=0,
        model__d_model=32,
        model__d_ff=64,
        optim__steps=250,
        optim__lr=0.01,
        optim__schedule="cosine",
        evaluation__every=250,
        runtime__checkpoint_every=250,
        runtime__log_every=50,
    )
    metrics, _ = run(config, tmp_path, cache)
    assert metrics["final/loss"] < 0.1
    assert metrics["final/px_error"] < 2 * metrics["floor/bound"]


def test_every_step_and_pass_draws_from_a_stream_of_its_own(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []

    def spy(seed: int, name: str) -> torch.Generator:
        names.append(name)
        return stream(seed, name)

    for module in ("train", "exposure", "batches"):
        monkeypatch.setattr(f"model.{module}.stream", spy)
    config = tiny(
        model__dropout=0.1, exposure__input_noise=1.0, batch__accumulate=2, batch__lanes=3
    )
    metrics, _ = run(config, tmp_path / "a", cache)
    for kind in ("dropout", "exposure", "lanes"):
        drawn = [name for name in names if name.startswith(kind)]
        assert drawn == [f"{kind}/{step}/{part}" for step in range(1, 9) for part in (0, 1)]
    without = config.model_dump() | {"model": config.model.model_dump() | {"dropout": 0.0}}
    other, _ = run(TrainConfig.model_validate(without), tmp_path / "b", cache)
    assert other["train/loss"] != metrics["train/loss"]


def test_the_device_is_woken_before_its_memory_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As cuda:N is the first thing that a job does with it: the allocator knows no device yet."""
    calls = []
    monkeypatch.setattr(torch.cuda, "init", lambda: calls.append("init"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", calls.append)
    reset_peak_memory(torch.device("cuda:1"))
    assert calls == ["init", torch.device("cuda:1")]
