"""The figures of RESULTS.md, drawn from the shipped result tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from ablate import wording
from ablate.shipped import LEVEL
from ablate.stats import t_interval
from studies.shipped_tables import ROOT, shipped

FOLDER = ROOT / "docs" / "results"
COLORS = ("#2f7fd6", "#d97706", "#3f9b5b", "#9b4fb0", "#8a8f98")
FAINT = "#8a8f98"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.parse_math": False,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
}
WAYS = {
    "one_at_a_time": "one change each, in the first levels",
    "leave_one_out": "one level back each, in the last levels",
}
"""Designs whose arms are drawn beside a reference, and what each arm of them is."""
REFERENCES = {"one_at_a_time": "base", "leave_one_out": "all"}


def arms(file: Path, name: str, metric: str, text: str = "") -> None:
    """Each arm's seeds as dots, the worst on top, beside the arm that they were changed from.

    Args:
        file: the PNG to write.
        name: of the table.
        metric: on a logarithmic axis where it spans decades.
        text: titles of the panels instead of the usual ones, `first|second`.
    """
    frame = shipped(name).frame
    ways = [way for way in WAYS if (frame.design == way).any()]
    titles = text.split("|") if text else [WAYS[way] for way in ways]
    most = max(frame[frame.design == way].arm.nunique() for way in ways)
    size = (5.0 * len(ways), 0.9 + 0.2 * most)
    with figure(*size, 1, len(ways), sharex=True) as (drawn, panels):
        for panel, way, title in zip(panels, ways, titles, strict=True):
            reference = frame[frame.arm == REFERENCES[way]]
            own = frame[(frame.design == way) & (frame.arm != REFERENCES[way])]
            order = own.groupby("arm")[metric].mean().sort_values(na_position="first").index
            for place, arm in enumerate(order):
                values = own[own.arm == arm][metric]
                panel.plot(values, [place] * len(values), "o", color=COLORS[0], alpha=0.7, ms=5)
                if values.isna().all():
                    middle = panel.get_yaxis_transform()
                    panel.text(
                        0.5, place, "not testable", transform=middle, fontsize=7, va="center"
                    )
            if len(reference):
                label = (
                    f"{REFERENCES[way]}: all of the {'first' if way[0] == 'o' else 'last'} levels"
                )
                panel.axvline(reference[metric].mean(), color=COLORS[1], ls=":", label=label)
                panel.legend(frameon=False, fontsize=7, loc="lower right")
            panel.set_yticks(range(len(order)), order)
            panel.set_xlabel(wording.name(metric))
            panel.set_title(title, loc="left")
            scale(panel.xaxis, panel.set_xscale, frame[metric])
        drawn.savefig(file, dpi=130)


def curves(file: Path, name: str, along: str, by: str, *metrics: str) -> None:
    """Readings along the numbers that a factor's levels are, a line per level of other factors.

    Args:
        file: the PNG to write.
        name: of the table.
        along: the factor; its levels are numbers.
        by: other factors, `a,b`.
        metrics: a panel each.
    """
    frame = shipped(name).frame.copy()  # one block again: a table has hundreds of columns
    frame = frame.assign(x=pd.to_numeric(frame[LEVEL + along]))
    factors = [LEVEL + factor for factor in by.split(",")]
    with figure(3.7 * len(metrics), 3.2, 1, len(metrics)) as (drawn, panels):
        for panel, metric in zip(panels, metrics, strict=True):
            for place, (levels, lines) in enumerate(frame.groupby(factors, sort=False)):
                read: dict[Any, list[float]] = {
                    at: values
                    for at, own in lines.groupby("x")[metric]
                    if (values := own.dropna().tolist())
                }
                x = sorted(read)
                mean = [t_interval(read[at]).mean for at in x]
                low, high = [min(read[at]) for at in x], [max(read[at]) for at in x]
                color, label = COLORS[place % len(COLORS)], ", ".join(map(str, levels))
                panel.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
                panel.plot(x, mean, "o-", color=color, ms=4, label=label)
            panel.set_xscale("log")
            panel.set_xticks(sorted(frame.x.unique()))
            panel.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
            panel.xaxis.set_minor_formatter(NullFormatter())
            panel.tick_params(axis="x", which="minor", bottom=False)
            panel.set_xlabel(along)
            panel.set_title(wording.name(metric), loc="left")
            scale(panel.yaxis, panel.set_yscale, frame[metric])
        panels[-1].legend(
            frameon=False, fontsize=8, title=by, loc="center left", bbox_to_anchor=(1, 0.5)
        )
        drawn.savefig(file, dpi=130)


def points(file: Path, name: str, by: str, outcome: str, *metrics: str) -> None:
    """An outcome against other readings, one dot a job, coloured by the level of a factor.

    Args:
        file: the PNG to write.
        name: of the table.
        by: the factor.
        outcome: the reading on the upright axis.
        metrics: a panel each.
    """
    frame = shipped(name).frame
    with figure(3.4 * len(metrics), 3.2, 1, len(metrics), sharey=True) as (drawn, panels):
        for panel, metric in zip(panels, metrics, strict=True):
            for place, (level, jobs) in enumerate(frame.groupby(LEVEL + by, sort=False)):
                color = COLORS[place % len(COLORS)]
                panel.plot(jobs[metric], jobs[outcome], "o", color=color, ms=4, label=str(level))
            panel.set_xlabel(wording.name(metric))
            scale(panel.xaxis, panel.set_xscale, frame[metric])
        panels[0].set_ylabel(wording.name(outcome))
        scale(panels[0].yaxis, panels[0].set_yscale, frame[outcome])
        panels[-1].legend(
            frameon=False, fontsize=8, title=by, loc="center left", bbox_to_anchor=(1, 0.5)
        )
        drawn.savefig(file, dpi=130)


FIGURES = {"arms": arms, "curves": curves, "points": points}


@contextmanager
def figure(
    width: float, height: float, rows: int, columns: int, **options: Any
) -> Iterator[tuple[Figure, Sequence[Any]]]:
    """A figure of so many inches with a row of panels, without pyplot's global state."""
    with rc_context(STYLE):
        drawn = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        yield drawn, list(np.atleast_1d(drawn.subplots(rows, columns, **options)).flat)


def scale(axis: Any, set_scale: Any, values: pd.Series) -> None:
    """A logarithmic axis with plain numbers where positive values span more than a decade."""
    known = values.dropna()
    if len(known) and known.min() > 0 and known.max() > 10 * known.min():
        set_scale("log")
        axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axis.set_minor_formatter(NullFormatter())
