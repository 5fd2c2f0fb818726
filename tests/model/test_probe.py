"""All readings of small real models, by name; and the tokenizer floors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.init import stream
from model.lanelm import LaneLM
from model.loss import compute_loss
from model.presets import build
from model.probe import readings, tokenizer_floor
from model.targets import targets_of
from model.tokenizer import make_tokenizer
from tests.model.small import CHANNELS, MemoryBank, config_with, split_of


def straight_lanes() -> Tensor:
    """Side lanes as steep as real ones, 800 px wide, T = 40."""
    generator = stream(0, "lanes")
    slope = (torch.rand(200, 1, 1, generator=generator) - 0.5) * 60
    x = 400 + 100 * torch.randn(200, 1, 1, generator=generator) + slope * torch.arange(40.0)
    return torch.where((x >= 0) & (x < 800), x, math.nan)


@pytest.mark.parametrize(
    ("settings", "mean", "largest"),
    [
        ({"tokenizer.n_bins": 200}, 1.00, 2.02),
        ({"tokenizer.n_bins": 800}, 0.25, 0.51),
        ({"tokenizer.n_bins": 800, "tokenizer.mode": "relative_disjoint"}, 0.25, 0.51),
    ],
)
def test_floor_of_the_sound_modes(settings: dict, mean: float, largest: float) -> None:
    config = build(settings)
    floor = tokenizer_floor(
        targets_of(straight_lanes(), config), make_tokenizer(config.tokenizer, 800)
    )
    assert floor["floor/px_error"] == pytest.approx(mean, abs=0.03)
    assert floor["floor/px_error_max"] <= largest
    assert floor["floor/px_error_max"] <= floor["floor/bound"] + 1e-3
    assert floor["floor/beyond_bound"] == 0


def test_floor_of_the_legacy_modes() -> None:
    drift = build({"tokenizer.n_bins": 200, "tokenizer.mode": "relative_open_loop"})
    floor = tokenizer_floor(
        targets_of(straight_lanes(), drift), make_tokenizer(drift.tokenizer, 800)
    )
    assert floor["floor/px_error_max"] > 5
    assert floor["floor/beyond_bound"] > 0.2
    clamped = build({"tokenizer.n_bins": 200, "tokenizer.mode": "relative_clamped"})
    floor = tokenizer_floor(
        targets_of(straight_lanes(), clamped), make_tokenizer(clamped.tokenizer, 800)
    )
    assert floor["floor/px_error"] > 100
    assert floor["floor/beyond_bound"] > 0.9


def test_floor_without_a_point() -> None:
    config = build({})
    nothing = targets_of(torch.full((1, 2, 40), math.nan), config)
    assert set(tokenizer_floor(nothing, make_tokenizer(config.tokenizer, 800))) == {"floor/bound"}


def test_losses_are_the_trainings_own(seeing: LaneLM, memory_bank: MemoryBank) -> None:
    split = split_of(seeing.config, [0, 1, 2, 3])
    memory = seeing.encode(memory_bank.batch(split.indices, seeing.levels))
    with torch.no_grad():
        logits_x, logits_y = seeing(memory, *seeing.shift(split.targets.ids))
    losses = compute_loss(logits_x, logits_y, split.targets, seeing.config.loss, 0.2)
    read = readings(seeing, memory_bank, split, "final", donors=None, full=True, y_weight=0.2)
    assert read["final/loss"] == pytest.approx(float(losses.loss), rel=1e-4)
    assert read["final/objective"] == pytest.approx(float(losses.objective), rel=1e-4)
    points = split.targets.point
    expected = float(
        -logits_x.log_softmax(-1).gather(-1, split.targets.ids[..., None])[points].mean()
    )
    assert read["final/loss_per_px"] == pytest.approx(
        expected + math.log(seeing.tokenizer.bin_width), rel=1e-4
    )


def test_a_fitted_model_reads_well_and_sees(seeing: LaneLM, memory_bank: MemoryBank) -> None:
    split = split_of(seeing.config, [0, 1, 2])
    read = readings(seeing, memory_bank, split, "final", donors=None, full=True)
    assert read["final/loss"] < 0.1
    assert read["final/px_error"] < 3
    assert read["final/coverage"] > 0.95
    assert read["final/lane_count_error"] == 0
    assert read["final/zigzag_flips"] < 0.1
    assert read["final/collapse"] > 0.9
    assert abs(read["final/exposure_gap"]) < 1
    assert read["final/exposure_gap"] == pytest.approx(
        read["final/px_error"] - read["final/px_error_teacher_forced"]
    )
    assert read["final/swap_px"] > 20
    assert read["final/swap_px"] == pytest.approx(read["final/swap_px_labels"], rel=0.3)
    assert read["final/swap_loss_first_token"] > 1
    assert read["final/swap_loss"] > 0.5
    assert read["final/blank_loss"] > 0.1


def test_cheap_readings_of_training_images(seeing: LaneLM, memory_bank: MemoryBank) -> None:
    read = readings(
        seeing, memory_bank, split_of(seeing.config, [0, 1]), "train", donors=None, full=False
    )
    assert set(read) == {
        "attention/uniformity",
        "attention/effective_tokens",
        "visual/mean",
        "visual/std",
        "visual/feature_mean",
        "visual/feature_std",
        *(
            f"train/{name}"
            for name in (
                "px_error",
                "px_error_p95",
                "px_error_max",
                "px_error_slot",
                "coverage",
                "points_ratio",
                "length_error",
                "lane_count_error",
            )
        ),
    }


def test_every_name_of_the_interface_is_there(seeing: LaneLM, memory_bank: MemoryBank) -> None:
    split = split_of(seeing.config, [0, 1, 2])
    final = readings(seeing, memory_bank, split, "final", donors=None, full=True)
    wanted = (
        "loss objective loss_y loss_first_token loss_per_px uniformity effective_tokens px_error "
        "px_error_p95 px_error_max coverage length_error lane_count_error px_error_slot "
        "px_error_teacher_forced exposure_gap zigzag zigzag_flips collapse swap_px swap_loss "
        "swap_loss_first_token blank_loss shuffle_loss step_logit_gap"
    )
    assert {f"final/{name}" for name in wanted.split()} <= set(final)
    assert {"visual/mean", "visual/std", "attention/uniformity"} <= set(final)
    val = readings(seeing, memory_bank, split, "val", donors=None, full=True)
    assert {f"val/{name}" for name in ["px_error", "coverage", "f1", "f1_75", "mf1"]} <= set(val)
    assert all(math.isfinite(value) for value in (final | val).values())


def test_nothing_decoded_leaves_px_out(memory_bank: MemoryBank) -> None:
    config = config_with()
    model, split = LaneLM(config, CHANNELS), split_of(config, [0, 1])
    with torch.no_grad():
        model.head_x.bias[0] = 1e3  # "no point", always
    read = readings(model, memory_bank, split, "final", donors=None, full=True)
    assert read["final/coverage"] == 0
    for name in ("px_error", "zigzag", "collapse", "swap_px", "swap_kept", "exposure_gap"):
        assert f"final/{name}" not in read
    assert all(math.isfinite(value) for value in read.values())


def test_no_images_have_no_readings(seeing: LaneLM, memory_bank: MemoryBank) -> None:
    split = split_of(seeing.config, [])
    assert readings(seeing, memory_bank, split, "val", donors=None, full=True) == {}
    assert readings(seeing, memory_bank, split, "final", donors=None, full=True) == {}


def test_reading_changes_nothing(seeing: LaneLM, memory_bank: MemoryBank) -> None:
    seeing.train()
    before = {name: value.clone() for name, value in seeing.state_dict().items()}
    state = torch.random.get_rng_state()
    split = split_of(seeing.config, [0, 1])
    first = readings(seeing, memory_bank, split, "final", donors=None, full=True)
    assert seeing.training
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in seeing.state_dict().items())
    assert readings(seeing, memory_bank, split, "final", donors=None, full=True) == first
