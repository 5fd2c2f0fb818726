"""Named starting points, and `build`: dotted settings in, TrainConfig or one clear line out."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from model.config import TrainConfig
from model.fields import Part, flatten

Settings = Mapping[str, Any]

SIZES: dict[str, dict[str, Any]] = {
    "lanelm_128": {
        "model.d_model": 128,
        "model.n_layers": 3,
        "model.n_heads": 4,
        "model.d_ff": 256,
    },
    "lanelm_256": {
        "model.d_model": 256,
        "model.n_layers": 4,
        "model.n_heads": 8,
        "model.d_ff": 512,
    },
    "lanelm_512": {
        "model.d_model": 512,
        "model.n_layers": 3,
        "model.n_heads": 8,
        "model.d_ff": 1024,
    },
}
"""`model.preset`: sizes. 128 and 512 follow the paper's parameter counts (3 blocks, FFN twice
d_model); 256 is the size of the user's own experiments."""

SELDOM = {"evaluation.val_every": 500}
"""Of every preset: held-out images are read five times more seldom than training images."""

PRESETS: dict[str, dict[str, Any]] = {
    # sound code with the baseline's settings
    "v4_fixed": {
        **SELDOM,
        "visual.levels": "full",
        "tokenizer.mode": "absolute",
        "tokenizer.n_bins": 200,
        "optim.lr": 3e-4,
        "optim.schedule": "constant",
        "optim.clip": 1.0,
        "loss.y_weight": 0.3,
    },
    # the same with the mistakes of the script that the analysis was written about
    "v4_fixed_as_run": {
        **SELDOM,
        "visual.levels": "full",
        "visual.position": "weak",
        "data.lane_order": "label",
        "data.above_crop": "clip",
        "loss.ends": "ignored",
        "model.start": "leak",
        "model.decode_shift": True,
        "model.decode_y_offset": 1,
        "model.x_scale": 0.3,
        "model.lane_scale": 15.0,
        "model.cross_heads": 8,  # doubled at lanelm_128
        "model.dropout": 0.2,
    },
    # the "successful overfit, loss 0.26" of the analysis, sound ...
    "overfit_026": {
        **SELDOM,
        "visual.levels": "p5",
        "tokenizer.mode": "relative_disjoint",
        "tokenizer.max_abs_dx": 32,
        "optim.lr": 3e-4,
        "optim.schedule": "cosine",
        "optim.lr_min": 1e-6,
        "optim.clip": 0.5,
    },
    # ... and with the clamped codes that it really ran with
    "overfit_026_clamped": {
        **SELDOM,
        "visual.levels": "p5",
        "tokenizer.mode": "relative_clamped",
        "tokenizer.max_abs_dx": 32,
        "optim.lr": 3e-4,
        "optim.schedule": "cosine",
        "optim.lr_min": 1e-6,
        "optim.clip": 0.5,
    },
    # strategy 1 of the analysis, all changes together
    "strategy1": {
        **SELDOM,
        "visual.levels": "p5",
        "loss.y_weight": 0.0,
        "optim.lr": 1e-4,
        "optim.clip": 0.5,
        "optim.schedule": "cosine",
        "optim.lr_min": 1e-6,
    },
    # the LaneLM that sees images held out best of all that were tried (RESULTS.md)
    "best": {
        **SELDOM,
        **SIZES["lanelm_128"],
        "data.train_images": 2000,
        "data.val_images": 64,
        "data.mirror": True,
        "data.lane_order": "ego",
        "visual.levels": "full",
        "visual.fold": True,
        "visual.norm": "standardize",
        "visual.neck": 3,
        "visual.position": "aligned",
        "model.attention": "qk_norm",
        "loss.y_weight": 0.0,
        "loss.lane_map": 10.0,
        "loss.start_weight": 3.0,
        "exposure.hidden": 0.5,
        "batch.images": 4,
        "batch.shift": 1.5,
        "decode.choice": "median",
        "decode.nms": 50.0,
        "optim.steps": 16_000,
        "optim.lr": 1e-3,
        "optim.schedule": "cosine",
        "optim.lr_min": 1e-6,
        "optim.warmup": 100,
    },
}
"""`preset`: whole starting points; settings given beside a preset win over it."""


class SettingError(ValueError):
    """A setting that cannot be: one line names the key, what was given and what is allowed."""


def build(settings: Settings) -> TrainConfig:
    """Make a TrainConfig from dotted paths: {"preset": "v4_fixed", "optim.lr": 1e-4}.

    `preset` and `model.preset` are laid under the other settings and leave no trace of their own.

    Raises:
        SettingError: unknown path or preset (with a suggestion), wrong type or value, dead knob.
    """
    explicit = dict(settings)
    merged: dict[str, Any] = {}
    for key, table in (("preset", PRESETS), ("model.preset", SIZES)):
        if key in explicit:
            name = explicit.pop(key)
            if name not in table:
                raise SettingError(f"{key}: {name!r} is unknown{_suggest(str(name), table)}")
            merged.update(table[name])
    merged.update(explicit)
    paths = known_paths()
    tree: dict[str, Any] = {}
    for path, value in merged.items():
        if path not in paths:
            raise SettingError(f"unknown setting {path!r}{_suggest(path, paths)}")
        *parents, leaf = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    try:
        return TrainConfig.model_validate(tree)
    except ValidationError as error:
        raise SettingError(_one_line(error.errors()[0])) from None


@functools.cache
def known_paths() -> frozenset[str]:
    """Every dotted path that `build` takes, without the two preset keys."""
    return frozenset(path for path, *_ in flatten(TrainConfig()))


def neutral(path: str) -> Any:
    """The frozen neutral value of a setting."""
    return next(value for name, _, value, _ in flatten(TrainConfig()) if name == path)


def _suggest(given: str, allowed: Mapping[str, Any] | frozenset[str]) -> str:
    """Say the nearest allowed names, or all of them when they are few."""
    near = difflib.get_close_matches(given, sorted(allowed), n=1, cutoff=0.5)
    if not near:  # a leaf name without its part, or the part misspelt
        leaf = given.rsplit(".", 1)[-1]
        near = [path for path in sorted(allowed) if path.rsplit(".", 1)[-1] == leaf][:1]
    if near:
        return f"; did you mean {near[0]!r}?"
    if len(allowed) <= 12:
        return f"; allowed: {', '.join(sorted(allowed))}"
    parts = sorted({path.partition(".")[0] + "." for path in allowed if "." in path})
    return f"; settings begin with {', '.join(parts)}"


def _one_line(error: ErrorDetails) -> str:
    names = [str(part) for part in error["loc"]]
    path = ".".join(name for name in names if name in _field_names())
    message = error["msg"].removeprefix("Value error, ").replace("Input should be ", "must be ")
    if error["type"] == "value_error":
        return f"{path}: {message}" if path else message
    given = error["input"]
    return f"{path}: given {given!r}, {message}"


def _field_names() -> frozenset[str]:
    def walk(part: type[Part]) -> set[str]:
        names: set[str] = set()
        for name, field in part.model_fields.items():
            names.add(name)
            if isinstance(field.annotation, type) and issubclass(field.annotation, Part):
                names |= walk(field.annotation)
        return names

    return frozenset(walk(TrainConfig))
