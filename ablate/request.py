"""What a command is asked for: the options that all share, and the study that they name."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ablate.nouns import Job, Options, Plan, Result, Study, StudyError

if TYPE_CHECKING:
    from rich.console import Console

    from ablate.core import Core
    from ablate.costs import CostCache
    from ablate.estimate import Estimate
    from ablate.ledger import Ledger
    from ablate.planner import Planner
    from ablate.rank import Ranking

RUNS = Path("runs")

StudyName = Annotated[
    str, typer.Argument(metavar="STUDY", help="A YAML file, or a name in studies/.")
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="A CULane root (has list/) or a TuSimple root (has label_data_*.json); may be given "
        "several times. Nothing: rendered road scenes.",
    ),
]
Checkpoint = Annotated[
    str | None, typer.Option(metavar="PATH", help="CLRerNet weights; selects that backbone.")
]
Seeds = Annotated[int | None, typer.Option(min=1, metavar="N", help="Replicates: seeds 0 to N-1.")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="A setting over the study's base: optim.steps=1000, model.preset=lanelm_256; may be "
        "given several times.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Jobs at once; default: one a core, on GPUs as many as fit."
    ),
]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Where jobs, record and reports are.")]
Table = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="FILE",
        help="Read the results from a table (ablate export table), not from job folders.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


@dataclass
class Request:
    """A study as asked for; planned and judged when that is first needed."""

    name: str
    options: Options
    table: Path | None = None
    """Where results are read from instead of job folders."""

    @cached_property
    def study(self) -> Study:
        if self.table is None:
            return self._asked
        seeds = tuple(sorted({job.seed for job in self.plan.jobs}))
        return dataclasses.replace(self._asked, name=self._table_name, seeds=seeds)

    @cached_property
    def _asked(self) -> Study:
        from ablate.study import load_study

        return load_study(self.name, self.options)

    @property
    def _table_name(self) -> str:
        assert self.table is not None
        return f"{self._asked.name}@{self.table.stem}"

    @cached_property
    def planner(self) -> Planner:
        from ablate.planner import Planner

        return Planner(self.study, self.options)

    @cached_property
    def plan(self) -> Plan:
        if self.table is not None:
            return self._tabled[0]
        with patience("Reading the study, its data and weights ..."):
            return self.planner.plan()

    def grow(self, results: Mapping[str, Result], slots: int) -> Plan:
        """Plan again with what has ended by now; the plan is then that."""
        self.plan = self.planner.plan(results.get, slots)
        return self.plan

    @cached_property
    def _tabled(self) -> tuple[Plan, dict[str, Result]]:
        from ablate.shipped import from_table

        assert self.table is not None
        try:
            text = self.table.read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "no text"
            raise StudyError(f"--from {self.table}: cannot be read ({reason})") from None
        study = dataclasses.replace(self._asked, name=self._table_name)
        return from_table(study, self.options, text, str(self.table))

    @cached_property
    def core(self) -> Core:
        from ablate.core import load_core

        return load_core(self.study.core)

    @cached_property
    def ledger(self) -> Ledger:
        from ablate.ledger import Ledger

        return Ledger(self.options.out)

    @cached_property
    def results(self) -> dict[str, Result]:
        from ablate.conclude import results_of

        if self.table is not None:
            return self._tabled[1]
        return results_of(self.study, self.plan, self.ledger)

    @cached_property
    def state(self) -> dict[str, str]:
        from ablate.overview import states

        return states(self.plan, self.ledger, self.results)

    @cached_property
    def environment(self) -> dict[str, Any]:
        from ablate.origin import describe_environment

        return describe_environment()

    @cached_property
    def costs(self) -> CostCache:
        from ablate.costs import CostCache

        cache = self.ledger.out / "cache"
        return CostCache(cache, self.study.core, self.core.source_hash(), self.environment)

    def estimate(self, workers: int | None = None) -> Estimate:
        """Time and memory of what has not ended, from what is known without timing anything."""
        from ablate.engines import available_cores
        from ablate.estimate import estimate
        from ablate.kin import may_fuse, trainings

        jobs, known = self.plan.jobs, self.costs.of(self.to_run)
        crew = workers or available_cores()
        once = {"trainings": trainings} if may_fuse(self.study) else {}
        return estimate(jobs, self.results, known, self.environment, crew, **once)

    @property
    def to_run(self) -> list[Job]:
        return [job for job in self.plan.jobs if job.id not in self.results]

    def of_jobs(self) -> Request:
        """The request itself, where job folders are to be read and there are some.

        Raises:
            StudyError: OUT was named and holds none: it is another folder, or misspelt.
        """
        if self.table is None and self.options.out != RUNS and not self.ledger.jobs.is_dir():
            from ablate.plan import plan_unread

            plan_unread(self.study, self.options)  # what is wrong with the study is said first
            raise StudyError(
                f"--out {self.options.out}: no job in {self.ledger.jobs}; first: ablate run "
                f"{arguments(self)}"
            )
        return self

    def warn(self, *more: str) -> None:
        """Say what was found damaged, and `more`, on stderr."""
        for line in (*more, *self.ledger.warnings):
            if line:
                complain(line)

    def say_replaced(self) -> None:
        """Say that the answer that lies in the study's folder is of other options."""
        from ablate.conclude import other_answer

        if keys := other_answer(self.study, self.ledger):
            folder = self.options.out / self.study.name
            complain(
                f"{folder}: the answer there is of another {', '.join(keys)} and is replaced; its "
                "jobs stay"
            )

    def keep_study(self) -> None:
        """Write the study beside the answer that is about to be written."""
        from ablate.conclude import write_study

        self.say_replaced()
        if self.results:
            write_study(self.study, self.ledger)

    def rank(self, results: Mapping[str, Result] | None = None) -> Ranking:
        """Rank and keep the ranking beside the study; a folder that takes no files is no matter.

        Where the report there is of other options, it is left with its ranking.
        """
        from ablate.conclude import other_answer, rank_study, write_ranking

        found = self.results if results is None else results
        ranking = rank_study(self.study, self.plan, self.core, found)
        try:
            if found and (keys := other_answer(self.study, self.ledger)):
                complain(
                    f"{self.options.out / self.study.name}: the answer there is of another "
                    f"{', '.join(keys)} and stays; to replace it: ablate report {arguments(self)}"
                )
            elif found:
                write_ranking(self.ledger, ranking)
        except OSError as error:
            complain(f"ranking.json cannot be written: {error}")
        return ranking

    def report(self, ranking: Ranking, results: Mapping[str, Result] | None = None) -> Path:
        from ablate.conclude import write_report

        command = f"ablate run {arguments(self)}"
        if self.table is not None:
            command = f"ablate report {arguments(self)} --from {shlex.quote(str(self.table))}"
        found = self.results if results is None else results
        return write_report(self.study, self.plan, self.ledger, ranking, found, command)

    def answer(self, ranking: Ranking, results: Mapping[str, Result] | None = None) -> list[Path]:
        """Write the report; every file that belongs to the answer. A full disk is no matter."""
        folder = self.ledger.study_folder(self.study.name)
        try:
            self.report(ranking, results)
        except OSError as error:
            reason = error.strerror or str(error)
            later = f"ablate report {arguments(self)}"
            complain(f"the report cannot be written ({reason}); later: {later}")
        files = (folder / name for name in ("report.html", "report.md", "ranking.json"))
        return [path for path in files if path.exists()]


def request(
    study: str,
    data: Sequence[str] | None,
    checkpoint: str | None,
    seeds: int | None,
    sets: Sequence[str] | None,
    out: Path,
    table: Path | None = None,
) -> Request:
    given = {"--data": data, "--checkpoint": checkpoint, "--seeds": seeds}
    if table is not None and (named := [name for name, value in given.items() if value]):
        raise StudyError(
            f"{named[0]}: given beside --from, but the rows of a table are of jobs that have run; "
            "leave it out"
        )
    options = Options(tuple(data or ()), checkpoint, seeds, tuple(sets or ()), out)
    return Request(study, options, table)


def console() -> Console:
    """Stdout; a pipe has no width that tables must be folded to."""
    from rich.console import Console

    made = Console(highlight=False, markup=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made = Console(highlight=False, markup=False, width=200)
    return made


def patience(text: str) -> AbstractContextManager[object]:
    """Say on a terminal that something takes its time; leaves no trace."""
    from rich.console import Console

    terminal = Console(stderr=True)
    return terminal.status(text) if terminal.is_terminal else nullcontext()


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=1, allow_nan=False) + "\n")


def complain(line: str) -> None:
    sys.stderr.write(" ".join(line.split()) + "\n")


def arguments(asked: Request) -> str:
    """The study and its options as they were typed."""
    given = asked.options
    words = [asked.name]
    words += [word for path in given.data for word in ("--data", path)]
    words += ["--checkpoint", given.checkpoint] if given.checkpoint else []
    words += ["--seeds", str(given.seeds)] if given.seeds is not None else []
    words += [word for setting in given.sets for word in ("--set", setting)]
    words += ["--out", str(given.out)] if given.out != RUNS else []
    return shlex.join(words)


def make_ui(asked: Request) -> str:
    """The same study for `make ui`."""
    given, name = asked.options, asked.name
    number = name.removeprefix("strategy")
    words = ["make", "ui", f"STRATEGY={number}" if number.isdigit() else f"STUDY={name}"]
    words += [f"DATA={' '.join(given.data)}"] if given.data else []
    words += [f"OUT={given.out}"] if given.out != RUNS else []
    return shlex.join(words)
