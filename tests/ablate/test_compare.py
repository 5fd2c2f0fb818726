"""What counts as evidence for an effect: which jobs, once each, and what is missing said."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import pytest

from ablate.compare import Comparison, compare, void_metrics
from ablate.nouns import (
    UNSEARCHED,
    Arm,
    Condition,
    Criterion,
    Design,
    Factor,
    Gate,
    Job,
    Level,
    Result,
    Study,
)

A = Factor("a", (Level("0", {}), Level("1", {})))
B = Factor("b", (Level("0", {}), Level("1", {}), Level("2", {})))
CRITERIA = (Criterion("loss", (Condition("final/loss", 0.1),)),)


def study(*factors: Factor, designs: tuple[Design, ...] = (Design("factorial"),)) -> Study:
    return Study(
        name="s",
        question="?",
        base={},
        factors=factors,
        designs=designs,
        seeds=(0, 1, 2),
        criteria=CRITERIA,
    )


def jobs(*combinations: Mapping[str, str], seeds: int = 3) -> list[Job]:
    made = []
    for levels in combinations:
        label = "/".join(levels.values())
        made += [
            Job(f"{label}-{seed}", label, levels, seed, {"seed": seed}, "factorial")
            for seed in range(seeds)
        ]
    return made


def results(of: Iterable[Job], loss: Callable[[Job], float]) -> dict[str, Result]:
    return {j.id: Result(j.id, j.levels, j.seed, "done", {"final/loss": loss(j)}) for j in of}


def noisy(job: Job, size: float = 0.1) -> float:
    return random.Random(job.id).uniform(1 - size, 1 + size)


def main_effect(found: Comparison, factor: str, level: str = "1"):
    (own,) = [
        e for e in found.effects if (e.kind, e.factor, e.level) == ("main effect", factor, level)
    ]
    return own


def test_points_of_a_search_at_other_values_of_its_ranges_are_no_replicates_of_the_grid() -> None:
    search = Design("search", {"ranges": {"lr": {"low": 1e-4, "high": 1.0}}, "trials": 8})
    own = study(A, B, designs=(Design("factorial"), search))
    grid = jobs(*({"a": a.name, "b": b.name, "lr": UNSEARCHED} for a in A.levels for b in B.levels))
    points = jobs(*({"a": "1", "b": "0", "lr": f"0.{i}"} for i in range(1, 9)))

    def loss(job: Job) -> float:
        far = 1.0 if job.levels["lr"] == UNSEARCHED else 50.0
        return far * noisy(job) * (1.3 if job.levels["a"] == "1" else 1.0)

    alone = compare(own, grid, results(grid, loss), {})
    both = compare(own, [*grid, *points], results([*grid, *points], loss), {})
    assert main_effect(both, "a") == main_effect(alone, "a")
    assert main_effect(both, "a").n == len(grid)


def test_a_job_that_is_several_arms_is_one_replicate() -> None:
    own = study(A, B)
    grid = jobs(*({"a": a.name, "b": b} for a in A.levels for b in ("0", "1")))
    twin = [
        replace(job, also=(Arm(f"{job.arm} too", {**job.levels, "b": "2"}),))
        if job.levels["b"] == "1"
        else job
        for job in grid
    ]
    alone = compare(own, grid, results(grid, noisy), {})
    both = compare(own, twin, results(twin, noisy), {})
    assert main_effect(both, "a") == main_effect(alone, "a")
    assert main_effect(both, "a").n == len(grid)


def test_a_pair_with_missing_combinations_is_said_on_the_effects_of_both() -> None:
    own = study(A, B)
    whole = jobs(*({"a": a.name, "b": b.name} for a in A.levels for b in B.levels))
    torn = [job for job in whole if dict(job.levels) != {"a": "1", "b": "2"}]

    def loss(job: Job) -> float:  # the effect of a turns round with b
        power = {"0": 0, "1": 1, "2": -1}[job.levels["b"]]
        return noisy(job, 0.02) * (3.0**power if job.levels["a"] == "1" else 1.0)

    whole_found = compare(own, whole, results(whole, loss), {})
    assert "a x b" in {term.term for term in whole_found.variance}
    assert "taken not to interact" not in main_effect(whole_found, "a").note
    found = compare(own, torn, results(torn, loss), {})
    assert "a x b" not in {term.term for term in found.variance}
    assert "with b have no job: taken not to interact" in main_effect(found, "a").note
    assert "with a have no job: taken not to interact" in main_effect(found, "b").note


@pytest.mark.parametrize(
    "design",
    [
        Design("search", {"objective": {"val/px_error": "minimize"}}),
        Design("paths", {"reading": {"val/px_error": "minimize"}}),
    ],
)
def test_gates_void_what_a_design_goes_by(design: Design) -> None:
    gate = Gate("val_coverage", "failed", 0.1, ("val/px_error", "val/zigzag"), "hardly a point")
    assert void_metrics(study(A), [gate]) == set()
    assert void_metrics(study(A, designs=(design,)), [gate]) == {"val/px_error"}
    passed = replace(gate, verdict="passed")
    assert void_metrics(study(A, designs=(design,)), [passed]) == set()
