"""What a plan says of time and memory, and the probes it says it from."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ablate import costs
from ablate.cli import main
from ablate.costs import CostCache, probe
from ablate.estimate import estimate, makespan
from ablate.nouns import EARLY, Cost, Job, Result, Workload
from ablate.progress import shape
from tests.ablate.toys import toy_job

CORE = "tests.ablate.probed_core"
HERE = {"cpu": "ours"}


def job(name: str, kind: str = "small", steps: int = 10, tokens: float = 500) -> Job:
    size = {"visual_tokens": tokens, "parameters": 1e6}
    load = Workload((("kind", kind),), steps, 2)
    return Job(name, f"arm {name}", {}, 0, {"steps": steps}, size=size, workload=load)


def result(name: str, seconds: float, environment: dict[str, str] | None = None) -> Result:
    metrics = {"cost/seconds": seconds, "cost/peak_memory_mb": 300.0}
    return Result(name, {}, 0, "done", metrics, environment=environment or HERE)


class TestEstimate:
    cost = Cost(1.0, 10.0, 100.0, 700.0)

    def test_from_a_probe_by_steps_and_evaluations(self) -> None:
        jobs = [job("a"), job("b", steps=50)]
        found = estimate(jobs, {}, {shape(one): self.cost for one in jobs}, HERE, 2)
        assert found.cpu_seconds == (10 + 20 + 100) + (50 + 20 + 100)
        assert found.seconds == 170
        assert found.memory_mb == 700
        assert {guess.source for guess in found.guesses.values()} == {"probe"}

    def test_finished_jobs_of_this_machine_come_first(self) -> None:
        jobs = [job("a"), job("b"), job("c")]
        known = {shape(jobs[0]): self.cost}
        ends = {"a": result("a", 40.0), "b": result("b", 60.0)}
        found = estimate(jobs, ends, known, HERE, 2)
        assert (found.to_run, found.workers, found.seconds) == (1, 1, 50.0)
        assert found.memory_mb == 300.0

    def test_a_job_that_ended_early_is_no_measure(self) -> None:
        jobs = [job("a"), job("b"), job("c")]
        early = result("b", 4.0)
        early = replace(early, metrics={**early.metrics, EARLY: 100.0})
        found = estimate(jobs, {"a": result("a", 40.0), "b": early}, {}, HERE, 1)
        assert (found.to_run, found.seconds) == (1, 40.0)

    def test_a_probe_here_comes_before_jobs_of_another_machine(self) -> None:
        jobs = [job("a"), job("b")]
        ends = {"a": result("a", 40.0, {"cpu": "theirs"})}
        assert estimate(jobs, ends, {shape(jobs[0]): self.cost}, HERE, 1).seconds == 130
        found = estimate(jobs, ends, {}, HERE, 1)
        assert found.seconds == 40
        assert found.to_json()["shapes"][0]["source"] == "finished jobs elsewhere"

    def test_what_nobody_timed_is_scaled_by_what_its_steps_compute(self) -> None:
        jobs = [job("a"), job("b", "large", tokens=4500)]
        found = estimate(jobs, {}, {shape(jobs[0]): self.cost}, HERE, 2)
        assert found.guesses[shape(jobs[1])].source == "scaled"
        assert found.guesses[shape(jobs[1])].seconds == pytest.approx(5 * 130)

    def test_nothing_known_is_said_so(self) -> None:
        found = estimate([job("a")], {}, {}, HERE, 2)
        assert found.seconds is None
        assert found.memory_mb is None
        assert found.to_json()["shapes"] == [
            {"jobs": 1, "seconds_per_job": None, "memory_mb": None, "source": "unknown"}
        ]

    def test_nothing_to_run_takes_no_time(self) -> None:
        found = estimate([job("a")], {"a": result("a", 40.0)}, {}, HERE, 2)
        assert (found.to_run, found.seconds, found.cpu_seconds) == (0, 0.0, 0.0)

    def test_long_jobs_bound_the_whole(self) -> None:
        assert makespan([100.0, 1.0, 1.0], 8) == 100.0
        assert makespan([], 3) == 0.0


def shaped(scale: float, fault: str = "none", steps: int = 40, seed: int = 0) -> Job:
    made = toy_job(f"scale={scale}", seed, scale=scale, fault=fault, steps=steps)
    return replace(made, workload=Workload((("scale", scale), ("fault", fault)), steps, 2))


@pytest.fixture
def cache(tmp_path: Path) -> CostCache:
    (tmp_path / "cache").mkdir()
    return CostCache(tmp_path / "cache", CORE, "source", HERE)


def probed(cache: CostCache) -> list[str]:
    path = cache.cache / "probed.txt"
    return path.read_text().splitlines() if path.exists() else []


def quietly(done: int, of: int) -> None:
    return None


def test_each_shape_is_timed_once_in_another_process(cache: CostCache) -> None:
    jobs = [shaped(1.0), shaped(1.0, seed=1), shaped(1.0, steps=7), shaped(2.0)]
    told: list[tuple[int, int]] = []
    assert probe(cache, jobs, 2, lambda done, of: told.append((done, of))) == []
    lines = probed(cache)
    assert sorted(line.split()[0] for line in lines) == ["1.0", "2.0"]
    assert all(int(line.split()[-1]) != os.getpid() for line in lines)
    assert told == [(0, 2), (1, 2), (2, 2)]
    known = cache.of(jobs)
    assert {key: cost.step_seconds for key, cost in known.items()} == {
        shape(jobs[0]): 1.0, shape(jobs[2]): 1.0, shape(jobs[3]): 2.0
    }  # fmt: skip
    assert probe(cache, jobs, 2, quietly) == []
    assert len(probed(cache)) == 2
    assert sorted(path.suffix for path in (cache.cache / "costs").iterdir()) == [".json"] * 2


def test_other_code_another_machine_and_a_damaged_file_are_timed_again(cache: CostCache) -> None:
    jobs = [shaped(1.0)]
    probe(cache, jobs, 1, quietly)
    for other in (replace(cache, source_hash="new"), replace(cache, environment={"cpu": "x"})):
        assert other.of(jobs) == {}
    cache.path(cache.key(jobs[0])).write_text('{"step_seconds": 1')
    assert cache.of(jobs) == {}
    assert probe(cache, jobs, 1, quietly) == []
    assert len(probed(cache)) == 2
    assert len(cache.of(jobs)) == 1


@pytest.mark.parametrize(
    ("fault", "reason"), [("raise", "OSError: broken as asked"), ("exit", "status 9")]
)
def test_a_probe_that_fails_costs_its_own_figure_only(
    cache: CostCache, fault: str, reason: str
) -> None:
    jobs = [shaped(1.0, fault), shaped(2.0)]
    (note,) = probe(cache, jobs, 1, quietly)
    assert note.startswith("scale=1.0 could not be timed")
    assert reason in note
    assert list(cache.of(jobs)) == [shape(jobs[1])]


def test_what_exceeds_the_time_given_is_left_out_and_said(cache: CostCache) -> None:
    (note,) = probe(cache, [shaped(1.0), shaped(2.0)], 1, quietly, budget=-1.0)
    assert note.startswith("2 shapes not timed")
    assert probed(cache) == []


def test_ctrl_c_ends_it_and_what_was_timed_is_kept(cache: CostCache) -> None:
    def interrupted(done: int, of: int) -> None:
        if done:
            raise KeyboardInterrupt

    jobs = [shaped(1.0), shaped(2.0)]
    with pytest.raises(KeyboardInterrupt):
        probe(cache, jobs, 1, interrupted)
    assert len(cache.of(jobs)) == 1


def test_ctrl_c_skips_the_timing_of_a_plan_and_stops_a_run(
    study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*arguments: Any) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(costs, "probe", stopped)
    assert main(["plan", study, "--out", str(tmp_path / "runs"), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["estimate"]["seconds"] is None
    assert captured.err.splitlines()[-1] == "estimate: not all shapes were timed: stopped"


def test_a_core_without_shapes_is_not_asked(cache: CostCache) -> None:
    def asked(*arguments: Any) -> None:
        raise AssertionError("no engine is needed")

    assert probe(cache, [toy_job()], 1, asked) == []
    assert costs.CostCache.of(cache, [toy_job()]) == {}


STUDY = """
question: How long?
core: tests.ablate.probed_core
base: {steps: 40}
factors:
  scale: {one: {scale: 1.0}, two: {scale: 2.0}}
  lr: {small: {lr: 0.1}, large: {lr: 1.0}}
design: factorial
seeds: [0, 1]
"""


@pytest.fixture
def study(tmp_path: Path) -> str:
    (tmp_path / "timed.yaml").write_text(STUDY)
    return str(tmp_path / "timed.yaml")


def test_plan_times_each_shape_and_tells(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "runs")
    assert main(["plan", study, "--out", out, "--no-probe", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)["estimate"]
    assert value["seconds"] is None
    assert not (tmp_path / "runs").exists()
    assert main(["plan", study, "--out", out, "--workers", "3", "--json"]) == 0
    captured = capsys.readouterr()
    value = json.loads(captured.out)["estimate"]
    assert "2 shapes" in captured.err
    one, two = 40 * 1.0 + 2 * 10 + 100, 40 * 2.0 + 2 * 10 + 100
    assert value["cpu_seconds"] == 4 * one + 4 * two
    assert value["seconds"] == 2 * one + two
    assert value["memory_mb"] == 2000
    assert value["workers"] == 3
    assert main(["plan", study, "--out", out, "--workers", "3"]) == 0
    captured = capsys.readouterr()
    assert "2 shapes from timed steps" in captured.out
    assert "2.0 GB a worker, 6.0 GB in all" in captured.out
    assert captured.err == ""  # known by now
    assert main(["status", study, "--out", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["estimate"]["cpu_seconds"] == value["cpu_seconds"]


def test_plan_without_a_place_to_write_plans_without_figures(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["plan", study, "--out", str(tmp_path / "file"), "--json"]) == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["jobs"]) == 8
    assert captured.err.startswith("estimate: nothing timed: --out")
