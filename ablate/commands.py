"""The commands on a study. Heavy imports stay inside them: `ablate --help` answers at once."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ablate.nouns import Result, StudyError
from ablate.request import (
    RUNS,
    Checkpoint,
    Data,
    Json,
    Out,
    Request,
    Seeds,
    Sets,
    StudyName,
    Table,
    Workers,
    arguments,
    complain,
    console,
    make_ui,
    print_json,
    request,
)

if TYPE_CHECKING:
    from ablate.rank import Ranking
    from ablate.run import RunSummary

FAILED, STOPPED = 1, 130


def fused(given: str) -> int | None:
    """Read `--fuse`: at most how many jobs train as one model; None: auto."""
    if given in ("auto", "off"):
        return None if given == "auto" else 1
    if not given.isdecimal() or int(given) < 1:
        raise StudyError(f"--fuse: given {given!r}, must be a number from 1, auto or off")
    return int(given)


def plan(
    study: StudyName,
    data: Data = None,
    checkpoint: Checkpoint = None,
    seeds: Seeds = None,
    sets: Sets = None,
    out: Out = RUNS,
    workers: Workers = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe/--no-probe",
            help="Time a few steps of each shape of job that nothing is known of; Ctrl-C skips it.",
        ),
    ] = True,
    as_json: Json = False,
) -> None:
    """Show the jobs of a study: arm, levels, seed, visual tokens, parameters, time, state.

    Checks settings, data and weights too, so that what is wrong is said before anything trains.
    """
    from ablate.overview import plan_json, plan_summary, plan_table
    from ablate.timing import planned_crew, time_shapes, unseen_gpu

    asked = request(study, data, checkpoint, seeds, sets, out)
    unseen = unseen_gpu(asked)
    try:
        notes = time_shapes(asked, workers) if probe and not unseen else []
    except KeyboardInterrupt:
        notes = ["not all shapes were timed: stopped"]
    crew, unsaid = planned_crew(asked, workers)
    guess = asked.estimate(crew)
    if as_json:
        print_json(plan_json(asked.study, asked.plan, asked.state, guess))
    else:
        console().print(plan_table(asked.study, asked.plan, asked.state, guess))
        console().print(plan_summary(asked.study, asked.plan, asked.state, guess))
    for note in (*notes, *unsaid):
        complain(f"estimate: {note}")
    asked.warn(unseen)


def run(
    study: StudyName,
    data: Data = None,
    checkpoint: Checkpoint = None,
    seeds: Seeds = None,
    sets: Sets = None,
    out: Out = RUNS,
    workers: Workers = None,
    engine: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="pool: processes here; ray, slurm: a cluster; inline: for a debugger.",
        ),
    ] = "pool",
    resources: Annotated[
        list[str] | None,
        typer.Option(
            "--resource",
            metavar="PATH=VALUE",
            help="Over the study's resources: gpus=0.25, memory=4, slurm.partition=gpu; may be "
            "given several times.",
        ),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run failed jobs again.")
    ] = False,
    rerun: Annotated[
        bool, typer.Option("--rerun", help="Run jobs again whose results are of older code.")
    ] = False,
    fuse: Annotated[
        str,
        typer.Option(
            metavar="K|auto|off",
            help="Jobs of one shape that train as one model; auto: on a GPU; anywhere, jobs that "
            "differ in decoding alone train once; off: each by itself.",
        ),
    ] = "auto",
) -> None:
    """Run what is missing, then rank, write the report, and record it all in MLflow.

    Ctrl-C once: no new jobs start, running ones keep a checkpoint and end; twice: now. The same
    command goes on where it stopped, after a kill or a power cut too.

    Exit status: 0 all jobs ended (one that diverged ended: that is a finding); 1 some job failed
    or has no result, or a design has arms to come; 2 the request was wrong; 130 stopped by Ctrl-C.
    """
    from ablate.display import make_display
    from ablate.engines import engine_class
    from ablate.run import RunOptions, run, warm_up
    from ablate.table import answer
    from ablate.timing import gpu_crew

    engine_class(engine)  # one that is not there is refused before anything is read
    asked = request(study, data, checkpoint, seeds, sets, out)
    asked.options = replace(asked.options, resources=tuple(resources or ()))
    asked.ledger.prepare()
    asked.say_replaced()
    made: list[Ranking] = []

    def conclude(results: Mapping[str, Result]) -> tuple[Ranking, list[Path]]:
        made.append(asked.rank(results))
        return made[0], asked.answer(made[0], results)

    options = RunOptions(workers, engine, retry_failed, rerun, fused(fuse))
    warm_up(asked.study, options)
    plan = asked.plan
    crew = gpu_crew(asked, engine, workers, options.fuse)
    for note in crew.notes:
        complain(f"estimate: {note}")
    options = replace(options, gpus=crew.gpus, room=crew.room)
    display = make_display()
    try:
        recorder = partial(_recorder, asked)
        summary = run(asked.study, plan, out, options, display, recorder, conclude, asked.grow)
    finally:
        display.close()
        if made:  # also when what follows the ranking failed
            console().print(answer(made[0]))
    where = ["--engine", engine] if engine != "pool" else []
    where += [word for one in resources or () for word in ("--resource", one)]
    for line in farewell(asked, summary, where):
        console().print(line, soft_wrap=True)
    if summary.interrupted:
        raise typer.Exit(STOPPED)
    if summary.count("failed") or summary.missing or summary.more:
        raise typer.Exit(FAILED)


def _recorder(asked: Request) -> Any:
    """Called in a thread of its own: MLflow's import takes seconds."""
    from ablate.record import Recorder

    return Recorder(asked.ledger.out, asked.study)


def farewell(asked: Request, summary: RunSummary, where: Sequence[str] = ()) -> list[str]:
    """What remains, where everything is, and how to look at it.

    Args:
        asked: the request that ran.
        summary: how it went.
        where: the words that say on which engine: jobs may still be with it.
    """
    again = " ".join(filter(None, [f"ablate run {arguments(asked)}", shlex.join(where)]))
    lines = []
    if summary.interrupted:
        ended = len(summary.results)
        lines.append(f"Stopped: {ended} jobs ended, {len(summary.missing)} to go: {again}")
    elif summary.missing:
        lines.append(f"{len(summary.missing)} jobs have no result; run again: {again}")
    elif summary.more:
        lines.append(f"Not all that follows from results was planned; run again: {again}")
    if failed := summary.count("failed"):
        lines.append(f"{failed} failed; again with: {again} --retry-failed")
    folder = asked.options.out / asked.study.name
    lines.append(f"run folder  {folder}")
    if (folder / "report.html").exists() and not summary.interrupted:
        lines.append(f"report      {folder / 'report.html'}")
    lines.append(f"MLflow      {make_ui(asked)}   or   ablate ui {arguments(asked)}")
    return lines


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

    asked = request(study, data, checkpoint, seeds, sets, out).of_jobs()
    code, guess = asked.core.source_hash(), asked.estimate()
    value = status_json(
        asked.study, asked.plan, asked.ledger, asked.state, asked.results, code, guess
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
    table: Table = None,
    as_json: Json = False,
) -> None:
    """Rank the configs against the success criteria, from the results that there are."""
    from ablate.table import answer

    asked = request(study, data, checkpoint, seeds, sets, out, table).of_jobs()
    ranking = asked.rank()
    asked.warn()
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
    table: Table = None,
) -> None:
    """Write the report, one HTML page that needs nothing else, from the results that there are."""
    asked = request(study, data, checkpoint, seeds, sets, out, table).of_jobs()
    asked.ledger.prepare()
    asked.keep_study()
    console().print(str(asked.report(asked.rank())), soft_wrap=True)
    asked.warn()


def record(
    study: StudyName,
    data: Data = None,
    checkpoint: Checkpoint = None,
    seeds: Seeds = None,
    sets: Sets = None,
    out: Out = RUNS,
) -> None:
    """Make MLflow show what the run folder holds; a second time changes nothing."""
    asked = request(study, data, checkpoint, seeds, sets, out).of_jobs()
    with asked.ledger.lock():  # a running study has its own writer
        asked.keep_study()
        ranking = asked.rank()
        files = asked.answer(ranking, asked.results)
        from ablate.record import rebuild

        try:
            rebuild(asked.study, asked.plan, asked.ledger, ranking, files)
        except Exception as error:  # noqa: BLE001 - its network's, its database's: all one here
            complain(
                f"ablate: MLflow cannot be written: {type(error).__name__}: {error}; the ledger "
                "keeps everything, the same command makes MLflow complete later"
            )
            raise typer.Exit(FAILED) from None
    console().print(f"{len(asked.results)} jobs of {asked.study.name} are in MLflow")
    asked.warn()


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
