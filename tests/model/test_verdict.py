"""Criteria, gates and diagnosis on readings as trained jobs have them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from model.verdict import CRITERIA, Finding, Gate, diagnose, gates

HEALTHY = {
    "final/loss": 0.02,
    "final/loss_first_token": 0.03,
    "final/uniformity": 0.45,
    "final/uniformity_init": 0.985,
    "final/px_error": 1.1,
    "final/px_error_teacher_forced": 1.05,
    "final/exposure_gap": 0.05,
    "final/coverage": 0.998,
    "final/lane_count_error": 0.0,
    "final/length_error": 0.1,
    "final/points_ratio": 1.0,
    "final/collapse": 0.99,
    "final/collapse_lanes": 0.99,
    "final/zigzag": 0.1,
    "final/zigzag_flips": 0.0,
    "final/step_logit_gap": 3e-5,
    "final/step_logit_gap_first": 1e-5,
    "final/swap_px": 59.0,
    "final/swap_px_labels": 88.0,
    "final/swap_px_donor": 1.4,
    "final/swap_px_stay": 80.0,
    "final/swap_donor_coverage": 0.99,
    "final/swap_kept": 0.97,
    "final/swap_loss_first_token": 4.0,
    "floor/px_error": 1.0,
    "floor/px_error_max": 2.01,
    "floor/beyond_bound": 0.0,
    "train/clipped_share": 0.3,
    "train/grad_norm": 0.4,
    "train/loss_fall": 0.02,
    "train/loss_spikes": 0.0,
    "train/loss_overshoot": 1.0,
    "train/y_weight": 0.3,
    "visual/mean": 0.01,
    "visual/std": 1.1,
}
SETTINGS = {"loss.entropy_penalty": 0.0, "loss.y_schedule": "fixed", "loss.y_weight": 0.3}


def readings(**changes: float | None) -> dict[str, float]:
    """HEALTHY with `final__px_error=...` changed, or taken out (None)."""
    merged = dict(HEALTHY)
    for name, value in changes.items():
        if value is None:
            del merged[name.replace("__", "/")]
        else:
            merged[name.replace("__", "/")] = value
    return merged


def gate(name: str, settings: dict | None = None, **changes: float | None) -> Gate:
    found = gates(readings(**changes), SETTINGS | (settings or {}))
    return next(g for g in found if g.name == name)


def test_criteria_are_the_users() -> None:
    table = {c.name: [(k.metric, k.threshold) for k in c.conditions] for c in CRITERIA}
    assert table == {
        "loss": [("final/loss", 0.1)],
        "uniformity": [("final/uniformity", 0.5)],
        "px_error": [("final/px_error", 5.0)],
        "zigzag": [("final/zigzag", 1.0), ("final/zigzag_flips", 0.02)],
    }


def test_a_healthy_job_passes_every_gate_without_a_finding() -> None:
    assert {g.verdict for g in gates(HEALTHY, SETTINGS)} == {"passed"}
    assert diagnose(HEALTHY, SETTINGS) == ()


def test_gates_void_only_what_they_make_meaningless() -> None:
    read = {k.metric: c.name for c in CRITERIA for k in c.conditions}
    voids = {
        g.name: {read[name] for name in g.voids if name in read} for g in gates(HEALTHY, SETTINGS)
    }
    assert voids == {
        "coverage": {"px_error", "zigzag"},
        "lane_count": {"px_error", "zigzag"},
        "lane_length": {"px_error", "zigzag"},
        "round_trip": {"loss"},
        "step_logits": {"px_error"},
        "sees_image": set(),
        "uniformity_earned": set(),
    }


@pytest.mark.parametrize("split", ["val", "best", "test"])
@pytest.mark.parametrize("end", ["", "_processed"])
def test_lanes_on_other_images_have_gates_of_their_own(split: str, end: str) -> None:
    half = {f"{split}/coverage{end}": 0.5, f"{split}/px_error{end}": 2.0}
    half |= {f"{split}/lane_count_error{end}": 0.0, f"{split}/points_ratio{end}": 0.5}
    read = {g.name: g for g in gates(HEALTHY | half, SETTINGS)}
    found = read[f"{split}_coverage{end}"]
    assert found.verdict == "failed"
    assert "only 50.0% of the labelled points decoded on the" in found.note
    assert f"{split}/px_error{end}" in found.voids
    assert not any(name.startswith("final/") for name in found.voids)
    assert read[f"{split}_lane_count{end}"].verdict == "passed"
    assert read[f"{split}_lane_length{end}"].verdict == "passed"
    assert read["coverage"].verdict == "passed"
    assert not {g.name for g in gates(HEALTHY, SETTINGS)} & {f"{split}_coverage{end}"}
    assert f"{split}/px_error{end}" in read["step_logits"].voids


def test_lane_length() -> None:
    assert gate("lane_length", final__points_ratio=1.2).verdict == "passed"
    endless = gate("lane_length", final__points_ratio=1.21)
    assert endless.verdict == "failed"
    assert "do not end" in endless.note
    assert gate("lane_length", final__points_ratio=None).verdict == "not testable"
    both = {"final/points_ratio": 2.0, "best/points_ratio": 2.0}
    heads = [
        g.note.partition(":")[0] for g in gates(HEALTHY | both, SETTINGS) if "do not" in g.note
    ]
    assert len(set(heads)) == 2  # which images it is of stands before the colon


def test_coverage() -> None:
    assert gate("coverage", final__coverage=0.95).verdict == "passed"
    low = gate("coverage", final__coverage=0.949)
    assert (low.verdict, low.value) == ("failed", 0.949)
    nothing = gate("coverage", final__coverage=0.0, final__px_error=None)
    assert nothing.verdict == "failed"
    assert "nothing decoded" in nothing.note
    assert gate("coverage", final__coverage=None).verdict == "not testable"


def test_lane_count() -> None:
    assert gate("lane_count", final__lane_count_error=0.49).verdict == "passed"
    assert gate("lane_count", final__lane_count_error=0.5).verdict == "failed"


def test_round_trip() -> None:
    assert gate("round_trip", floor__beyond_bound=0.003).verdict == "passed"  # a clipped step
    clamped = gate("round_trip", floor__beyond_bound=0.97, floor__px_error_max=690.0)
    assert clamped.verdict == "failed"
    assert "690 px" in clamped.note


def test_step_logits() -> None:
    assert gate("step_logits", final__step_logit_gap=1e-3).verdict == "passed"
    assert gate("step_logits", final__step_logit_gap=0.4).verdict == "failed"


@pytest.mark.parametrize(
    ("moved", "labels", "kept", "verdict"),
    [
        (0.0, 88.0, 1.0, "failed"),
        (4.9, 20.0, 1.0, "failed"),  # under the error the px criterion allows
        (5.1, 20.0, 1.0, "passed"),
        (8.0, 100.0, 1.0, "failed"),  # under a tenth of the way to the other image's lanes
        (11.0, 100.0, 1.0, "passed"),
        (0.0, 88.0, 0.2, "passed"),  # most lanes vanish
        (None, 88.0, 0.0, "passed"),
        (0.0, 3.0, 1.0, "not testable"),  # the lanes lie alike in both images
        (None, 88.0, None, "not testable"),  # nothing decoded
        (59.0, None, None, "not testable"),  # no donor
    ],
)
def test_lanes_that_do_not_move_under_a_swap(
    moved: float | None, labels: float | None, kept: float | None, verdict: str
) -> None:
    found = gate(
        "sees_image", final__swap_px=moved, final__swap_px_labels=labels, final__swap_kept=kept
    )
    assert found.verdict == verdict
    assert found.note.startswith("memorises") == (verdict == "failed")


@pytest.mark.parametrize(
    ("own", "donor", "covered", "verdict"),
    [
        (1.0, 9.0, 0.98, "passed"),  # it writes the other image's lanes
        (1.0, 39.0, 0.98, "passed"),  # nearer to them than half of where it started
        (1.0, 41.0, 0.98, "failed"),  # gone, but not there
        (1.0, 75.0, 0.6, "failed"),
        (1.0, 9.0, 0.3, "failed"),  # a few points happen to lie well
        (1.0, None, 0.0, "failed"),  # nothing is written over another image
        (45.0, 75.0, 0.98, "not testable"),  # it never learned its own image: nothing to unmask
        (85.0, 20.0, 0.98, "not testable"),
        (None, 75.0, 0.98, "not testable"),
    ],
)
def test_lanes_that_leave_but_not_for_the_other_image(
    own: float | None, donor: float | None, covered: float, verdict: str
) -> None:
    found = gate(
        "sees_image",
        final__px_error=own,
        final__swap_px_stay=80.0,
        final__swap_px_donor=donor,
        final__swap_donor_coverage=covered,
    )
    assert found.verdict == verdict
    assert found.note.startswith("memorises") == (verdict == "failed")


@pytest.mark.parametrize(
    ("split", "px", "covered", "verdict"),
    [
        ("val", 9.0, 0.98, "passed"),
        ("val", 41.0, 0.98, "failed"),  # its training images' lanes would lie 80 px off
        ("val", 9.0, 0.3, "failed"),
        ("val", None, 0.0, "failed"),
        ("test", 41.0, 0.98, "failed"),  # no validation images: the test images say it
    ],
)
def test_images_told_apart_but_no_road_seen(
    split: str, px: float | None, covered: float, verdict: str
) -> None:
    held_out = {f"{split}/coverage": covered} | ({f"{split}/px_error": px} if px else {})
    (found,) = (g for g in gates(HEALTHY | held_out, SETTINGS) if g.name == "sees_image")
    assert found.verdict == verdict
    assert found.note.startswith("memorises: on images held out") == (verdict == "failed")
    never = HEALTHY | held_out | {"final/px_error": 45.0}  # no memory to unmask
    (found,) = (g for g in gates(never, SETTINGS) if g.name == "sees_image")
    assert (found.verdict, found.value) == ("not testable", None)
    assert found.note.startswith("it has not learned its own images: its lanes are 45 px off")


def test_uniformity_by_construction() -> None:
    name = "uniformity_earned"
    assert gate(name, final__uniformity_init=0.6).verdict == "passed"
    sharp = gate(name, final__uniformity_init=0.55)
    assert sharp.verdict == "failed"
    assert sharp.note.startswith("by construction")
    bought = gate(name, {"loss.entropy_penalty": 0.01})
    assert bought.verdict == "failed"
    assert "entropy_penalty" in bought.note
    missed = {"final__uniformity": 0.97, "final__uniformity_init": 0.55}
    assert gate(name, {"loss.entropy_penalty": 0.01}, **missed).verdict == "passed"
    assert gate(name, final__uniformity_init=None).verdict == "not testable"


def test_missing_and_broken_readings_are_not_testable() -> None:
    assert {g.verdict for g in gates({}, {})} == {"not testable"}
    broken = dict.fromkeys(HEALTHY, math.nan) | {"final/loss": math.inf}
    assert {g.verdict for g in gates(broken, SETTINGS)} == {"not testable"}
    assert diagnose({}, {}) == ()
    assert diagnose(broken, SETTINGS) == ()


def findings(settings: Any = None, **changes: float | None) -> dict[str, Finding]:
    found = diagnose(readings(**changes), SETTINGS | (settings or {}))
    return {finding.rule: finding for finding in found}


LEAK: dict[str, float | None] = {
    "final__loss_first_token": 0.001,
    "final__px_error": 290.0,
    "final__step_logit_gap": 9.0,
    "final__step_logit_gap_first": 9.0,
}
STAGED = {"loss.y_schedule": "staged", "loss.y_threshold": 0.1}


@pytest.mark.parametrize(
    ("rule", "settings", "changes"),
    [
        ("architecture", {}, {"final__loss": 1.4}),
        ("visual_encoder", {}, {"final__uniformity": 0.98}),
        ("far_off", {}, {"final__px_error": 21.0}),
        ("memorises", {}, {"final__swap_px": 0.2}),
        ("start_leak", {}, LEAK),
        (
            "decode_mismatch",
            {},
            {"final__step_logit_gap": 5.0, "final__px_error": 80.0},
        ),
        ("exposure_bias", {}, {"final__px_error": 9.0, "final__px_error_teacher_forced": 2.0}),
        ("tokenizer_floor", {}, {"floor__px_error": 3.0, "floor__px_error_max": 19.0}),
        ("lanes_do_not_end", {}, {"final__points_ratio": 1.5, "final__length_error": 12.0}),
        ("collapse", {}, {"final__collapse": 0.1, "final__collapse_images": 0.1}),
        ("clipping", {}, {"train__clipped_share": 0.99}),
        ("rate_too_high", {}, {"train__loss_spikes": 0.1}),
        ("rate_too_high", {}, {"train__loss_overshoot": 1.8}),
        ("under_trained", {}, {"train__loss_fall": 0.2, "final__loss": 0.4}),
        ("stage_never_reached", STAGED, {"train__y_weight": 0.0}),
        ("feature_scale", {}, {"visual__std": 12.0}),
    ],
)
def test_each_rule_speaks_on_its_fault_and_shows_its_readings(
    rule: str, settings: dict, changes: dict[str, float]
) -> None:
    assert rule not in findings(settings if rule != "stage_never_reached" else STAGED)
    found = findings(settings, **changes)[rule]
    merged = readings(**changes)
    assert found.readings
    assert all(merged[name] == value for name, value in found.readings.items())
    assert set(found.readings) & {name.replace("__", "/") for name in changes}
    assert found.text
    assert found.next


def test_the_users_readings_come_first() -> None:
    found = findings(
        final__loss=2.0, final__uniformity=0.99, train__clipped_share=1.0, final__swap_px=0.0
    )
    assert list(found)[:2] == ["architecture", "visual_encoder"]


def test_far_off_tells_tokens_from_exposure_from_loss() -> None:
    assert "tokenization" in findings(final__px_error=60.0, floor__px_error=31.0)["far_off"].text
    for forced in (1.05, 29.0):
        found = findings(final__px_error=60.0, final__px_error_teacher_forced=forced)["far_off"]
        assert "exposure" in found.text
    coarse = findings(final__px_error=60.0, floor__px_error=9.0)["far_off"]
    assert "exposure" in coarse.text  # the tokens cost 9 px of the 60
    unread = findings(final__px_error=60.0, final__px_error_teacher_forced=None)["far_off"]
    assert not any(cause in unread.text for cause in ("exposure", "the loss, for", "tokenization"))
    assert "probe" in unread.next
    off = findings(final__px_error=60.0, final__px_error_teacher_forced=50.0)["far_off"]
    assert "the loss, for" in off.text
    assert "decoding" in findings(**LEAK)["far_off"].text
    assert "far_off" not in findings(final__px_error=60.0, final__loss=1.2)  # architecture's


def test_high_uniformity_is_not_called_blindness_when_lanes_move() -> None:
    assert "not blind" in findings(final__uniformity=0.97)["visual_encoder"].text
    assert (
        "not blind"
        not in findings(final__uniformity=0.97, final__swap_px=0.1)["visual_encoder"].text
    )
    lost = findings(final__uniformity=0.97, final__swap_px_donor=75.0)  # moves, but not there
    assert "memorises" in lost
    assert "not blind" not in lost["visual_encoder"].text


def test_other_input_in_decoding_is_not_called_exposure_bias() -> None:
    assert "exposure_bias" not in findings(**LEAK)
    assert "decode_mismatch" not in findings(**LEAK)
    shifted: dict[str, float | None] = {"final__step_logit_gap": 5.0, "final__px_error": 80.0}
    assert "start_leak" not in findings(**shifted)
    late = findings(final__step_logit_gap=5.0, final__step_logit_gap_first=5.0)
    assert set(late) == {"decode_mismatch"}  # a gap that has not shown in px yet


def test_points_where_blanks_belong_are_not_called_exposure_bias() -> None:
    endless: dict[str, float | None] = {"final__points_ratio": 2.0, "final__px_error": 26.0}
    found = findings(**endless)
    assert set(found) == {"far_off", "lanes_do_not_end"}
    assert "blank" in found["far_off"].text
