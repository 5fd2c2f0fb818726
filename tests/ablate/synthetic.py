"""A study with hand-made results: strategy 1 in small, every kind of outcome in it."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from ablate.ledger import Ledger
from ablate.nouns import (
    Condition,
    Criterion,
    Design,
    Factor,
    Finding,
    Gate,
    Job,
    Level,
    Plan,
    Result,
    Study,
)

CRITERIA = (
    Criterion("loss", (Condition("final/loss", 0.1),)),
    Criterion("uniformity", (Condition("final/uniformity", 0.5),)),
    Criterion("px_error", (Condition("final/px_error", 5.0),)),
    Criterion("zigzag", (Condition("final/zigzag", 1.0), Condition("final/zigzag_flips", 0.02))),
)

FACTORS = (
    Factor("tokens", (Level("full", {}), Level("p5", {"visual.levels": "p5"}))),
    Factor("lr", (Level("3e-4", {}), Level("1e-4", {"optim.lr": 1e-4}))),
    Factor("mode", (Level("absolute", {}), Level("relative", {"tokenizer.mode": "relative"}))),
)

HOSTILE = {
    "tokens": '_<i onload="alert(1)">$\\frac$',
    "p5": "</title><script>alert(2)</script>",
    "full": '曲線 ◎ "url(#a)" href="#b" id="c"',
    "lr": "'{{ 7 * 7 }}' %s | _lr_ \\ `*` &amp;",
    "1e-4": "]]>--><b>1e-4</b> ${x}$",
}
"""Names of factors and levels -> others that markup, mathematics or a font may trip over."""

SETTINGS = {
    "visual.levels": "full",
    "optim.lr": 3e-4,
    "tokenizer.mode": "absolute",
    "data.roots": [],
    "model.d_model": 128,
}

EFFECTS = {"tokens": 0.5, "lr": 0.25, "mode": 1.0}
"""Factor on the px error of leaving the base level."""


def study(**changes: object) -> Study:
    made = Study(
        name="little",
        question="Which change makes LaneLM <learn> & why?",
        base={"preset": "v4_fixed"},
        factors=FACTORS,
        designs=(Design("one_at_a_time"), Design("leave_one_out")),
        seeds=(0, 1, 2),
        criteria=CRITERIA,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def hostile(**changes: object) -> Study:
    """The same study by names that no page, chart or table may take for its own markup."""

    def renamed(factor: Factor) -> Factor:
        levels = tuple(replace(v, name=HOSTILE.get(v.name, v.name)) for v in factor.levels)
        return Factor(HOSTILE.get(factor.name, factor.name), levels)

    return study(factors=tuple(map(renamed, FACTORS)), **changes)


def plain(text: str) -> str:
    """A name, or a label made of names, as the study has it that is not hostile."""
    for name, other in HOSTILE.items():
        text = text.replace(other, name)
    return text


def plan(of: Study) -> Plan:
    first = {factor.name: factor.names[0] for factor in of.factors}
    last = {factor.name: factor.names[-1] for factor in of.factors}
    arms = {"base": first}
    arms |= {f"{f.name}={f.names[-1]}": first | {f.name: f.names[-1]} for f in of.factors}
    arms |= {"all": last}
    arms |= {f"all but {f.name}": last | {f.name: f.names[0]} for f in of.factors}
    jobs = []
    for label, levels in arms.items():
        settings = dict(SETTINGS)
        for name, level in levels.items():
            settings |= of.factor(name).level(level).settings
        jobs += [
            Job(
                id=f"{abs(hash_of(label)):08x}{seed:04x}",
                arm=label,
                levels=levels,
                seed=seed,
                settings={**settings, "seed": seed},
                design="one_at_a_time" if "all" not in label else "leave_one_out",
                fingerprints={"data": "d" * 12},
            )
            for seed in of.seeds
        ]
    return Plan(jobs)


def hash_of(label: str) -> int:
    return sum(ord(letter) * 31**place for place, letter in enumerate(label)) % 2**32


def metrics(job: Job, px: float = 40.0) -> dict[str, float]:
    """Readings in which `tokens` halves the px error and `lr` quarters it, with noise by seed."""
    noise = random.Random(job.id).uniform(0.97, 1.03) * (1 + 0.05 * job.seed)
    levels = {plain(name): plain(level) for name, level in job.levels.items()}
    for name, factor in EFFECTS.items():
        px *= factor if levels[name] != FACTORS_FIRST[name] else 1.0
    return {
        "final/loss": 0.01 * px * noise,
        "final/uniformity": 0.9 if levels["lr"] == "3e-4" else 0.42 * noise,
        "final/px_error": px * noise,
        "final/zigzag": 0.3 * noise,
        "final/zigzag_flips": 0.001,
        "final/coverage": 0.99,
        "cost/seconds": 20.0 if levels["tokens"] == "p5" else 120.0,
    }


FACTORS_FIRST = {factor.name: factor.names[0] for factor in FACTORS}


def done(job: Job, readings: Mapping[str, float] | None = None) -> Result:
    return Result(
        job_id=job.id,
        levels=job.levels,
        seed=job.seed,
        state="done",
        metrics=metrics(job) if readings is None else readings,
        code={"commit": "abc123", "core": "c0ffee"},
        environment={"python": "3.11", "torch": "2.13.0", "cpu": "A <CPU>"},
    )


def results(of: Plan) -> dict[str, Result]:
    """All done, but one seed of `mode=relative` diverged and one of `all but mode` failed."""
    made = {job.id: done(job) for job in of.jobs}
    for arm, state, error in (
        ("mode=relative", "diverged", "loss was nan at step 12 <script>alert(1)</script>"),
        ("all but mode", "failed", "RuntimeError: out of luck"),
    ):
        job = next((j for j in of.jobs if plain(j.arm) == arm and j.seed == 1), None)
        if job is None:  # a study of one seed
            continue
        made[job.id] = replace(
            made[job.id],
            state=state,  # type: ignore[arg-type]
            error=error,
            metrics={"train/loss": math.nan} if state == "diverged" else {},
        )
    return made


class Core:
    """Gates and findings in the manner of LaneLM's."""

    def gates(self, readings: Mapping[str, float], settings: object) -> tuple[Gate, ...]:
        coverage = readings.get("final/coverage", 0.0)
        swap = readings.get("final/swap_px", 30.0)
        return (
            Gate(
                "coverage",
                "passed" if coverage >= 0.95 else "failed",
                coverage,
                ("px_error", "zigzag"),
                "" if coverage >= 0.95 else f"only {coverage:.0%} of the lane rows are decoded",
            ),
            Gate(
                "sees",
                "passed" if swap >= 5 else "failed",
                swap,
                (),
                "" if swap >= 5 else "memorises: lanes do not move when the image is swapped",
            ),
        )

    def diagnose(self, readings: Mapping[str, float], settings: object) -> tuple[Finding, ...]:
        if readings.get("final/uniformity", 0.0) <= 0.85:
            return ()
        return (
            Finding(
                "visual encoder",
                "attention is spread evenly: the image is not used",
                {"final/uniformity": readings["final/uniformity"]},
                "try visual.position=aligned with model.attention=qk_norm",
            ),
        )


def keep(out: Path, of: Plan, results: Mapping[str, Result]) -> Ledger:
    """Put jobs with their histories, one picture each and their results on disk."""
    ledger = Ledger(out)
    ledger.prepare()
    for job in of.jobs:
        folder = ledger.create(job)
        for step in range(0, 50, 10):
            loss = 5.0 * math.exp(-step / 15) + 0.01 * job.seed
            event = {"step": step, "metrics": {"train/loss": loss, "train/lr": 1e-4}}
            ledger.append_event(job.id, {"time": 1.7e9 + step, **event})
        draw(folder / "pictures" / "overlay_train_0_000040.png", job.seed)
        draw(folder / "pictures" / "attention_train_0_000040.png", job.seed + 5)
        if job.id in results:
            ledger.write_result(results[job.id])
    return ledger


def draw(path: Path, shade: int) -> None:
    """A small picture that compresses like one."""
    path.parent.mkdir(exist_ok=True)
    image = np.full((64, 160, 3), 40 + shade, np.uint8)
    cv2.line(image, (20 + shade, 63), (75, 10), (0, 255, 0), 2)
    cv2.imwrite(str(path), image)
