"""Settings: strict, one clear line when refused, and an identity that stays put."""

from __future__ import annotations

import pytest

from model.config import TrainConfig, identity, settings_of
from model.presets import PRESETS, SIZES, SettingError, build, known_paths


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("size", sorted(SIZES))
def test_every_preset_builds_at_every_size(preset: str, size: str) -> None:
    config = build({"preset": preset, "model.preset": size})
    for path, value in {**PRESETS[preset], **SIZES[size]}.items():
        assert settings_of(config)[path] == value


def test_explicit_settings_win_over_presets() -> None:
    config = build(
        {"preset": "strategy1", "optim.lr": 5e-5, "model.preset": "lanelm_256", "model.d_ff": 64}
    )
    assert config.optim.lr == 5e-5
    assert (config.model.d_model, config.model.d_ff) == (256, 64)


def test_yaml_reads_3e_4_as_a_string_and_we_accept_it() -> None:
    assert build({"optim.lr": "3e-4"}) == build({"optim.lr": 3e-4})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"optim.lrr": 1e-4}, ["optim.lrr", "did you mean 'optim.lr'?"]),
        ({"n_bins": 100}, ["n_bins", "did you mean 'tokenizer.n_bins'?"]),
        ({"optim.lr": "fast"}, ["optim.lr", "'fast'", "number"]),
        ({"optim.lr": float("nan")}, ["optim.lr", "nan"]),
        ({"visual.levels": "p6"}, ["visual.levels", "'p6'", "'p5', 'p4p5' or 'full'"]),
        ({"preset": "v4_fxed"}, ["preset", "did you mean 'v4_fixed'?"]),
        ({"model.preset": "big"}, ["model.preset", "'big'", "lanelm_128"]),
        ({"data.train_images": 0}, ["data.train_images", "given 0", "1"]),
        ({"model.d_model": 1.5}, ["model.d_model", "1.5", "integer"]),
        ({"model.n_heads": 3}, ["n_heads=3", "d_model=128"]),
        ({"data.width": 801}, ["multiples of 32"]),
        ({"optim.schedule": "cosine", "optim.lr": 1e-7}, ["lr_min", "must not exceed"]),
        ({"model.memory": "per_level", "visual.levels": "p5"}, ["model.memory=per_level"]),
        (
            {"model.memory": "per_level", "visual.levels": "full", "model.n_layers": 2},
            ["per_level", "n_layers=2", "allowed: 3 or more"],
        ),
        (
            {"data.above_crop": "clip", "batch.shift": 1.0},
            ["data.above_crop=clip", "batch.shift", "allowed"],
        ),
        (
            {"visual.select": "pool", "visual.position": "none", "model.d_model": 6}
            | {"model.n_heads": 2},
            ["d_model=6", "multiple of 4"],
        ),
        ({"decode.smooth": 4}, ["decode", "smooth=4", "odd"]),
        ({"optim.beta1": 1.0}, ["optim.beta1", "given 1.0", "less than 1"]),
        ({"optim.beta2": 1.0}, ["optim.beta2", "given 1.0", "less than 1"]),
        (
            {"backbone.name": "random", "backbone.random_seed": -1},
            ["backbone.random_seed", "given -1", "0"],
        ),
        (
            {"decode.ends": "x_or_y", "loss.y_weight": 0.0},
            ["decode.ends=x_or_y", "loss.y_weight=0", "never trained", "allowed"],
        ),
        (
            {"decode.ends": "x_or_y", "loss.ends": "ignored"},
            ["decode.ends=x_or_y", "loss.ends=ignored", "allowed"],
        ),
        ({"data.roots": ["x"], "data.geometry": "y"}, ["geometry", "no effect"]),
    ],
)
def test_a_bad_setting_is_refused_in_one_line(settings: dict, says: list[str]) -> None:
    with pytest.raises(SettingError) as caught:
        build(settings)
    message = str(caught.value)
    assert "\n" not in message
    for words in says:
        assert words in message


@pytest.mark.parametrize(
    "settings",
    [
        {"tokenizer.max_abs_dx": 16},
        {"visual.levels": "p5", "visual.stride": 2},
        {"visual.select_tokens": 100},
        {"model.temperature": 8.0},
        {"loss.y_ramp": 10},
        {"loss.ends": "ignored", "loss.ends_weight": 0.1},
        {"optim.lr_min": 1e-5},
        {"optim.optimizer": "adam", "optim.weight_decay": 0.1},
        {"exposure.maximum": 0.9},
        {"exposure.mode": "rollout", "exposure.passes": 3},
        {"backbone.random_seed": 3},
    ],
)
def test_a_knob_that_nothing_reads_is_refused(settings: dict) -> None:
    with pytest.raises(SettingError, match="no effect"):
        build(settings)


def test_a_y_head_that_a_stage_trains_may_end_lanes() -> None:
    staged = {"decode.ends": "x_or_y", "loss.y_weight": 0.0, "loss.y_schedule": "staged"}
    assert build(staged).loss.y_first == 0.1
    with pytest.raises(SettingError, match="never trained"):
        build(staged | {"loss.y_first": 0.0})


def test_identity_holds_what_changes_numbers_and_nothing_else() -> None:
    assert identity(TrainConfig()) == {}
    assert identity(build({"optim.lr": 1e-4})) == {"optim.lr": 1e-4}
    neutral = {"runtime.threads": 4, "data.roots": ("x",), "runtime.device": "cuda:1", "seed": 7}
    assert identity(build(neutral)) == {}


def test_neutral_values_never_change() -> None:
    """Job ids rest on these. A new field adds a line here; an existing line is never edited."""
    expected = {
        "data.train_images": 1, "data.val_images": 8, "data.test_images": 0, "data.seed": 0,
        "data.width": 800, "data.height": 320, "data.max_lanes": 4,
        "data.lane_order": "left_to_right", "data.above_crop": "cut", "data.mirror": False,
        "backbone.name": "efficientnet_lite0", "backbone.random_seed": 0,
        "backbone.random_channels": 32,
        "tokenizer.mode": "absolute", "tokenizer.n_bins": 200, "tokenizer.max_abs_dx": 32,
        "tokenizer.n_rows": 40, "tokenizer.row_order": "bottom_up",
        "visual.levels": "full", "visual.stride": 1, "visual.select": "none",
        "visual.select_tokens": 250, "visual.norm": "layernorm", "visual.scale": 1.0,
        "visual.fold": False, "visual.neck": 0,
        "visual.residual": False, "visual.position": "sinusoidal", "visual.level_embedding": True,
        "model.d_model": 128, "model.n_layers": 3, "model.n_heads": 4, "model.cross_heads": None,
        "model.d_ff": 256, "model.dropout": 0.0, "model.attention": "plain",
        "model.temperature": 16.0, "model.memory": "concat", "model.order": "self_first",
        "model.norm": "pre", "model.x_scale": 1.0, "model.lane_scale": 1.0, "model.start": "bos",
        "model.decode_shift": False, "model.decode_y_offset": 0,
        "loss.y_weight": 0.3, "loss.y_schedule": "fixed", "loss.y_threshold": 0.1,
        "loss.y_patience": 20, "loss.y_first": 0.1, "loss.y_hold": 50, "loss.y_ramp": 100,
        "loss.ends": "learned", "loss.ends_weight": 1.0, "loss.label_smoothing": 0.0,
        "loss.soft_bins": 0.0, "loss.entropy_penalty": 0.0, "loss.start_weight": 1.0,
        "loss.lane_map": 0.0,
        "optim.steps": 500, "optim.optimizer": "adamw", "optim.lr": 3e-4,
        "optim.schedule": "constant", "optim.lr_min": 1e-6, "optim.warmup": 0, "optim.clip": 1.0,
        "optim.weight_decay": 0.01, "optim.beta1": 0.9, "optim.beta2": 0.999,
        "optim.precision": "fp32",
        "exposure.mode": "teacher_forcing", "exposure.start": 0.0, "exposure.ramp": 0.5,
        "exposure.maximum": 0.5, "exposure.passes": 2, "exposure.rollout_rows": 5,
        "exposure.input_noise": 0.0, "exposure.hidden": 0.0,
        "batch.images": 1, "batch.lanes": None, "batch.accumulate": 1, "batch.shift": 0.0,
        "batch.shear": 0.0,
        "decode.ends": "x", "decode.nms": None,
        "decode.hallucination_removal": False, "decode.smooth": 1, "decode.choice": "token",
        "evaluation.every": 100, "evaluation.val_every": None, "evaluation.train_images": 16,
    }  # fmt: skip
    settings = settings_of(TrainConfig())
    outside = {"seed", "data.roots", "data.geometry", "backbone.checkpoint"}
    inside = {k for k in settings if not k.startswith("runtime.")} - outside
    assert {path: settings[path] for path in inside} == expected


def test_every_setting_is_described() -> None:
    from model.fields import Part

    def described(part: type[Part]) -> None:
        for name, field in part.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Part):
                described(field.annotation)
            else:
                assert field.description, f"{part.__name__}.{name} has no description"

    described(TrainConfig)
    assert "optim.lr" in known_paths()
