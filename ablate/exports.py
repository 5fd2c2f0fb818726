"""`ablate export`: a study's results in the form of other tools."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ablate.nouns import StudyError
from ablate.request import (
    RUNS,
    Checkpoint,
    Data,
    Out,
    Request,
    Seeds,
    Sets,
    StudyName,
    arguments,
    console,
    request,
)

app = typer.Typer(
    help="Write a study's results in the form of other tools.",
    rich_markup_mode=None,
)

StorageFile = Annotated[
    Path,
    typer.Argument(metavar="FILE", help="SQLite (.db) or a journal (.jsonl), by its suffix."),
]
TableFile = Annotated[Path, typer.Argument(metavar="FILE", help="The CSV file to write.")]


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        sys.stdout.write(context.get_help() + "\n")


@app.command()
def table(
    study: StudyName,
    file: TableFile,
    data: Data = None,
    checkpoint: Checkpoint = None,
    seeds: Seeds = None,
    sets: Sets = None,
    out: Out = RUNS,
) -> None:
    """A tidy CSV, one row a job: levels, seed, state, readings. `rank --from` reads it again."""
    from ablate.files import write_atomic
    from ablate.shipped import to_table

    asked = _ended(request(study, data, checkpoint, seeds, sets, out))
    text = to_table(asked.study, asked.options, asked.plan, asked.results)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, text)
    except OSError as error:
        raise StudyError(f"{file}: cannot be written ({error.strerror})") from None
    console().print(f"{len(asked.results)} jobs of {asked.study.name} are in {file}")
    asked.warn()


@app.command()
def optuna(
    study: StudyName,
    file: StorageFile,
    data: Data = None,
    checkpoint: Checkpoint = None,
    seeds: Seeds = None,
    sets: Sets = None,
    out: Out = RUNS,
) -> None:
    """An Optuna storage, a trial a job: optuna-dashboard and optuna.load_study open it."""
    from ablate.optuna_export import export

    asked = _ended(request(study, data, checkpoint, seeds, sets, out))
    count = export(asked.study, asked.plan, asked.ledger, asked.results, file)
    console().print(f"{count} trials of {asked.study.name} are in {file}")
    asked.warn()


def _ended(asked: Request) -> Request:
    """The study, which must have a job that ended."""
    if not asked.results:
        raise StudyError(
            f"{asked.study.name}: no job has ended in {asked.options.out}; first: ablate run "
            f"{arguments(asked)}"
        )
    return asked
