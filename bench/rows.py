"""One line of bench/RESULTS.md, and how scripts hand theirs in."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

HANDED_IN = "BENCH_ROWS"
"""Environment variable: the file that `python -m bench` collects rows in."""


@dataclass(frozen=True)
class Row:
    """A figure, what it stands against, and what was asked of it."""

    what: str
    ours: str
    baseline: str
    ratio: float
    goal: str
    met: bool
    unit: str = "x"

    @classmethod
    def faster(cls, what: str, ours: float, baseline: float, goal: float, name: str) -> Row:
        """Seconds against seconds: how many times faster ours is, at least `goal`."""
        ratio = baseline / ours
        times = f"{1e3 * ours:.1f} ms", f"{1e3 * baseline:.1f} ms ({name})"
        return cls(what, *times, ratio, f">= {goal:g}x", ratio >= goal)

    @classmethod
    def within(cls, what: str, seconds: float, worst: float, limit: float) -> Row:
        """Seconds that stay under `limit`, beside the worst of the repeats."""
        took = f"{seconds:.1f} s (worst {worst:.1f})"
        return cls(what, took, "", seconds, f"< {limit:g} s", seconds < limit, "seconds")

    def value(self) -> str:
        """The ratio as it is to be read; plain seconds have none."""
        said = {
            "x": f"{self.ratio:.2f}x",
            "share": f"{self.ratio:.1%}",
            "ms": f"{self.ratio:.1f} ms",
        }
        return said.get(self.unit, "")

    def verdict(self) -> str:
        """Whether the goal is met; empty where there is none."""
        return "" if self.goal.startswith("none") else "yes" if self.met else "no"


def hand_in(rows: Iterable[Row]) -> None:
    """Print rows; and keep them where `python -m bench` collects them."""
    rows = list(rows)
    table = Table("what", "ours", "baseline", "ratio", "goal", "met")
    for row in rows:
        table.add_row(row.what, row.ours, row.baseline, row.value(), row.goal, row.verdict())
    Console(width=140).print(table)
    if path := os.environ.get(HANDED_IN):
        with Path(path).open("a") as file:
            file.writelines(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows)
