"""The commands on a study. Heavy imports stay inside them: `ablate --help` answers at once."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ablate.nouns import Options, Plan, Result, Study, StudyError

if TYPE_CHECKING:
    from rich.console import Console

    from ablate.core import Core
    from ablate.ledger import Ledger
    from ablate.rank import Ranking
    from ablate.run import RunSummary

FAILED, STOPPED = 1, 130
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
Out = Annotated[Path, typer.Option(metavar="DIR", help="Where jobs, record and reports are.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


@dataclass
class Request:
    """A study as asked for; planned and judged when that is first needed."""

    name: str
    options: Options

    @cached_property
    def study(self) -> Study:
        from ablate.study import load_study

        return load_study(self.name, self.options)

    @cached_property
    def plan(self) -> Plan:
        from ablate.study import plan

        with patience("Reading the study, its data and weights ..."):
            return plan(self.study, self.options)

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

        return results_of(self.plan, self.ledger)

    @cached_property
    def state(self) -> dict[str, str]:
        from ablate.overview import states

        return states(self.plan, self.ledger, self.results)

    def rank(self, results: Mapping[str, Result] | None = None) -> Ranking:
        """Rank and keep the ranking beside the study; a folder that takes no files is no matter."""
        from ablate.conclude import rank_study, write_ranking

        found = self.results if results is None else results
        ranking = rank_study(self.study, self.plan, self.core, found)
        try:
            if found:
                write_ranking(self.ledger, ranking)
        except OSError as error:
            complain(f"ranking.json cannot be written: {error}")
        return ranking

    def report(self, ranking: Ranking, results: Mapping[str, Result] | None = None) -> Path:
        from ablate.conclude import write_report

        command = f"ablate run {arguments(self)}"
        found = self.results if results is None else results
        return write_report(self.study, self.plan, self.ledger, ranking, found, command)


def request(
    study: str,
    data: Sequence[str] | None,
    checkpoint: str | None,
    seeds: int | None,
    sets: Sequence[str] | None,
    out: Path,
) -> Request:
    return Request(study, Options(tuple(data or ()), checkpoint, seeds, tuple(sets or ()), out))


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


def plan(
    study: StudyName,
    data: Data = None,
    checkpoint: Checkpoint = None,
    seeds: Seeds = None,
    sets: Sets = None,
    out: Out = RUNS,
    as_json: Json = False,
) -> None:
    """Show the jobs of a study: arm, levels, seed, visual tokens, parameters, state.

    Checks settings, data and weights too, so that what is wrong is said before anything trains.
    """
    from ablate.overview import estimate, plan_json, plan_summary, plan_table

    asked = request(study, data, checkpoint, seeds, sets, out)
    if as_json:
        print_json(plan_json(asked.study, asked.plan, asked.state, asked.results))
        return
    guess = estimate(asked.study, asked.plan, asked.results)
    console().print(plan_table(asked.study, asked.plan, asked.state))
    console().print(plan_summary(asked.study, asked.plan, asked.state, guess))


def run(
    study: StudyName,
    data: Data = None,
    checkpoint: Checkpoint = None,
    seeds: Seeds = None,
    sets: Sets = None,
    out: Out = RUNS,
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Jobs at once; default: one a core.")
    ] = None,
    engine: Annotated[
        str, typer.Option(metavar="NAME", help="pool: processes; inline: for a debugger.")
    ] = "pool",
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run failed jobs again.")
    ] = False,
    rerun: Annotated[
        bool, typer.Option("--rerun", help="Run jobs again whose results are of older code.")
    ] = False,
) -> None:
    """Run what is missing, then rank, write the report, and record it all in MLflow.

    Ctrl-C once: no new jobs start, running ones keep a checkpoint and end; twice: now. The same
    command goes on where it stopped, after a kill or a power cut too.

    Exit status: 0 all jobs ended (one that diverged ended: that is a finding); 1 some job failed
    or has no result; 2 the request was wrong; 130 stopped by Ctrl-C.
    """
    from ablate.engines import ENGINES

    if engine not in ENGINES:
        raise StudyError(f"--engine: given {engine!r}, must be one of {', '.join(ENGINES)}")
    from ablate.display import make_display
    from ablate.run import RunOptions, run, warm_up
    from ablate.table import answer

    asked = request(study, data, checkpoint, seeds, sets, out)
    asked.ledger.prepare()
    made: list[Ranking] = []

    def conclude(results: Mapping[str, Result]) -> tuple[Ranking, list[Path]]:
        made.append(asked.rank(results))
        return made[0], [asked.report(made[0], results)]

    options = RunOptions(workers, engine, retry_failed, rerun)
    warm_up(asked.study, options)
    plan = asked.plan
    display = make_display()
    try:
        recorder = partial(_recorder, asked)
        summary = run(asked.study, plan, out, options, display, recorder, conclude)
    finally:
        display.close()
        if made:  # also when what follows the ranking failed
            console().print(answer(made[0]))
    for line in farewell(asked, summary):
        console().print(line, soft_wrap=True)
    if summary.interrupted:
        raise typer.Exit(STOPPED)
    if summary.count("failed") or summary.missing:
        raise typer.Exit(FAILED)


def _recorder(asked: Request) -> Any:
    """Called in a thread of its own: MLflow's import takes seconds."""
    from ablate.record import Recorder

    return Recorder(asked.ledger.out, asked.study)


def farewell(asked: Request, summary: RunSummary) -> list[str]:
    """What remains, where everything is, and how to look at it."""
    again = f"ablate run {arguments(asked)}"
    lines = []
    if summary.interrupted:
        ended = len(summary.results)
        lines.append(f"Stopped: {ended} jobs ended, {len(summary.missing)} to go: {again}")
    elif summary.missing:
        lines.append(f"{len(summary.missing)} jobs have no result; run again: {again}")
    if failed := summary.count("failed"):
        lines.append(f"{failed} failed; again with: {again} --retry-failed")
    folder = asked.options.out / asked.study.name
    lines.append(f"run folder  {folder}")
    if (folder / "report.html").exists() and not summary.interrupted:
        lines.append(f"report      {folder / 'report.html'}")
    lines.append(f"MLflow      {make_ui(asked)}   or   ablate ui {arguments(asked)}")
    return lines


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


def status(
    study: StudyName,
    data: Data = None,
    checkpoint: Checkpoint = None,
    seeds: Seeds = None,
    sets: Sets = None,
    out: Out = RUNS,
    as_json: Json = False,
) -> None:
    """How far a study is: counts, what failed and why, what runs, results of older code."""
    from ablate.overview import status_json, status_lines

    asked = request(study, data, checkpoint, seeds, sets, out)
    value = status_json(
        asked.study, asked.plan, asked.ledger, asked.state, asked.results, asked.core.source_hash()
    )
    if as_json:
        print_json(value)
        return
    for line in status_lines(value):
        console().print(line, soft_wrap=True)


def rank(
    study: StudyName,
    data: Data = None,
    checkpoint: Checkpoint = None,
    seeds: Seeds = None,
    sets: Sets = None,
    out: Out = RUNS,
    as_json: Json = False,
) -> None:
    """Rank the configs against the success criteria, from the results that there are."""
    from ablate.table import answer

    ranking = request(study, data, checkpoint, seeds, sets, out).rank()
    if as_json:
        print_json(ranking.to_json())
    else:
        console().print(answer(ranking))


def report(
    study: StudyName,
    data: Data = None,
    checkpoint: Checkpoint = None,
    seeds: Seeds = None,
    sets: Sets = None,
    out: Out = RUNS,
) -> None:
    """Write the report, one HTML page that needs nothing else, from the results that there are."""
    asked = request(study, data, checkpoint, seeds, sets, out)
    asked.ledger.prepare()
    console().print(str(asked.report(asked.rank())), soft_wrap=True)


def record(
    study: StudyName,
    data: Data = None,
    checkpoint: Checkpoint = None,
    seeds: Seeds = None,
    sets: Sets = None,
    out: Out = RUNS,
) -> None:
    """Make MLflow show what the run folder holds; a second time changes nothing."""
    asked = request(study, data, checkpoint, seeds, sets, out)
    with asked.ledger.lock():  # a running study has its own writer
        ranking = asked.rank()
        files = [asked.report(ranking, asked.results)]
        from ablate.record import rebuild

        rebuild(asked.study, asked.plan, asked.ledger, ranking, files)
    console().print(f"{len(asked.results)} jobs of {asked.study.name} are in MLflow")


def ui(
    study: StudyName,
    data: Data = None,
    checkpoint: Checkpoint = None,
    seeds: Seeds = None,
    sets: Sets = None,
    out: Out = RUNS,
) -> None:
    """Open MLflow on a study's configs side by side; Ctrl-C ends it."""
    from ablate.ui import open_ui

    open_ui(out, request(study, data, checkpoint, seeds, sets, out).study.name, console())
