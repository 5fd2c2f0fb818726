"""The command `ablate`: its commands, and one line on stderr for whatever was wrong."""

from __future__ import annotations

import difflib
import gc
import itertools
import os
import sys
from collections.abc import Sequence
from typing import Annotated, cast

import typer

from ablate import commands, exports
from ablate.engines import EngineError
from ablate.nouns import StudyError
from ablate.request import RUNS, Json, Out, complain, console

WRONG_REQUEST = 2

# click's, whether typer brings its own click or not
UsageError = cast("type[Exception]", typer.BadParameter.__bases__[0])

HELP = """Ablation studies of LaneLM: run every arm of a study, rank the configs against the
success criteria, say what each change did.

\b
  ablate plan strategy1        what would run
  ablate run strategy1         run what is missing, rank, write the report
  ablate run strategy1 --data CULane --seeds 5 --set optim.steps=1000
  ablate rank strategy1        the configs, best first
  ablate ui strategy1          MLflow, opened on these configs
  ablate show 3f2a             one job, by the beginning of its id

STUDY is a YAML file, or the name of one in studies/. Everything lands in --out (runs/), every job
once, shared by all studies there: running a study again runs only what is missing.

A study's `design:` is factorial, one_at_a_time, leave_one_out, fractional, list, paths or search;
`pruning:` and `stop_when_passed:` end jobs early. Examples of all: docs/designs.md.

Exit status: 0 all jobs ended; 1 some job failed; 2 the request was wrong, and one line says how;
130 stopped by Ctrl-C.
"""

app = typer.Typer(
    help=HELP,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

JobId = Annotated[str, typer.Argument(metavar="JOB_ID", help="A job's id, or its beginning.")]
OtherId = Annotated[str, typer.Argument(metavar="JOB_ID", help="Another job's.")]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        sys.stdout.write(f"ablate {installed('lanelm-ablate')}\n")
    elif context.invoked_subcommand is None:
        sys.stdout.write(context.get_help() + "\n")


def show(job_id: JobId, out: Out = RUNS, as_json: Json = False) -> None:
    """One job: how it ended, its readings, its settings."""
    from ablate import jobview
    from ablate.ledger import Ledger

    ledger = Ledger(out)
    jobview.show(ledger, jobview.find_job(ledger, job_id), console(), as_json)


def diff(job_id: JobId, other: OtherId, out: Out = RUNS) -> None:
    """What two jobs differ in: settings, then readings."""
    from ablate import jobview
    from ablate.ledger import Ledger

    ledger = Ledger(out)
    ids = jobview.find_job(ledger, job_id), jobview.find_job(ledger, other)
    jobview.diff(ledger, ids, console())


def logs(
    job_id: JobId,
    out: Out = RUNS,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")
    ] = False,
) -> None:
    """What a job logged, then what it printed; -f follows one that runs."""
    from ablate import jobview
    from ablate.ledger import Ledger

    ledger = Ledger(out)

    def write(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    jobview.logs(ledger, jobview.find_job(ledger, job_id), write, follow=follow)


for command in (
    commands.plan,
    commands.run,
    commands.status,
    commands.rank,
    commands.report,
    commands.record,
    commands.ui,
    show,
    diff,
    logs,
):
    app.command()(command)
app.add_typer(exports.app, name="export")


def program() -> int:
    """What `ablate` runs: the command line in a process of its own.

    Looking for cycles in the million objects of MLflow and pandas took a tenth of a command's time,
    and a second more at its end (a study of 96 jobs recorded from scratch).
    """
    gc.set_threshold(20_000, 20, 100)
    try:
        return main()
    finally:
        gc.freeze()  # the process ends: nothing is left to be freed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; its exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        command = typer.main.get_command(app)
        status = command.main(
            args=given,
            prog_name="ablate",
            standalone_mode=False,
        )
        sys.stdout.flush()
    except StudyError as error:
        complain(f"ablate: {error}")
        return WRONG_REQUEST
    except UsageError as error:
        complain(f"ablate: {_usage(error, given)}")
        return WRONG_REQUEST
    except (KeyboardInterrupt, typer.Abort):
        complain("ablate: stopped; what had ended is kept, the same command goes on")
        return commands.STOPPED
    except EngineError as error:
        complain(f"ablate: {error}")
        return commands.FAILED
    except BrokenPipeError:  # `ablate plan | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a folder that takes no files, a lost mount
        place = f"{error.filename}: " if error.filename else ""
        complain(f"ablate: {place}{error.strerror or error}")
        return commands.FAILED
    return status if isinstance(status, int) else 0


def _usage(error: Exception, given: Sequence[str]) -> str:
    """A usage error in one line: what was given, and what is allowed or meant."""
    message = getattr(error, "format_message", lambda: str(error))().rstrip(".")
    context = getattr(error, "ctx", None)
    if context is None:
        return message
    if (option := getattr(error, "option_name", None)) and "such option" in message:
        options = [name for parameter in context.command.params for name in parameter.opts]
        allowed = [name for name in options if name.startswith("--")]
        message = f"no such option: {option}{_hint(option, allowed)}"
    elif "such command" in message:
        commands_ = list(context.command.commands)
        parents = context.command_path.split()
        words = [word for word in given if not word.startswith("-") and word not in parents]
        wrong = next(iter(words), "")
        message = f"no such command: {wrong}{_hint(wrong, commands_)}"
    elif (parameter := getattr(error, "param", None)) and "Invalid value" in message:
        pairs = itertools.pairwise(given)
        values = [value for name, value in pairs if name in parameter.opts]
        message += f"; given {values[-1]!r}" if values else ""
    return f"{message} ({context.command_path} --help explains)"


def _hint(wrong: str, allowed: Sequence[str]) -> str:
    near = difflib.get_close_matches(wrong, allowed, n=1)
    return f"; did you mean {near[0]}?" if near else f"; allowed: {', '.join(allowed)}"
