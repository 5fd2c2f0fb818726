"""The key `resources` of a study file, and `--resource path=value` laid over it.

    resources:
      cpus: 1             # for each job
      gpus: 0.25          # a fraction: four jobs share one (Ray); whole ones on Slurm
      memory: 4           # GiB
      storage: shared     # or local: OUT is not seen by the other machines (Ray)
      slurm: {partition: gpu, time: 120}

Nothing here is a setting of a job: the same job on other machines has the same id.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ablate import strict_yaml
from ablate.nouns import Resources, StudyError
from ablate.strict_yaml import Entry

Reader = Callable[[Entry], Any]


def _number(entry: Entry, *, zero: bool = False) -> float:
    allowed = "0 or more" if zero else "more than 0"
    value = entry.typed(float, f"a number, {allowed}")
    if not (value > 0 or (zero and value == 0)) or value == float("inf"):
        raise entry.error(f"given {value:g}, must be {allowed}")
    return value


def _gpus(entry: Entry) -> float:
    value = _number(entry, zero=True)
    if value > 1 and value != int(value):
        raise entry.error(f"given {value:g}, must be a fraction of one, or a whole number")
    return value


def _count(entry: Entry) -> int:
    value = entry.typed(int, "a whole number, 1 or more")
    if value < 1:
        raise entry.error(f"given {value}, must be 1 or more")
    return value


def _flag(entry: Entry) -> bool:
    return entry.typed(bool, "true or false")


def _one_of(*allowed: str) -> Reader:
    def read(entry: Entry) -> str:
        if (given := entry.text()) not in allowed:
            raise entry.error(f"given {given!r}, must be one of {', '.join(allowed)}")
        return given

    return read


def _lines(entry: Entry) -> list[str]:
    return [item.text() for item in entry.items()]


def _words(entry: Entry) -> dict[str, str]:
    return {name: value.text() for name, value in entry.entries().items()}


SLURM: Mapping[str, tuple[Reader, Any, str]] = {
    "partition": (Entry.text, None, "where to run"),
    "account": (Entry.text, None, "who pays"),
    "qos": (Entry.text, None, "quality of service"),
    "constraint": (Entry.text, None, "features that a node must have"),
    "time": (_count, 60, "minutes a task may run before it is requeued from its checkpoint"),
    "requeues": (_count, 50, "how often a task may run out of its time"),
    "warning": (_count, 90, "seconds before the end in which a checkpoint is kept"),
    "jobs_per_task": (_count, 1, "short jobs that one task runs one after the other"),
    "setup": (_lines, [], "shell lines before Python starts: module load cuda"),
    "sbatch": (_words, {}, "any other option of sbatch by its long name"),
    "detach": (_flag, False, "stopping the coordinator leaves its jobs to Slurm"),
    "poll": (_number, 10.0, "seconds between questions to Slurm"),
    "cluster": (_one_of("slurm", "local"), "slurm", "local: submitit's executor on this machine"),
}
"""Key -> how it is read, its default, what it means."""

READERS: Mapping[str, Reader] = {
    "cpus": _number,
    "gpus": _gpus,
    "memory": _number,
    "storage": _one_of("shared", "local"),
}


def read_resources(entry: Entry | None, given: Sequence[str] = ()) -> Resources:
    """What each job needs, with the command line's `path=value`s laid over the file's.

    Raises:
        StudyError: one line that says which key, what was given, what is allowed.
    """
    found = Resources()
    if entry is not None and not entry.is_null():
        found = _lay_over(found, entry)
    for text in given:
        path, _, value = text.partition("=")
        if not path or not value.strip():
            raise StudyError(f"--resource: given {text!r}, must be path=value")
        group, _, key = path.partition(".")
        if (group == "slurm") != bool(key):
            raise StudyError(
                f"--resource: given {path!r}; allowed: {', '.join(READERS)}, slurm.KEY"
            )
        line = f"{key or group}: {value}"
        laid = f"slurm:\n  {line}" if key else line
        found = _lay_over(found, strict_yaml.parse(laid, key="--resource"))
    return found


def _lay_over(under: Resources, entry: Entry) -> Resources:
    laid: dict[str, Any] = {}
    for key, value in entry.entries([*READERS, "slurm"]).items():
        if key != "slurm":
            laid[key] = READERS[key](value)
            continue
        options = value.entries(SLURM)
        laid["slurm"] = {**under.slurm, **{name: SLURM[name][0](e) for name, e in options.items()}}
    return dataclasses.replace(under, **laid)


def plain(resources: Resources) -> dict[str, Any]:
    """What `read_resources` reads to the same; only what differs from the defaults."""
    neutral = dataclasses.asdict(Resources())
    return {k: v for k, v in dataclasses.asdict(resources).items() if v != neutral[k]}


def slurm_option(resources: Resources, name: str) -> Any:
    """An option of `resources.slurm`, or its default."""
    return resources.slurm.get(name, SLURM[name][1])
