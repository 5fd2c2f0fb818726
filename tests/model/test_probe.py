"""Readings of small real models, of models that cannot see, and of hand-made attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.config import TrainConfig
from model.eval_split import polylines
from model.init import stream
from model.lanelm import LaneLM, Memory
from model.loss import compute_loss
from model.passes import after_prefix, decode, force
from model.presets import build
from model.probe import (
    EvalScene,
    EvalSplit,
    attention_readings,
    readings,
    sight_readings,
    tokenizer_floor,
    uniformity,
    visual_readings,
)
from model.scene import Frame, Kind, Scene, input_lanes
from model.targets import make_targets, targets_of
from model.tokenizer import make_tokenizer

SMALL: dict[str, Any] = {
    "data.width": 256,
    "data.height": 96,
    "data.max_lanes": 2,
    "tokenizer.n_rows": 12,
    "tokenizer.n_bins": 64,
    "visual.levels": "p5",
    "model.d_model": 32,
    "model.n_layers": 2,
    "model.n_heads": 2,
    "model.d_ff": 32,
    "backbone.name": "random",
}
CHANNELS = (4, 4, 16)
FRAME = Frame(512, 292, 100, 256, 96)


class MemoryBank:
    """Features held in memory; every image has its own signature on every cell."""

    def __init__(self, n: int) -> None:
        sizes = ((12, 32), (6, 16), (3, 8))
        self.levels = []
        for level, (c, (h, w)) in enumerate(zip(CHANNELS, sizes, strict=True)):
            noise = torch.randn(n, c, h, w, generator=stream(0, f"noise/{level}"))
            own = torch.randn(n, c, 1, 1, generator=stream(0, f"own/{level}"))
            self.levels.append(noise + 2 * own)

    def batch(self, indices: Sequence[int], levels: Sequence[int]) -> list[Tensor]:
        return [self.levels[level][list(indices)].clone() for level in levels]

    def statistics(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        chosen = [level[list(indices)] for level in self.levels]
        return [(x.mean((0, 2, 3)), x.std((0, 2, 3), correction=0)) for x in chosen]


class Keys:
    """A bank whose rows are the keys."""

    def index(self, key: str) -> int:
        return int(key)


KEYS = Keys()


class Blind(LaneLM):
    """A model whose visual tokens are the same whatever the image."""

    def encode(self, features: Sequence[Tensor], padding: Tensor | None = None) -> Memory:
        return super().encode([torch.zeros_like(f) for f in features], padding)


def config_with(**changes: Any) -> TrainConfig:
    return build(SMALL | {name.replace("__", "."): value for name, value in changes.items()})


def lane(x0: float, x1: float, top: float = 20.0) -> np.ndarray:
    """A straight lane in input px, from `top` to the bottom."""
    y = np.linspace(top, 95, 16)
    return np.stack([x0 + (x1 - x0) * (y - top) / (95 - top), y], axis=1)


LANES = [
    [lane(60, 20), lane(120, 160, 40)],
    [lane(140, 100, 30), lane(200, 240)],
    [lane(30, 30), lane(100, 90, 60)],
    [lane(200, 120, 10)],
]


def split_of(config: TrainConfig, places: Sequence[int], kind: Kind = "culane") -> EvalSplit:
    rows = tuple(range(100, 290, 10)) if kind == "tusimple" else None
    scenes = []
    for i in places:
        original = [FRAME.to_original(x) for x in LANES[i]]
        if rows is not None:  # labelled at its rows, as TuSimple is
            y = [np.array([r for r in rows if x[0, 1] <= r <= x[-1, 1]], float) for x in original]
            pairs = zip(original, y, strict=True)
            original = [np.stack([np.interp(r, x[:, 1], x[:, 0]), r], axis=1) for x, r in pairs]
        scenes.append(EvalScene(str(i), kind, FRAME, tuple(original), rows))
    targets = make_targets([LANES[i] for i in places], config)
    return EvalSplit(list(places), targets, tuple(scenes))


def fit(model: LaneLM, bank: MemoryBank, split: EvalSplit, steps: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    features = bank.batch(split.indices, model.levels)
    for _ in range(steps):
        logits_x, logits_y = model(model.encode(features), *model.shift(split.targets.ids))
        loss = compute_loss(logits_x, logits_y, split.targets, model.config.loss, 0.0).objective
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def bank() -> MemoryBank:
    torch.set_num_threads(1)
    return MemoryBank(4)


@pytest.fixture(scope="module")
def seeing(bank: MemoryBank) -> LaneLM:
    """A model fitted to three images, which it must tell apart."""
    config = config_with()
    model = LaneLM(config, CHANNELS)
    fit(model, bank, split_of(config, [0, 1, 2]), 120)
    return model


@pytest.fixture(scope="module")
def memorising(bank: MemoryBank) -> LaneLM:
    """A model fitted to one image without seeing it."""
    config = config_with()
    model = Blind(config, CHANNELS)
    fit(model, bank, split_of(config, [0]), 80)
    return model


# --- uniformity ---------------------------------------------------------------------------------


def test_uniformity_of_one_hot_and_of_uniform_rows() -> None:
    rows = torch.stack([torch.eye(250)[3], torch.full((250,), 1 / 250)])
    even, tokens = uniformity(rows, 250)
    assert even.tolist() == pytest.approx([0, 1], abs=1e-5)
    assert tokens.tolist() == pytest.approx([1, 250], rel=1e-4)


@pytest.mark.parametrize(("n", "expected"), [(250, 0.583), (5250, 0.731)])
def test_looking_at_a_tenth_of_the_tokens(n: int, expected: float) -> None:
    row = torch.zeros(n)
    row[: n // 10] = 10 / n
    even, tokens = uniformity(row, n)
    assert float(even) == pytest.approx(expected, abs=5e-4)
    assert float(tokens) == pytest.approx(n / 10, rel=1e-4)


def test_averaging_weights_before_the_entropy_would_inflate_it() -> None:
    rows = torch.eye(250)[torch.randint(250, (40,), generator=stream(1, "rows"))]
    assert float(uniformity(rows, 250)[0].mean()) == pytest.approx(0, abs=1e-6)
    assert float(uniformity(rows.mean(0), 250)[0]) == pytest.approx(0.656, abs=0.01)


def test_masked_keys_do_not_count() -> None:
    row = torch.tensor([0.25, 0.25, 0.25, 0.25, 0.0, 0.0])
    assert float(uniformity(row, 4)[0]) == pytest.approx(1)
    assert float(uniformity(row, 6)[0]) < 0.8
    assert float(uniformity(torch.ones(1), 1)[0]) == 0


# --- attention ----------------------------------------------------------------------------------


class Looks(LaneLM):
    """Attention made by hand: block 0 looks at one token, block 1 evenly, except where told."""

    elsewhere: Tensor | None = None
    pool: Tensor | None = None

    def encode(self, features: Sequence[Tensor], padding: Tensor | None = None) -> Memory:
        memory = super().encode(features, padding)
        if self.pool is None:
            return memory
        pool = self.pool
        values = memory.selected.values[..., : pool.shape[1]]
        return replace(
            memory, selected=replace(memory.selected, values=values, weights=lambda: pool)
        )

    def attention(
        self, memory: Memory, ids_in: Tensor, y_in: Tensor, lane_ids: Tensor | None = None
    ) -> list[Tensor]:
        N = memory.tokens.shape[1]
        shape = (*ids_in.shape[:1], 2, *ids_in.shape[1:], N)  # (1, heads, L, T, N)
        one = torch.zeros(shape)
        one[..., 5] = 1
        even = torch.full(shape, 1 / N)
        if self.elsewhere is not None:
            one = torch.where(self.elsewhere[:, None, ..., None], one, even)
        return [one, even]


def test_attention_is_averaged_over_blocks_heads_and_taught_queries(bank: MemoryBank) -> None:
    config = config_with()
    model, split = Looks(config, CHANNELS), split_of(config, [0, 3])
    read = attention_readings(model, bank, split)
    assert read["uniformity_block0"] == pytest.approx(0, abs=1e-6)
    assert read["uniformity_block1"] == pytest.approx(1)
    assert read["uniformity"] == pytest.approx(0.5)
    assert read["effective_tokens"] == pytest.approx((1 + 24) / 2, rel=1e-4)
    assert "uniformity_slots" not in read
    model.elsewhere = split.targets.point[:1] | split.targets.first_end[:1]
    one_image = attention_readings(model, bank, split.first(1))
    assert one_image["uniformity_block0"] == pytest.approx(0, abs=1e-6)  # no other row counts


def test_pooled_attention_is_read_over_the_original_tokens(bank: MemoryBank) -> None:
    config = config_with()
    model, split = Looks(config, CHANNELS), split_of(config, [0])
    model.pool = torch.full((1, 8, 24), 1 / 24)  # 8 slots, each the mean of all 24 tokens
    read = attention_readings(model, bank, split)
    assert read["uniformity"] == pytest.approx(1)  # even the block that looks at one slot
    assert read["uniformity_slots"] == pytest.approx(0.5)
    assert read["effective_tokens"] == pytest.approx(24, rel=1e-4)
    model.pool = torch.eye(24)[None, :8]  # each slot is one token
    read = attention_readings(model, bank, split)
    assert read["uniformity"] == pytest.approx(0.5 * math.log(8) / math.log(24))


def test_an_untrained_model_looks_evenly(bank: MemoryBank) -> None:
    config = config_with()
    read = attention_readings(LaneLM(config, CHANNELS), bank, split_of(config, [0, 1]))
    assert 0.9 < read["uniformity"] <= 1
    assert 12 < read["effective_tokens"] <= 24


def test_visual_readings(bank: MemoryBank) -> None:
    config = config_with()
    model = LaneLM(config, CHANNELS)
    split = split_of(config, [1, 3])
    read = visual_readings(model, bank, split)
    features = bank.levels[2][[1, 3]]
    assert read["feature_mean"] == pytest.approx(float(features.mean()), abs=1e-5)
    assert read["feature_std"] == pytest.approx(float(features.std(correction=0)), rel=1e-5)
    tokens = model.encode([features]).tokens.detach()
    assert read["mean"] == pytest.approx(float(tokens.mean()), abs=1e-5)
    assert read["std"] == pytest.approx(float(tokens.std(correction=0)), rel=1e-5)


# --- tokenizer ----------------------------------------------------------------------------------


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


def test_px_is_against_what_was_labelled_not_against_clipped_targets() -> None:
    """A lane that is clipped onto the crop's edge has a point there which nobody labelled."""
    frame = Frame(512, 292, 100, 256, 96)
    above = np.array([[400.0, 80.0], [100.0, 260.0]])  # meets the crop's edge, y 100, at x 366.7
    splits = {}
    for above_crop in ("cut", "clip"):
        config = config_with(data__above_crop=above_crop)
        lanes = input_lanes([above], frame, config.data)
        image = np.zeros((96, 256, 3), np.uint8)
        scene = Scene("0", "culane", image, lanes, frame, (above,))
        splits[above_crop] = EvalSplit.of([scene], KEYS, config)
    cut, clipped = splits["cut"], splits["clip"]
    assert cut.labels is None
    assert np.array_equal(cut.truth, clipped.truth, equal_nan=True)
    assert np.array_equal(clipped.first(1).select([0]).truth, cut.truth, equal_nan=True)
    tokenizer = make_tokenizer(config_with().tokenizer, 256)
    sound = tokenizer_floor(cut.targets, tokenizer, cut.truth)
    assert sound == tokenizer_floor(cut.targets, tokenizer)
    floor = tokenizer_floor(clipped.targets, tokenizer, clipped.truth)
    assert floor["floor/px_error_max"] > 3 * sound["floor/px_error_max"]
    assert floor["floor/beyond_bound"] > 0


@pytest.mark.parametrize("mode", ["absolute", "relative_disjoint"])
def test_a_token_is_read_after_the_true_prefix_not_after_chosen_ones(mode: str) -> None:
    config = config_with(tokenizer__mode=mode)
    tokenizer = make_tokenizer(config.tokenizer, 256)
    targets = split_of(config, [0]).targets
    exact = after_prefix(tokenizer, targets.ids, targets.ids)
    assert torch.allclose(exact, tokenizer.decode(targets.ids), equal_nan=True)
    chosen = targets.ids.clone()
    chosen[targets.point] += 1  # a bin to the right, or a step one bin longer
    off = after_prefix(tokenizer, targets.ids, chosen)[targets.point] - exact[targets.point]
    assert torch.allclose(off, torch.tensor(tokenizer.bin_width).float())  # nowhere adding up


# --- what a model writes ------------------------------------------------------------------------


def test_decoding_agrees_with_teacher_forcing(seeing: LaneLM, bank: MemoryBank) -> None:
    split = split_of(seeing.config, [0, 1, 2, 3])
    read = readings(seeing, bank, split, "final", donors=None, full=True)
    assert read["final/step_logit_gap"] < 1e-3
    assert read["final/step_logit_gap_first"] <= read["final/step_logit_gap"]


def test_another_input_in_decoding_shows_as_a_gap(bank: MemoryBank) -> None:
    config = config_with(model__start="leak")
    model, split = LaneLM(config, CHANNELS), split_of(config, [0, 1])
    fit(model, bank, split, 60)
    read = readings(model, bank, split, "final", donors=None, full=True)
    assert read["final/loss_first_token"] < 0.1
    assert read["final/step_logit_gap"] > 0.1


def test_losses_are_the_trainings_own(seeing: LaneLM, bank: MemoryBank) -> None:
    split = split_of(seeing.config, [0, 1, 2, 3])
    memory = seeing.encode(bank.batch(split.indices, seeing.levels))
    with torch.no_grad():
        logits_x, logits_y = seeing(memory, *seeing.shift(split.targets.ids))
    losses = compute_loss(logits_x, logits_y, split.targets, seeing.config.loss, 0.2)
    read = readings(seeing, bank, split, "final", donors=None, full=True, y_weight=0.2)
    assert read["final/loss"] == pytest.approx(float(losses.loss), rel=1e-4)
    assert read["final/objective"] == pytest.approx(float(losses.objective), rel=1e-4)
    points = split.targets.point
    expected = float(
        -logits_x.log_softmax(-1).gather(-1, split.targets.ids[..., None])[points].mean()
    )
    assert read["final/loss_per_px"] == pytest.approx(
        expected + math.log(seeing.tokenizer.bin_width), rel=1e-4
    )


def test_a_fitted_model_reads_well_and_sees(seeing: LaneLM, bank: MemoryBank) -> None:
    split = split_of(seeing.config, [0, 1, 2])
    read = readings(seeing, bank, split, "final", donors=None, full=True)
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


def test_a_model_that_cannot_see_does_not_react(memorising: LaneLM, bank: MemoryBank) -> None:
    config = memorising.config
    split, donors = split_of(config, [0]), split_of(config, [1, 2, 3])
    read = readings(memorising, bank, split, "final", donors=donors, full=True)
    assert read["final/px_error"] < 3  # and yet
    assert read["final/swap_px"] == 0
    assert read["final/swap_kept"] == 1
    assert read["final/swap_px_labels"] > 20
    for name in ("swap_loss", "swap_loss_first_token", "blank_loss", "shuffle_loss"):
        assert read[f"final/{name}"] == pytest.approx(0, abs=1e-6)


def test_without_another_image_there_is_no_swap(memorising: LaneLM, bank: MemoryBank) -> None:
    split = split_of(memorising.config, [0])
    for donors in (None, split_of(memorising.config, [])):
        assert set(sight_readings(memorising, bank, split, donors)) == {
            "blank_loss",
            "shuffle_loss",
        }


def test_swapped_lanes_are_compared_image_by_image(seeing: LaneLM, bank: MemoryBank) -> None:
    split = split_of(seeing.config, [0, 1, 2])
    own = decode(seeing, bank, split).lanes
    over = own[[1, 2, 0]]  # a model that sees writes the other image's lanes
    both = np.isfinite(own) & np.isfinite(over)
    expected = np.abs(own - over)[both].mean()
    assert sight_readings(seeing, bank, split)["swap_px"] == pytest.approx(expected, rel=1e-6)


def test_position_blind_features_survive_a_shuffle(bank: MemoryBank) -> None:
    """Blank takes away what the images differ in; shuffle only where it was."""
    flat = MemoryBank(4)
    flat.levels = [x.mean((2, 3), keepdim=True).expand_as(x) for x in flat.levels]
    config = config_with()
    model, split = LaneLM(config, CHANNELS), split_of(config, [0, 1])
    fit(model, flat, split, 60)
    read = sight_readings(model, flat, split)
    assert read["shuffle_loss"] == pytest.approx(0, abs=1e-6)
    assert read["blank_loss"] > 0.1


# --- names and states ---------------------------------------------------------------------------


def test_cheap_readings_of_training_images(seeing: LaneLM, bank: MemoryBank) -> None:
    read = readings(seeing, bank, split_of(seeing.config, [0, 1]), "train", donors=None, full=False)
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


def test_other_images_are_scored_officially(seeing: LaneLM, bank: MemoryBank) -> None:
    split = split_of(seeing.config, [0, 1], "tusimple")
    read = readings(seeing, bank, split, "val", donors=None, full=False)
    assert not any(name.startswith(("attention/", "visual/")) for name in read)
    assert read["val/f1"] == 1
    assert 0 < read["val/mf1"] < 1
    assert read["val/tusimple_accuracy"] > 0.8
    culane = readings(seeing, bank, split_of(seeing.config, [0, 1]), "val", donors=None, full=False)
    assert "val/tusimple_accuracy" not in culane


def test_official_scores_are_in_original_px(bank: MemoryBank) -> None:
    """Lanes that lie on the labels' rows go back through the frame onto the labels."""
    config = config_with()
    split = split_of(config, [0], "tusimple")
    lanes = polylines(split.targets.x[0].double().numpy(), config, FRAME)
    for got, label in zip(lanes, split.scenes[0].original_lanes, strict=True):
        assert (np.diff(got[:, 1]) > 0).all()
        assert np.allclose(got[:, 0], np.interp(got[:, 1], label[:, 1], label[:, 0]), atol=0.01)
        assert got[0, 1] >= 100


def test_every_name_of_the_interface_is_there(seeing: LaneLM, bank: MemoryBank) -> None:
    split = split_of(seeing.config, [0, 1, 2])
    final = readings(seeing, bank, split, "final", donors=None, full=True)
    wanted = (
        "loss objective loss_y loss_first_token loss_per_px uniformity effective_tokens px_error "
        "px_error_p95 px_error_max coverage length_error lane_count_error px_error_slot "
        "px_error_teacher_forced exposure_gap zigzag zigzag_flips collapse swap_px swap_loss "
        "swap_loss_first_token blank_loss shuffle_loss step_logit_gap"
    )
    assert {f"final/{name}" for name in wanted.split()} <= set(final)
    assert {"visual/mean", "visual/std", "attention/uniformity"} <= set(final)
    val = readings(seeing, bank, split, "val", donors=None, full=True)
    assert {f"val/{name}" for name in ["px_error", "coverage", "f1", "f1_75", "mf1"]} <= set(val)
    assert all(math.isfinite(value) for value in (final | val).values())


def test_nothing_decoded_leaves_px_out(bank: MemoryBank) -> None:
    config = config_with()
    model, split = LaneLM(config, CHANNELS), split_of(config, [0, 1])
    with torch.no_grad():
        model.head_x.bias[0] = 1e3  # "no point", always
    read = readings(model, bank, split, "final", donors=None, full=True)
    assert read["final/coverage"] == 0
    for name in ("px_error", "zigzag", "collapse", "swap_px", "swap_kept", "exposure_gap"):
        assert f"final/{name}" not in read
    assert all(math.isfinite(value) for value in read.values())


def test_no_images_have_no_readings(seeing: LaneLM, bank: MemoryBank) -> None:
    split = split_of(seeing.config, [])
    assert readings(seeing, bank, split, "val", donors=None, full=True) == {}
    assert readings(seeing, bank, split, "final", donors=None, full=True) == {}


def test_reading_changes_nothing(seeing: LaneLM, bank: MemoryBank) -> None:
    seeing.train()
    before = {name: value.clone() for name, value in seeing.state_dict().items()}
    state = torch.random.get_rng_state()
    split = split_of(seeing.config, [0, 1])
    first = readings(seeing, bank, split, "final", donors=None, full=True)
    assert seeing.training
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in seeing.state_dict().items())
    assert readings(seeing, bank, split, "final", donors=None, full=True) == first


def test_readings_do_not_depend_on_how_many_images_go_together(
    seeing: LaneLM, bank: MemoryBank
) -> None:
    together = split_of(seeing.config, [0, 1, 2, 3])
    alone = [force(seeing, bank, split_of(seeing.config, [i])).nll for i in range(4)]
    assert torch.allclose(force(seeing, bank, together).nll, torch.cat(alone), atol=1e-4)
