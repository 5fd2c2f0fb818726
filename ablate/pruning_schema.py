"""The key `pruning` of a study file: {rule: options} in, a `Pruning` or one line out.

Whether any job has the reading that it names shows only when one has ended (`unheard`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal, cast

from ablate import schema
from ablate.ledger import Ledger
from ablate.nouns import Pruning, Result
from ablate.strict_yaml import Entry

RULES: dict[str, tuple[str, ...]] = {
    "median": ("startup", "warmup"),
    "asha": ("min_steps", "factor"),
    "hyperband": ("min_steps", "max_steps", "factor"),
    "wilcoxon": ("p",),
}
NEEDED = {"asha": ("min_steps",), "hyperband": ("min_steps", "max_steps")}


def read_pruning(entry: Entry | None, n_seeds: int) -> Pruning | None:
    """What jobs are stopped by; None: nothing.

    Args:
        entry: {rule: {reading: ..., option: number}}.
        n_seeds: of the study; Wilcoxon's test needs several.
    """
    if entry is None or entry.is_null():
        return None
    named = entry.entries(tuple(RULES))
    if len(named) != 1:
        raise entry.error(f"given {len(named)} rules, must be one of {', '.join(RULES)}")
    ((rule, given),) = named.items()
    values = given.entries(("reading", *RULES[rule]))
    for name in ("reading", *NEEDED.get(rule, ())):
        if name not in values:
            raise given.error(f"{name}: is missing")
    ((reading, direction),) = schema.read_objective(values["reading"]).items()
    options: dict[str, float] = {}
    for name in RULES[rule]:
        if name in values:
            options[name] = _number(name, values[name])
    if rule == "hyperband" and options["max_steps"] <= options["min_steps"]:
        raise given.error("max_steps must be above min_steps")
    if rule == "wilcoxon":
        p = options.get("p", 0.1)
        least = 0.5 ** (n_seeds - 1)
        if not least < p:
            raise given.error(
                f"with {n_seeds} seeds no arm can be pruned before its last: p would be {least:g} "
                f"at best, must be below {p:g}; give more seeds"
            )
    return Pruning(
        cast('Literal["median", "asha", "hyperband", "wilcoxon"]', rule),
        reading,
        direction,
        options,
    )


def pruning_plain(pruning: Pruning | None) -> dict[str, Any] | None:
    """The form that `read_pruning` reads."""
    if pruning is None:
        return None
    reading = {pruning.reading: pruning.direction}
    return {pruning.rule: {"reading": reading, **pruning.options}}


def unheard(pruning: Pruning | None, results: Mapping[str, Result], ledger: Ledger) -> str | None:
    """A line when what pruning looks at is in no finished job; None too while none has finished.

    Args:
        pruning: of the study.
        results: by job id.
        ledger: has their events.
    """
    states = {result.state for result in results.values()}
    if pruning is None or "pruned" in states or "done" not in states:
        return None
    known: set[str] = set()
    for job_id, result in results.items():
        if result.state != "done":
            continue
        names = set(result.metrics)
        if pruning.rule != "wilcoxon":
            steps = [event for event in ledger.read_events(job_id)[0] if "step" in event]
            names = {name for event in steps for name in event.get("metrics") or {}}
        if pruning.reading in names:
            return None
        known |= names
    near = difflib.get_close_matches(pruning.reading, sorted(known), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"pruning: no finished job has reported {pruning.reading}: none can be pruned{hint}"


def _number(name: str, entry: Entry) -> float:
    if name == "p":
        value = entry.typed(float, "a number between 0 and 1")
        if not 0 < value < 1:
            raise entry.error(f"given {value}, must be between 0 and 1")
        return value
    least = {"startup": 1, "warmup": 0, "factor": 2}.get(name, 1)
    value = entry.typed(int, f"a whole number from {least}")
    if value < least:
        raise entry.error(f"given {value}, must be a whole number from {least}")
    return value
