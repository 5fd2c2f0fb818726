"""All readings of a model, by their agreed names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from model.eval_split import EvalScene, EvalSplit, official_readings
from model.lanelm import LaneLM
from model.looking import looking_readings, uniformity
from model.metrics import Lanes, collapse, first_points, loss_per_px, px_readings, zigzag
from model.passes import Bank, Forced, Known, decode, force, go_on, plain_steps
from model.processing import process, processes
from model.sight import sight_readings
from model.targets import Targets
from model.tokenizer import Tokenizer

__all__ = [
    "EvalScene",
    "EvalSplit",
    "looking_readings",
    "prompted_readings",
    "readings",
    "sight_readings",
    "tokenizer_floor",
    "uniformity",
]

_BOUND_SLACK = 1e-3  # px; float32 rounding

Readings = dict[str, float]


def always(px: Mapping[str, float]) -> bool:
    """Score by the data sets' own rules, however well the lanes lie."""
    return True


def readings(
    model: LaneLM,
    bank: Bank,
    split: EvalSplit,
    prefix: str,
    *,
    donors: EvalSplit | None,
    full: bool,
    y_weight: float | None = None,
    scored: Callable[[Mapping[str, float]], bool] = always,
    known: Known | None = None,
) -> Readings:
    """Read a model on some images; the model keeps its mode, and no random stream is touched.

    `full=False` decodes; and on training images (prefix `train` or `final`) reads `attention/*` and
    `visual/*`. `full=True` adds losses, teacher-forced px, zigzag, collapse, attention and the
    tests of sight. What passes over attention or changed images takes the first
    `evaluation.train_images` images. A reading that nothing supports is left out: when nothing is
    decoded there is a `coverage` of 0 and no `px_error`. All readings are of the raw lanes; what
    `decode` does to them afterwards is read again under the same names with `_processed`.

    Args:
        model: in any mode.
        bank: features of the split and the donors.
        split: the images.
        prefix: of the names. Other images than those of training may be scored by the data sets'
            own rules too.
        donors: images to swap in when the split has only one.
        full: take all readings, not only those of every evaluation.
        y_weight: of the objective; None: the config's last one.
        scored: told how the lanes lie in px, under their full names; whether the data sets' own
            rules, which cost more than decoding, are worth applying.
        known: what these weights wrote before; what they write now is added.
    """
    if not len(split):
        return {}
    training = prefix in ("train", "final")
    known = Known() if known is None else known
    few = split.first(model.config.evaluation.train_images)
    looks: Readings = {}
    tokens: Readings = {}
    if training or full:
        looks, tokens = looking_readings(model, bank, few, known)
    decoded = decode(model, bank, split, gap=full, known=known)
    own = px_readings(decoded.lanes, split.truth)
    score = not training and scored({f"{prefix}/{name}": value for name, value in own.items()})
    own |= lane_readings(decoded.lanes, split, model, score=score, shape=full)
    if processes(model.config.decode):
        lanes = process(decoded.lanes, model.config.decode)
        read = px_readings(lanes, split.truth)
        read |= lane_readings(lanes, split, model, score=score, shape=full)
        own |= {f"{name}_processed": value for name, value in read.items()}
    named: Readings = {}
    if training:
        short = ("uniformity", "effective_tokens")
        named |= {f"attention/{name}": looks[name] for name in short if name in looks}
        named |= {f"visual/{name}": value for name, value in tokens.items()}
    if full:
        own |= looks
        if decoded.gap is not None:
            own |= dict(zip(("step_logit_gap", "step_logit_gap_first"), decoded.gap, strict=True))
        forced = force(model, bank, split, y_weight=y_weight)
        own |= loss_readings(forced, split, model.tokenizer)
        own |= sight_readings(model, bank, few, donors, forced, known)
        if "px_error" in own and "px_error_teacher_forced" in own:
            own["exposure_gap"] = own["px_error"] - own["px_error_teacher_forced"]
    return named | {f"{prefix}/{name}": value for name, value in own.items()}


def prompted_readings(model: LaneLM, bank: Bank, split: EvalSplit, prefix: str) -> Readings:
    """Read how lanes go on whose first point is given, as LaneLM's paper gives a detector's.

    `px_error_prompted` and `coverage_prompted`, beside `px_error` and `coverage`: what the model
    does not find by itself is where its lanes begin, if these are much better.
    """
    if not len(split):
        return {}
    read = px_readings(go_on(model, bank, split), split.truth)
    short = ("px_error", "coverage")
    return {f"{prefix}/{name}_prompted": read[name] for name in short if name in read}


def lane_readings(
    lanes: Lanes, split: EvalSplit, model: LaneLM, *, score: bool, shape: bool
) -> Readings:
    """Read decoded lanes by the data sets' own rules (`score`), and their `shape`, beyond px."""
    read: Readings = {}
    if score:
        read |= official_readings(lanes, split, model.config)
    if shape:
        read |= shape_readings(lanes, split, model.tokenizer)
    return read


def tokenizer_floor(targets: Targets, tokenizer: Tokenizer, truth: Lanes | None = None) -> Readings:
    """Read the targets' own round trip through the tokenizer: no model can do better.

    `floor/px_error`, `floor/px_error_max` and `floor/bound` in px; `floor/beyond_bound` is the
    share of points that miss the bound the tokenizer claims (lost points among them). `truth` is
    what was labelled (`EvalSplit.truth`), where that is not what the targets hold.
    """
    floor = {"floor/bound": tokenizer.bound_px}
    back = tokenizer.decode(tokenizer.encode(targets.x)).double().numpy()
    labels = targets.x.double().numpy() if truth is None else truth
    error = np.abs(back - labels)[np.isfinite(labels)]  # nan: the point is lost
    if error.size:
        met = error <= tokenizer.bound_px + _BOUND_SLACK
        floor["floor/beyond_bound"] = float((~met).mean())
    known = error[np.isfinite(error)]
    if known.size:
        floor |= {"floor/px_error": float(known.mean()), "floor/px_error_max": float(known.max())}
    return floor


def shape_readings(decoded: Lanes, split: EvalSplit, tokenizer: Tokenizer) -> Readings:
    """Read zigzag against the targets' round trip, and collapse against the labels."""
    reference = tokenizer.decode(tokenizer.encode(split.targets.x)).double().numpy()
    return zigzag(decoded, reference, tokenizer.bin_width) | collapse(decoded, split.truth)


def loss_readings(forced: Forced, split: EvalSplit, tokenizer: Tokenizer) -> Readings:
    """Read what teacher forcing says, nats unless named px.

    `loss` is the x cross-entropy over points and the first end of each lane, `loss_y` that of y
    over the same steps; `loss_points` over points alone, and `loss_per_px` the same + ln(bin
    width); `loss_first_token` over each lane's first point. `px_error_teacher_forced` is of the
    most likely token after the true prefix, on rows where both have a point.
    """
    targets = split.targets
    steps, first = plain_steps(targets), first_points(targets.point)
    read = {"objective": forced.objective}
    if steps.any():
        read["loss"] = float(forced.nll[steps].mean())
        read["loss_y"] = float(forced.nll_y[steps].mean())
    if targets.point.any():
        read["loss_points"] = float(forced.nll[targets.point].mean())
        read["loss_per_px"] = loss_per_px(read["loss_points"], tokenizer.bin_width)
        read["loss_first_token"] = float(forced.nll[first].mean())
    error = np.abs(forced.lanes - split.truth)
    if np.isfinite(error).any():
        read["px_error_teacher_forced"] = float(np.nanmean(error))
    return read
