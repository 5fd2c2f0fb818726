"""Success criteria, and the gates that say whether a reading may be taken at its word.

Pure: readings by their agreed names and flat settings in, values out. A reading that is missing or
not finite makes what depends on it "not testable", never passed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Metrics = Mapping[str, float]
Settings = Mapping[str, object]
Outcome = Literal["passed", "failed", "not testable"]


@dataclass(frozen=True)
class Condition:
    """Met by `value < threshold`."""

    metric: str
    threshold: float


@dataclass(frozen=True)
class Criterion:
    """Met when all its conditions are."""

    name: str
    conditions: tuple[Condition, ...]


@dataclass(frozen=True)
class Gate:
    """A check that qualifies what the readings say."""

    name: str
    verdict: Outcome
    value: float | None
    voids: tuple[str, ...]
    """readings that mean nothing when the gate failed"""
    note: str


CRITERIA: tuple[Criterion, ...] = (
    Criterion("loss", (Condition("final/loss", 0.1),)),
    Criterion("uniformity", (Condition("final/uniformity", 0.5),)),
    Criterion("px_error", (Condition("final/px_error", 5.0),)),
    Criterion("zigzag", (Condition("final/zigzag", 1.0), Condition("final/zigzag_flips", 0.02))),
)

PX = ("px_error", "px_error_p95", "px_error_max", "px_error_slot")
ZIGZAG = ("zigzag", "zigzag_flips")
COUNTED = ("coverage", "lane_count_error", "points_ratio")
LOSSES = ("loss", "objective", "loss_points", "loss_per_px", "loss_first_token")
SPLITS = {
    "final": "",
    "val": " on the validation images",
    "best": " on the validation images by the best weights",
    "test": " on the test images",
}
"""Prefixes of free-running readings, and how notes name the images; only final/ reads zigzag."""
PROCESSED = "_processed"
"""Ends the names of the readings of lanes that `decode` worked on; they have gates of their own."""

COVERAGE = 0.95
LANE_COUNT = 0.5
TOO_LONG = 1.2
"""decoded points per labelled point: lanes that do not end lie on the labels while there are any"""
BEYOND_BOUND = 0.01
"""Share of label points whose round trip may miss the tokenizer's bound: it holds for steps that
fit max_abs_dx, and in real lanes under 0.3 % of the steps do not fit 32 px."""
LOGIT_GAP = 0.01
"""nats. Float32 with and without the cache differs by some 1e-5; another input by whole nats."""
MOVED_PX = 5.0
"""px; less is within the error that the px criterion allows on the label itself."""
MOVED_SHARE = 0.1
"""of the distance between the two images' own labels: 8 px where the lanes are 100 px apart is
noise from unfamiliar features, not sight"""
KEPT = 0.5
"""share of the points; when fewer survive the swap, the image mattered, wherever the rest lies"""
FOLLOWED = 0.5
"""of the way: lanes written over another image must end nearer to its labels than half of where
staying put would leave them"""
SHARP_AT_START = 0.6


def gates(metrics: Metrics, settings: Settings) -> tuple[Gate, ...]:
    """Say what qualifies the readings, in the order in which to read them.

    A split's own gates (`coverage` of final/, `best_coverage` of best/ and so on) are there where
    it was read.
    """
    known = {name: value for name, value in metrics.items() if math.isfinite(value)}
    return (
        *_lanes(known),
        _round_trip(known),
        _step_logits(known),
        _sees_image(known),
        _earned(known, settings),
    )


def _gate(name: str, value: float | None, passed: bool, voids: tuple[str, ...], note: str) -> Gate:
    if value is None:
        return Gate(name, "not testable", None, voids, note)
    return Gate(name, "passed" if passed else "failed", value, voids, "" if passed else note)


def _lanes(known: Metrics) -> Iterator[Gate]:
    """Of every split that was read, raw and processed: are the lanes there, as many and as long?

    Without that a px error is flattering: it is of the points where label and lane both are.
    """
    for processed in ("", PROCESSED):
        for split, where in SPLITS.items():
            names = (f"{split}/{name}{processed}" for name in COUNTED)
            read = [known.get(name) for name in names]
            if (split, processed) != ("final", "") and read == [None] * len(read):
                continue
            placed = (*PX, *ZIGZAG) if split == "final" else PX
            voids = tuple(f"{split}/{name}{processed}" for name in placed)
            start, place = (
                "" if split == "final" else f"{split}_",
                where + processed.replace("_", " "),
            )
            yield _coverage(f"{start}coverage{processed}", read[0], voids, place)
            yield _lane_count(f"{start}lane_count{processed}", read[1], voids, place)
            yield _lane_length(f"{start}lane_length{processed}", read[2], voids, place)


def _coverage(name: str, value: float | None, voids: tuple[str, ...], where: str) -> Gate:
    if value is None:
        return _gate(name, None, False, voids, "no lane is labelled")
    if value == 0:
        return _gate(name, 0.0, False, voids, f"nothing decoded where the labels are{where}")
    note = f"only {value:.1%} of the labelled points decoded{where}"
    return _gate(name, value, value >= COVERAGE, voids, note)


def _lane_count(name: str, value: float | None, voids: tuple[str, ...], where: str) -> Gate:
    if value is None:
        return _gate(name, None, False, voids, "nothing was decoded")
    said = f"{value:.2g}"
    note = f"{said} lane{'' if said == '1' else 's'} too many or too few per image{where}"
    return _gate(name, value, value < LANE_COUNT, voids, note)


def _lane_length(name: str, value: float | None, voids: tuple[str, ...], where: str) -> Gate:
    if value is None:
        return _gate(name, None, False, voids, "no lane is labelled")
    note = f"lanes do not end{where}: {value:.2g} points decoded per labelled one"
    return _gate(name, value, value <= TOO_LONG, voids, note)


def _round_trip(known: Metrics) -> Gate:
    value, worst = known.get("floor/beyond_bound"), known.get("floor/px_error_max")
    voids = tuple(f"final/{name}" for name in LOSSES)
    if value is None or worst is None:
        return _gate("round_trip", None, False, voids, "no label went through the tokenizer")
    note = f"the tokens do not say where the lane is: {value:.1%} of the points beyond the "
    note += f"tokenizer's bound, {worst:.3g} px at most"
    return _gate("round_trip", value, value <= BEYOND_BOUND, voids, note)


def _step_logits(known: Metrics) -> Gate:
    """Read on the training images; decoding that is another model's is so on any image."""
    name, value = "step_logits", known.get("final/step_logit_gap")
    voids = tuple(f"{split}/{px}{end}" for end in ("", PROCESSED) for split in SPLITS for px in PX)
    if value is None:
        return _gate(name, None, False, voids, "nothing was decoded")
    note = f"decoding is not what was trained: its logits differ by {value:.2g} from training's"
    return _gate(name, value, value < LOGIT_GAP, voids, f"{note} on one prefix")


def _sees_image(known: Metrics) -> Gate:
    """Voids nothing: the criteria stand as they are, this says what meeting them proves.

    Lanes that stay where they are when the image is swapped are memorised. So are lanes that are
    right on their own image and leave it for nowhere: a strange image breaks a memory without
    replacing it. Only lanes that go to the other image's labels show that the model looks there.
    Where both images were trained on, that shows only that it tells them apart: then its lanes on
    images that it was not trained on decide. Lanes that move but never lay on their own image's
    labels say nothing: there is no learning to tell from sight.
    """
    name = "sees_image"
    moved, kept = known.get("final/swap_px"), known.get("final/swap_kept")
    apart = known.get("final/swap_px_labels")
    if apart is None:
        return _gate(name, None, False, (), "no other image to swap in")
    if apart < MOVED_PX:
        note = f"the images swapped have their lanes in one place ({apart:.2g} px apart)"
        return _gate(name, None, False, (), note)
    if kept is None:
        return _gate(name, None, False, (), "nothing decoded")
    stays = moved is not None and moved < max(MOVED_PX, MOVED_SHARE * apart)
    if stays and kept >= KEPT:
        note = f"memorises: its lanes move {moved:.2g} px when the image is swapped for one whose "
        note += f"lanes lie {apart:.3g} px away"
        return Gate(name, "failed", moved, (), note)
    if unlearned := _unlearned(known):
        return _gate(name, None, False, (), unlearned)
    if lost := _lost(known) or _lost_held_out(known):
        return Gate(name, "failed", moved, (), lost)
    note = "its lanes vanish with their image" if moved is None or kept < KEPT else ""
    return Gate(name, "passed", moved, (), note)


def _lost(known: Metrics) -> str:
    """Say how far from another image's lanes a model ends that writes its own image's well.

    Empty when it goes there, or when that was not read.
    """
    if (stay := known.get("final/swap_px_stay")) is None:
        return ""
    donor, covered = known.get("final/swap_px_donor"), known.get("final/swap_donor_coverage", 0.0)
    if donor is not None and donor <= FOLLOWED * stay and covered >= KEPT:
        return ""
    where = "writes no lane there" if donor is None else f"is {donor:.3g} px off its lanes"
    note = f"memorises: over another image it {where} (staying put would be {stay:.3g} px off)"
    return note if covered >= KEPT else f"{note}, with {covered:.0%} of their points"


def _lost_held_out(known: Metrics) -> str:
    """Say how far off a model is on images held out, as `_lost` does on an image swapped in.

    The validation images' readings are the last weights'; the test images' stand in for them.
    """
    stay = known.get("final/swap_px_stay")
    split = next((s for s in ("val", "test") if f"{s}/coverage" in known), None)
    if stay is None or split is None:
        return ""
    px, covered = known.get(f"{split}/px_error"), known[f"{split}/coverage"]
    if px is not None and px <= FOLLOWED * stay and covered >= KEPT:
        return ""
    where = "writes no lane" if px is None else f"is {px:.3g} px off"
    note = f"memorises: on images held out it {where} "
    note += f"(another image's lanes would be {stay:.3g} px off)"
    return note if covered >= KEPT else f"{note}, with {covered:.0%} of the points"


def _unlearned(known: Metrics) -> str:
    """Say how far off its own images' lanes a model is that has not learned them; "" if it has."""
    own, stay = known.get("final/px_error"), known.get("final/swap_px_stay")
    if own is None:
        return "it has not learned its own images: no lane of theirs is decoded"
    if stay is None or own <= FOLLOWED * stay:
        return ""
    note = f"it has not learned its own images: its lanes are {own:.3g} px off there, on another "
    return f"{note}image they would be {stay:.3g} px off"


def _earned(known: Metrics, settings: Settings) -> Gate:
    """Voids nothing: a low uniformity that no learning brought about is marked."""
    name = "uniformity_earned"
    value, start = known.get("final/uniformity"), known.get("final/uniformity_init")
    if value is None or start is None:
        return _gate(name, None, False, (), "uniformity was not read at both ends of the training")
    reached = value < threshold("final/uniformity")
    penalty = settings.get("loss.entropy_penalty", 0.0)
    if isinstance(penalty, int | float) and penalty > 0:
        note = f"by construction: loss.entropy_penalty={penalty:g} pays for it directly"
        return _gate(name, start, not reached, (), note)
    note = f"by construction: it was {start:.2f} before any training"
    return _gate(name, start, not (reached and start < SHARP_AT_START), (), note)


def threshold(metric: str) -> float:
    """Give what a criterion's reading must stay under."""
    conditions = (c for criterion in CRITERIA for c in criterion.conditions)
    return next(c.threshold for c in conditions if c.metric == metric)
