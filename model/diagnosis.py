"""Why a job failed: rules over its readings, each with the next experiment to run.

Pure. The user's three failure readings come first, then ours. A rule is silent when a reading it
needs is missing. Several may speak: they are leads, and none says that it is the only cause.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from model.criteria import LOGIT_GAP, TOO_LONG, Gate, gates, threshold

Settings = Mapping[str, object]


@dataclass(frozen=True)
class Finding:
    """What a rule says of a job."""

    rule: str
    text: str
    readings: Mapping[str, float]
    """what supports it"""
    next: str
    """the experiment that would tell"""


class Known(dict[str, float]):
    """The readings that are there and finite; a missing one is nan, so every comparison fails."""

    def __missing__(self, name: str) -> float:
        return math.nan

    def finding(self, rule: str, text: str, next: str, *names: str) -> Finding:
        """Make a finding supported by the readings `names`, of which missing ones are left out."""
        return Finding(rule, text, {name: self[name] for name in names if name in self}, next)


Rule = Callable[[Known, Settings], Finding | None]

LOSS_FAILED = 1.0  # the user's
BLIND = 0.95  # the user's
FAR_PX = 20.0  # px, four times what the criterion allows
FLOOR_PX = 2.5  # half of what the criterion allows
CAUSE = 0.5  # of the px error: what costs more than half of it is what is wrong
SURE = 0.1  # nats; a token that is predicted with about 90 %
ONE_LINE = 0.3  # of the labels' spread
ALL_THE_TIME = 0.9  # of the steps
SPIKES = 0.02  # of the means that the trend is read from
OVERSHOOT = 1.2  # of the untrained loss; measured: at most 1.07 at sound rates, over 1.2 at 30-fold
STILL_FALLING = 0.1  # of the loss, from one tenth of the run to the next
MANY = 64  # images
SCALE = (0.1, 3.0)  # standard deviation of the tokens, whose embedded neighbours have about 1


def diagnose(metrics: Mapping[str, float], settings: Settings) -> tuple[Finding, ...]:
    """Apply all rules to a job's readings (`final/...`, `train/...`) and flat settings."""
    known = Known((name, value) for name, value in metrics.items() if math.isfinite(value))
    found = (rule(known, settings) for rule in RULES)
    return tuple(finding for finding in found if finding is not None)


def _architecture(known: Known, settings: Settings) -> Finding | None:
    loss = known["final/loss"]
    if not loss > LOSS_FAILED:
        return None
    text = f"the loss stayed at {loss:.2g} (> 1.0): the architecture cannot write these lanes, or "
    text += "never had the chance to"
    wider = "a wider and a shallower decoder (model.preset) at three rates (optim.lr), same data"
    return known.finding("architecture", text, wider, "final/loss", "final/loss_first_token")


def _visual_encoder(known: Known, settings: Settings) -> Finding | None:
    uniformity, moved = known["final/uniformity"], known["final/swap_px"]
    if not uniformity > BLIND:
        return None
    text = f"attention stayed uniform ({uniformity:.3f} > 0.95): the visual encoder gives nothing "
    text += "to find"
    if moved > threshold("final/px_error") and _sees(known, settings):
        text += f"; yet its lanes move {moved:.3g} px when the image is swapped, so it is not blind"
    next = (
        "visual.position=aligned with model.attention=qk_norm against plain, on 64 images or more"
    )
    names = ("final/uniformity", "final/uniformity_init", "final/swap_px")
    return known.finding("visual_encoder", text, next, *names)


def _far_off(known: Known, settings: Settings) -> Finding | None:
    px, forced = known["final/px_error"], known["final/px_error_teacher_forced"]
    floor = known["floor/px_error"]
    if not (px > FAR_PX and known["final/loss"] <= LOSS_FAILED):
        return None
    text = f"its lanes lie {px:.3g} px off at a loss of {known['final/loss']:.2g}: "
    if floor > CAUSE * px:
        text += f"tokenization, whose round trip alone costs {floor:.3g} px"
        next = "tokenizer.mode=absolute against this one, everything else equal"
    elif known["final/step_logit_gap"] > LOGIT_GAP:
        text += "decoding, which reads another input than training does"
        next = "the legacy levels of model.start, decode_shift and decode_y_offset off, one by one"
    elif known["final/points_ratio"] > TOO_LONG:
        text += "rows that should be blank, for it writes points there and goes on from them"
        next = "loss.ends=learned, then loss.ends_weight=1 against 0.1"
    elif forced < CAUSE * px:
        text += f"exposure bias, for on the true prefix it is {forced:.3g} px off"
        next = "exposure.mode=scheduled_sampling against teacher_forcing"
    elif math.isnan(forced):
        text += "why, only its px on the true prefix could tell, and that was not read"
        next = "python -m model probe CHECKPOINT: final/px_error_teacher_forced against px_error"
    else:
        text += "the loss, for it is off on the true prefix too and the tokens could do better"
        next = "loss.soft_bins=1 and loss.y_weight=0, each alone"
    names = ("final/loss", "final/px_error", "final/px_error_teacher_forced", "floor/px_error")
    names += ("final/step_logit_gap",)
    return known.finding("far_off", text, next, *names)


def _memorises(known: Known, settings: Settings) -> Finding | None:
    gate = _gate("sees_image", known, settings)
    if gate.verdict != "failed":
        return None
    names = ("final/swap_px", "final/swap_px_labels", "final/swap_px_donor", "final/swap_px_stay")
    names += ("val/px_error", "test/px_error")
    trained = settings.get("data.train_images", 1)
    many = 8 * trained if isinstance(trained, int) and trained >= MANY else MANY
    next = f"the same arm on {many} images or more (data.train_images): too many to know by heart"
    return known.finding("memorises", gate.note, next, *names)


def _start_leak(known: Known, settings: Settings) -> Finding | None:
    first, px = known["final/loss_first_token"], known["final/px_error"]
    gap = known["final/step_logit_gap_first"]
    if not (gap > LOGIT_GAP and first < SURE and px > threshold("final/px_error")):
        return None
    text = f"the first token costs {first:.2g} nats in training and lanes lie {px:.3g} px off in "
    text += "decoding: training reads at the start what decoding does not have"
    names = ("final/loss_first_token", "final/px_error", "final/step_logit_gap_first")
    return known.finding("start_leak", text, "model.start=bos against this one", *names)


def _decode_mismatch(known: Known, settings: Settings) -> Finding | None:
    gap = known["final/step_logit_gap"]
    if not gap > LOGIT_GAP or _start_leak(known, settings):
        return None
    text = f"decoding reads another input than training: the same prefix gives logits {gap:.2g} "
    text += "apart"
    next = "model.decode_shift=false and model.decode_y_offset=0, each alone"
    names = ("final/step_logit_gap", "final/step_logit_gap_first", "final/px_error")
    return known.finding("decode_mismatch", text, next, *names)


def _exposure_bias(known: Known, settings: Settings) -> Finding | None:
    px, forced = known["final/px_error"], known["final/px_error_teacher_forced"]
    allowed = threshold("final/px_error")
    if not (forced < allowed <= px and px > 2 * forced):
        return None
    if known["final/step_logit_gap"] > LOGIT_GAP:  # not its own errors: another input
        return None
    if known["final/points_ratio"] > TOO_LONG:  # it was not taught where lanes begin and end
        return None
    text = f"{forced:.2g} px off on the true prefix, {px:.3g} px on its own: it never learned to "
    text += "recover from its errors"
    next = "exposure.mode=scheduled_sampling, and exposure.input_noise=2, each alone"
    names = ("final/px_error", "final/px_error_teacher_forced", "final/exposure_gap")
    return known.finding("exposure_bias", text, next, *names)


def _floor(known: Known, settings: Settings) -> Finding | None:
    floor = known["floor/px_error"]
    if not floor > FLOOR_PX:
        return None
    text = f"the tokenizer's own round trip costs {floor:.3g} px "
    text += f"(at most {known['floor/px_error_max']:.3g}): no model can do better"
    next = "more bins (tokenizer.n_bins=800), or tokenizer.mode=absolute"
    return known.finding("tokenizer_floor", text, next, "floor/px_error", "floor/px_error_max")


def _no_ends(known: Known, settings: Settings) -> Finding | None:
    ratio = known["final/points_ratio"]
    if not ratio > TOO_LONG:
        return None
    text = f"lanes do not end: {ratio:.2g} points decoded per labelled one"
    next = "loss.ends=learned, then loss.ends_weight=1 against 0.1"
    names = ("final/points_ratio", "final/length_error", "final/lane_count_error")
    return known.finding("lanes_do_not_end", text, next, *names)


def _collapse(known: Known, settings: Settings) -> Finding | None:
    spread = known["final/collapse"]
    if not spread < ONE_LINE:
        return None
    between = "images" if known["final/collapse_images"] == spread else "the lanes of an image"
    text = f"collapse: the decoded lanes keep {spread:.0%} of the labels' spread between {between}"
    next = "data.lane_order=left_to_right and tokenizer.row_order=bottom_up, each alone"
    names = ("final/collapse", "final/collapse_lanes", "final/collapse_images")
    return known.finding("collapse", text, next, *names)


def _clipping(known: Known, settings: Settings) -> Finding | None:
    share = known["train/clipped_share"]
    if not share > ALL_THE_TIME:
        return None
    text = f"{share:.0%} of the steps were clipped: only the gradients' directions count, and the "
    text += "step is the rate's (Adam does not feel a clip that always binds, whatever its height)"
    next = "optim.clip=null against this one, at this rate (optim.lr) and at one 3 times lower"
    return known.finding("clipping", text, next, "train/clipped_share", "train/grad_norm")


def _rate_too_high(known: Known, settings: Settings) -> Finding | None:
    spikes, most = known["train/loss_spikes"], known["train/loss_overshoot"]
    said = []
    if most > OVERSHOOT:
        said.append(f"rose to {most:.2g} times that of the untrained weights")
    if spikes > SPIKES:
        said.append(f"jumped to over twice its recent level {spikes:.0%} of the time")
    if not said:
        return None
    text = f"the loss {' and '.join(said)}: the rate is too high"
    names = ("train/loss_overshoot", "train/loss_spikes", "train/grad_norm_growth")
    next = "optim.lr 3 times lower, and optim.warmup=50 at this rate"
    return known.finding("rate_too_high", text, next, *names)


def _under_trained(known: Known, settings: Settings) -> Finding | None:
    fall, loss = known["train/loss_fall"], known["final/loss"]
    if not (fall > STILL_FALLING and loss >= threshold("final/loss")):
        return None
    text = f"under-trained: the loss ({loss:.2g}) still fell by {fall:.0%} from the last tenth of "
    text += "the run but one to the last"
    return known.finding("under_trained", text, "optim.steps twice as many", "train/loss_fall")


def _stage_never_reached(known: Known, settings: Settings) -> Finding | None:
    reached, wanted = known["train/y_weight"], settings.get("loss.y_weight")
    if settings.get("loss.y_schedule") != "staged" or not isinstance(wanted, int | float):
        return None
    if not reached < wanted - 1e-9:
        return None
    stage = "the y loss never began" if reached == 0 else f"the y weight ended at {reached:.2g}"
    text = f"{stage}: the staged schedule waited for an x loss of {settings['loss.y_threshold']}"
    next = "more steps (optim.steps), or a higher loss.y_threshold"
    return known.finding("stage_never_reached", text, next, "train/y_weight", "final/loss")


def _feature_scale(known: Known, settings: Settings) -> Finding | None:
    mean, std = known["visual/mean"], known["visual/std"]
    if not (std < SCALE[0] or std > SCALE[1] or abs(mean) > max(std, SCALE[1])):
        return None
    text = f"the visual tokens (mean {mean:.2g}, std {std:.2g}) are on another scale than the rows "
    text += "that look at them"
    next = "visual.norm=standardize, and visual.scale=0.1 after layernorm, each alone"
    names = ("visual/mean", "visual/std", "visual/feature_mean", "visual/feature_std")
    return known.finding("feature_scale", text, next, *names)


RULES: tuple[Rule, ...] = (
    _architecture,
    _visual_encoder,
    _far_off,
    _memorises,
    _start_leak,
    _decode_mismatch,
    _exposure_bias,
    _floor,
    _no_ends,
    _collapse,
    _clipping,
    _rate_too_high,
    _under_trained,
    _stage_never_reached,
    _feature_scale,
)


def _sees(known: Known, settings: Settings) -> bool:
    return _gate("sees_image", known, settings).verdict == "passed"


def _gate(name: str, known: Known, settings: Settings) -> Gate:
    return next(gate for gate in gates(known, settings) if gate.name == name)
