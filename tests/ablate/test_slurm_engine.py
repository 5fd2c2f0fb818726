"""The Slurm engine over a cluster that is made up: silences, refusals, limits, comings and goings.

What only a real Slurm shows is in test_slurm; here each answer of it is chosen.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ablate.engines import Engine, EngineError, Notice, Outcome, Place, Task, make_engine
from ablate.nouns import Resources

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None, reason="the extra [slurm] is not installed"
)

SILENCE = "squeue: Unable to contact slurm controller"


class Site:
    """A Slurm whose answers a test chooses; it outlives the coordinators that come to it."""

    def __init__(self) -> None:
        self.queue: dict[str, tuple[Any, str]] = {}
        """Id -> element and batch, of all that is queued or running."""
        self.arrays: list[int] = []
        """How many elements each submission had."""
        self.cancelled: set[str] = set()
        self.silent = self.refuses = ""
        self.took = True
        """Whether sbatch takes what it was given although it is silent."""
        self.lingers = 0
        """Questions for which a cancelled job is still there."""

    # what the engine calls
    def submit(self, elements: Sequence[Any], batch: str) -> list[str]:
        from ablate.engines.slurm_cluster import Refused, Silent

        if self.refuses:
            raise Refused(self.refuses)
        ids = [f"{1 + len(self.arrays)}_{i}" for i in range(len(elements))]
        if not self.silent or self.took:
            self.arrays.append(len(elements))
            self.queue |= {name: (e, batch) for name, e in zip(ids, elements, strict=True)}
        if self.silent:
            raise Silent(self.silent)
        return ids

    def alive(self) -> set[str]:
        self._answer()
        if self.cancelled and self.lingers:
            self.lingers -= 1
        else:
            self.queue = {k: v for k, v in self.queue.items() if k not in self.cancelled}
        return set(self.queue)

    def find(self, batch: str, of: int) -> list[str]:
        self._answer()
        return [name for name, (_, its) in self.queue.items() if its == batch]

    def cancel(self, ids: Iterable[str], *, queued: bool = False) -> str:
        self.cancelled |= set(ids)
        return ""

    def why(self, slurm: str) -> str:
        return f"{slurm} ended: FAILED"

    def _answer(self) -> None:
        from ablate.engines.slurm_cluster import Silent

        if self.silent:
            raise Silent(self.silent)

    # what happens in it
    def letter(self, out: Path, job_id: str, what: str, **value: str) -> None:
        from ablate.engines.post import write

        (element,) = [e for e, _ in self.queue.values() if e.tasks[0].job_id == job_id]
        write(out / "slurm" / "mail" / f"{element.ticket(element.tasks[0])}.{what}.json", value)

    def start(self, out: Path, job_id: str) -> None:
        self.letter(out, job_id, "started")

    def end(self, out: Path, job_id: str) -> None:
        self.letter(out, job_id, "outcome", kind="ended", error="")
        self.queue = {k: v for k, v in self.queue.items() if v[0].tasks[0].job_id != job_id}


class Coming:
    """Makes engines on one site and one OUT, one after the other, as coordinators come and go."""

    def __init__(self, site: Site, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.site, self.out, self.said = site, out, list[str]()
        self.patch = monkeypatch

    def engine(self, workers: int = 2, code: str = "today", **order: Any) -> Engine:
        def made(logs: Path, resources: Resources, workers: int) -> Site:
            return self.site

        self.site.workers, self.site.burst = workers, 1000  # pyright: ignore
        self.patch.setattr("ablate.engines.slurm.SlurmCluster", made)
        resources = Resources(slurm={"poll": 0.01})
        place = Place(self.out, self.out / "cache", code, resources, self.said.append)
        return make_engine("slurm", print, workers, place=place, **order)  # pyright: ignore


@pytest.fixture
def coming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Coming:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return Coming(Site(), tmp_path, monkeypatch)


def task(job_id: str) -> Task:
    return Task(job_id, 1, {}, 0)


def submit(engine: Engine, *jobs: str) -> None:
    for job in jobs:
        engine.submit(task(job))
    engine.wait(0)


def until(engine: Engine, condition: Callable[[], object], rounds: int = 200) -> list[Notice]:
    notices: list[Notice] = []
    for _ in range(rounds):
        notices += engine.wait(0.02)
        if condition():
            return notices
    raise AssertionError("it does not come to that")


def test_an_outage_ends_nothing(coming: Coming) -> None:
    engine, site = coming.engine(), coming.site
    submit(engine, "a", "b")
    site.start(coming.out, "a")
    site.silent = SILENCE
    until(engine, lambda: len(coming.said) >= 1)
    for _ in range(20):
        engine.wait(0.02)
    assert len(coming.said) == 1  # once
    assert SILENCE in coming.said[0]
    assert engine.pending() == 2
    site.silent = ""
    until(engine, lambda: len(coming.said) >= 2)
    assert coming.said[1] == "Slurm answers again"
    site.end(coming.out, "a")
    site.end(coming.out, "b")
    until(engine, lambda: not engine.pending())
    assert not site.cancelled


@pytest.mark.parametrize("took", [True, False])
def test_what_sbatch_did_not_answer_to_runs_once(coming: Coming, took: bool) -> None:
    engine, site = coming.engine(), coming.site
    site.silent, site.took = "sbatch: Socket timed out on send/recv operation", took
    submit(engine, "a", "b")
    for _ in range(5):
        engine.wait(0.02)
    assert engine.pending() == 2
    site.silent = ""
    until(engine, lambda: site.arrays == [2])
    for _ in range(5):
        engine.wait(0.02)
    assert site.arrays == [2]
    for job in ("a", "b"):
        site.end(coming.out, job)
    notices = until(engine, lambda: not engine.pending())
    assert {n.job_id for n in notices if n.outcome == Outcome("ended")} == {"a", "b"}


def test_a_refusal_while_jobs_run_waits_for_them(coming: Coming) -> None:
    engine, site = coming.engine(workers=2), coming.site
    submit(engine, "a", "b")
    site.refuses = "Job violates accounting/QOS policy (job submit limit)"
    site.end(coming.out, "a")
    until(engine, lambda: engine.pending() == 1)
    submit(engine, "c")
    assert any("submit limit" in line for line in coming.said)
    site.refuses = ""
    until(engine, lambda: site.arrays == [2, 1])


def test_a_refusal_with_nothing_at_work_is_an_error(coming: Coming) -> None:
    engine = coming.engine()
    coming.site.refuses = "invalid partition"
    with pytest.raises(EngineError, match="sbatch refuses: invalid partition"):
        submit(engine, "a")
    engine.close()
    assert not coming.site.cancelled  # the same command may follow what there is


def test_no_more_run_than_workers(coming: Coming) -> None:
    engine, site = coming.engine(workers=16), coming.site
    jobs = [f"job {i}" for i in range(60)]
    submit(engine, *jobs[:40])
    assert site.arrays == [40]  # Slurm itself runs 16 of them
    ended = 0
    for _ in range(200):
        at_slurm = [e.tasks[0].job_id for e, _ in site.queue.values()]
        if not at_slurm:
            break
        assert len(at_slurm) <= max(40 - ended, 16)
        site.end(coming.out, at_slurm[0])
        ended += 1
        if ended <= 20:
            engine.submit(task(jobs[39 + ended]))  # as the coordinator keeps the engine fed
        engine.wait(0.02)
    assert ended == 60
    assert len(site.arrays) < 15  # in batches


def test_a_followed_job_goes_on_as_it_was(coming: Coming) -> None:
    engine, site = coming.engine(), coming.site
    submit(engine, "a", "b")
    site.start(coming.out, "a")
    until(engine, lambda: not list((coming.out / "slurm" / "mail").iterdir()))
    # killed; the next one finds both, and knows which of them is at work
    engine = coming.engine(timeout=0.5)
    assert engine.follow([task("a"), task("b"), task("c")]) == {"a", "b"}
    assert engine.pending() == 3  # and one notice
    assert engine.wait(0) == [Notice("a")]
    engine.stop()
    assert site.cancelled == {"1_1"}  # "a" is asked to keep a checkpoint
    assert engine.wait(0.02) == [Notice("b", Outcome("interrupted"))]
    monotonic = until(engine, lambda: not engine.pending(), rounds=2000)
    assert [n.outcome.kind for n in monotonic if n.outcome] == ["timed out"]


def test_jobs_of_other_code_have_ended_before_their_folders_are_touched(coming: Coming) -> None:
    engine, site = coming.engine(), coming.site
    submit(engine, "a", "b")
    engine = coming.engine(code="tomorrow")
    site.lingers = 3
    assert engine.follow([task("a")]) == set()
    assert "1_0" not in site.queue
    assert "1_1" in site.queue  # of no job that was asked for
    assert site.lingers == 0
    assert not list((coming.out / "slurm" / "jobs").glob("a.json"))


def test_cancelled_jobs_that_slurm_does_not_end_are_said(
    coming: Coming, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ablate.engines.slurm_cluster.LET_GO", 0.05)
    submit(coming.engine(), "a")
    coming.site.lingers = 10**9
    with pytest.raises(EngineError, match="has not ended 1 cancelled tasks"):
        coming.engine(code="tomorrow").follow([task("a")])


def test_a_letter_that_cannot_be_read_yet_is_kept(
    coming: Coming, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ablate.engines import post

    engine, site = coming.engine(), coming.site
    submit(engine, "a")
    monkeypatch.setattr("ablate.engines.slurm.read", lambda path: None)
    site.letter(coming.out, "a", "outcome", kind="ended", error="")
    assert engine.wait(0) == []
    monkeypatch.setattr("ablate.engines.slurm.read", post.read)
    assert engine.wait(0) == [Notice("a"), Notice("a", Outcome("ended"))]


def test_a_cancelled_job_leaves_slurms_queue(coming: Coming) -> None:
    engine, site = coming.engine(), coming.site
    submit(engine, "a", "b")
    site.start(coming.out, "a")
    engine.wait(0.02)
    engine.cancel("b")
    notices = until(engine, lambda: engine.pending() == 1)
    assert notices == [Notice("b", Outcome("interrupted"))]
    assert site.cancelled == {"1_1"}
    engine.cancel("a")
    assert site.cancelled == {"1_1"}  # it is at work: it is asked
    assert [path.name.split("~")[0] for path in (coming.out / "slurm" / "halt").iterdir()] == ["a"]
