"""Workers on GPUs: the arithmetic, and that a worker sees its own GPU. No GPU is needed here."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablate import gpus
from ablate.cli import main
from ablate.engines import Outcome, Place, StopAsked, Task, make_engine
from ablate.gpus import RESERVE, SLACK, assigned, seats, shared_seats, visible_names
from ablate.nouns import Workload
from ablate.request import request
from ablate.timing import Crew, gpu_crew
from tests.ablate.test_engines import drain

MEMORY = st.lists(st.floats(0, 100_000), min_size=0, max_size=8)


@settings(deadline=None)
@given(MEMORY, st.floats(1, 50_000), st.integers(1, 64))
def test_what_is_seated_fits_and_no_seat_is_left_free(
    free: list[float], need: float, cores: int
) -> None:
    found = seats(free, need, cores)
    assert len(found) <= cores
    a_worker = need * SLACK + RESERVE
    taken = Counter(found)
    for gpu, n in taken.items():
        assert n * a_worker <= free[gpu] + 1e-6
    if len(found) < cores:
        assert all(room - taken[gpu] * a_worker < a_worker + 1e-6 for gpu, room in enumerate(free))


def test_a_job_of_unknown_size_has_a_gpu_to_itself() -> None:
    assert sorted(seats([10_000, 20_000, 5_000], None, 16)) == [0, 1, 2]
    assert seats([10_000, 20_000], None, 1) == (1,)


def test_a_job_that_fits_nowhere_is_not_seated_unless_asked_for() -> None:
    assert seats([1_000, 2_000], 10_000, 8) == ()
    assert assigned([1_000, 2_000], 10_000, 1) == (1,)


def test_asked_for_workers_are_spread_over_the_gpus() -> None:
    assert Counter(assigned([80_000] * 4, 2_000, 8)) == dict.fromkeys(range(4), 2)
    assert Counter(assigned([80_000] * 4, None, 8)) == dict.fromkeys(range(4), 2)


def test_a_mask_of_the_user_is_kept_within() -> None:
    assert visible_names(2, {"CUDA_VISIBLE_DEVICES": "5, 7,9"}) == ("5", "7")
    assert visible_names(2, {"CUDA_VISIBLE_DEVICES": ""}) == ("0", "1")


def sees(task: Task, stop: StopAsked) -> Outcome:
    if task.job_id.startswith("die"):
        os._exit(3)
    while task.job_id.startswith("wait") and not Path(task.levels["until"]).exists():
        if stop():
            break
    return Outcome("ended", os.environ.get("CUDA_VISIBLE_DEVICES", "unset"))


def test_each_worker_has_its_gpu_and_a_new_one_takes_the_dead_ones(tmp_path: Path) -> None:
    place = Place(tmp_path, tmp_path, gpus=("0", "0", "1"))
    engine = make_engine("pool", sees, place=place)
    assert engine.workers == 3
    try:
        for name in ("die 1", "die 2", "die 3", "die 4"):
            engine.submit(Task(name, 1, {}, 0))
        assert {outcome.kind for outcome in drain(engine).values()} == {"died"}
        until = {"until": str(tmp_path / "go")}
        names = [f"wait {i}" for i in range(3)]
        for name in names:
            engine.submit(Task(name, 1, until, 0))
        started = 0
        while started < 3:  # all three at once, so that each has a worker of its own
            started += sum(notice.outcome is None for notice in engine.wait(0.5))
        (tmp_path / "go").touch()
        outcomes = drain(engine)
    finally:
        engine.close()
    assert Counter(outcomes[name].error for name in names) == {"0": 2, "1": 1}


def test_without_gpus_nothing_is_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    engine = make_engine("pool", sees, 1, place=Place(tmp_path, tmp_path))
    try:
        engine.submit(Task("job", 1, {}, 0))
        assert drain(engine)["job"].error == "unset"
    finally:
        engine.close()


STUDY = """
question: On a GPU?
core: tests.ablate.gpu_core
base: {steps: 5}
factors: {lr: {small: {lr: 0.1}, large: {lr: 1.0}}}
design: factorial
seeds: [0, 1]
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    class Silent:
        def __getattr__(self, what: str) -> Any:
            return lambda *arguments: None

    monkeypatch.setattr("ablate.commands._recorder", lambda asked: Silent())
    (tmp_path / "gpu.yaml").write_text(STUDY)
    return [str(tmp_path / "gpu.yaml"), "--out", str(tmp_path / "runs")]


def test_jobs_for_a_gpu_are_refused_in_one_line_where_there_is_none(
    study: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpus, "free_memory_mb", lambda core: ())
    assert main(["run", *study]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no GPU is seen here" in line


def test_a_gpu_named_by_a_number_has_to_be_here(
    study: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named = Workload((), 5, 0, "cuda:2")
    monkeypatch.setattr("tests.ablate.gpu_core.workload", lambda config: named)
    monkeypatch.setattr(gpus, "free_memory_mb", lambda core: (6_000.0, 11_000.0))
    assert main(["run", *study]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "given 'cuda:2'; allowed: cuda:0, cuda:1" in line
    asked = request(study[0], None, None, None, None, Path(study[-1]))
    monkeypatch.setattr(gpus, "free_memory_mb", lambda core: (6_000.0,) * 3)
    assert gpu_crew(asked, "pool", None) == Crew()
    monkeypatch.setattr(gpus, "free_memory_mb", lambda core: ())
    assert gpu_crew(asked, "ray", None) == Crew()  # another machine may have it


def test_gpus_that_cannot_be_asked_say_why(
    study: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The core's library breaks in the process that asks: its last words are kept."""
    ask = gpus.free_memory_mb
    assert ask("tests.ablate.gpu_core") == ()
    monkeypatch.setattr(gpus, "free_memory_mb", lambda core: ask("tests.ablate.no_core"))
    assert main(["run", *study]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the GPUs here cannot be asked for their memory" in line
    assert "tests.ablate.no_core" in line
    assert main(["plan", *study, "--no-probe"]) == 0  # planned here, run elsewhere
    assert "cannot be asked for their memory" in capsys.readouterr().err


def test_as_many_workers_as_fit_each_on_its_gpu(
    study: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe says 4,000 MB a job: two fit beside each other on the second GPU."""
    monkeypatch.setattr(gpus, "free_memory_mb", lambda core: (6_000.0, 11_000.0))
    monkeypatch.setattr("ablate.timing.available_cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    asked = request(study[0], None, None, None, None, Path(study[-1]))
    assert gpu_crew(asked, "pool", None).gpus == ("6", "4", "6")
    assert gpu_crew(asked, "pool", 1).gpus == ("6",)
    assert gpu_crew(asked, "ray", None).gpus == ()  # Ray gives them out itself
    assert main(["run", *study, "--workers", "1"]) == 0
    results = [json.loads(p.read_text()) for p in Path(study[-1]).glob("jobs/*/result.json")]
    assert [result["metrics"]["final/gpu"] for result in results] == [6.0] * 4


@settings(deadline=None)
@given(MEMORY, st.floats(1, 50_000), st.integers(1, 64), st.integers(1, 32))
def test_jobs_that_train_as_one_fit_as_one(
    free: list[float], need: float, cores: int, at_most: int
) -> None:
    found, together = shared_seats(free, need, cores, at_most)
    assert 1 <= together <= at_most
    a_worker = together * need * SLACK + RESERVE
    for gpu, n in Counter(found).items():
        assert n * a_worker <= free[gpu] + 1e-6
    assert together * len(found) >= len(seats(free, need, cores))  # no fewer than alone


KIN = STUDY.replace("gpu_core", "gpu_kin_core")


def test_seats_are_for_the_jobs_that_train_as_one_in_them(
    study: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All four are alike and take 4,000 MB each, as the probe says."""
    Path(study[0]).write_text(KIN)
    monkeypatch.setattr("ablate.timing.available_cores", lambda: 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def crew(free: float, workers: int | None = None, fuse: int | None = None) -> Crew:
        monkeypatch.setattr(gpus, "free_memory_mb", lambda core: (free,))
        asked = request(study[0], None, None, None, None, Path(study[-1]))
        return gpu_crew(asked, "pool", workers, fuse)

    assert crew(80_000) == Crew(("0",) * 4, 4)
    assert crew(20_000) == Crew(("0",), 4)
    assert crew(11_000) == Crew(("0",), 2)
    assert crew(22_000, workers=2) == Crew(("0", "0"), 2)
    assert crew(1_000, workers=1) == Crew(("0",), 1)
    assert crew(22_000, fuse=1) == Crew(("0",) * 4, None)
    assert crew(22_000, fuse=2) == Crew(("0", "0"), None)
    Path(study[0]).write_text(KIN + "pruning: {median: {reading: train/loss}}\n")
    assert crew(22_000).gpus == ("0",) * 4  # each alone


def test_a_plan_counts_with_the_workers_that_a_run_would_have(
    study: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(study[0]).write_text(KIN)
    monkeypatch.setattr("ablate.timing.available_cores", lambda: 2)
    monkeypatch.setattr(gpus, "free_memory_mb", lambda core: (6_000.0, 11_000.0))
    assert main(["plan", *study, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["estimate"]["workers"] == 1  # one that takes two jobs
    assert "up to 2 jobs train as one in a worker" in captured.err
    monkeypatch.setattr(gpus, "free_memory_mb", lambda core: ())
    assert main(["plan", *study, "--no-probe"]) == 0  # planned here, run elsewhere


def test_a_run_trains_no_more_as_one_than_there_is_room_for(
    study: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(study[0]).write_text(KIN)
    monkeypatch.setattr("ablate.timing.available_cores", lambda: 8)
    monkeypatch.setattr(gpus, "free_memory_mb", lambda core: (11_000.0,))
    assert main(["run", *study]) == 0
    results = [json.loads(p.read_text()) for p in Path(study[-1]).glob("jobs/*/result.json")]
    assert [result["metrics"]["final/together"] for result in results] == [2.0] * 4


def test_what_could_not_be_timed_is_said_and_ctrl_c_stops_the_run(
    study: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*arguments: Any) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(gpus, "free_memory_mb", lambda core: (6_000.0,))
    monkeypatch.setattr("ablate.costs.probe", stopped)
    assert main(["run", *study]) == 130
    assert not list(Path(study[-1]).glob("jobs/*"))
    monkeypatch.setattr("ablate.costs.probe", lambda *arguments: ["lr=0.1 could not be timed"])
    assert main(["run", *study]) == 0
    assert "estimate: lr=0.1 could not be timed" in capsys.readouterr().err
