"""Charts of the report as inline SVG: text stays text, ink takes the page's colour (dark mode).

Pure: the same values give the same bytes.
"""

from __future__ import annotations

import html
import io
import math
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from ablate import wording
from ablate.stats import Effect, scale_of

if TYPE_CHECKING:
    from ablate.margins import Interaction

INK = "#010203"
"""Stands for the page's own text colour while matplotlib draws."""
LINE = "#2f7fd6"
ACCENT = "#d97706"
FAINT = "#8a8f98"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a level may be called $\frac$
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.formatter.useoffset": False,
}


class Curve(NamedTuple):
    """A reading over the steps: mean over seeds, and the lowest and highest seed."""

    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


def curve(histories: Sequence[Mapping[int, float]]) -> Curve | None:
    """Bring seeds together at the steps that all of them have; None without any."""
    if not histories:
        return None
    common = sorted(set.intersection(*(set(own) for own in histories)))
    if not common:
        return None
    columns = [[own[step] for own in histories] for step in common]
    means = [math.fsum(column) / len(column) for column in columns]
    return Curve(common, means, [min(c) for c in columns], [max(c) for c in columns])


def learning_curve(
    own: Curve,
    reference: Curve | None,
    *,
    title: str,
    log: bool,
    limits: tuple[float, float],
    threshold: float | None,
) -> str:
    """One arm over the steps, with the base arm dashed and the criterion's threshold dotted.

    Args:
        own: the arm's curve.
        reference: the base arm's.
        title: over the chart.
        log: logarithmic values.
        limits: of the values, the same for all arms.
        threshold: of the criterion that reads this metric.
    """
    with _figure(2.7, 1.9, constrained=False) as (figure, axes):
        figure.subplots_adjust(left=0.17, right=0.98, bottom=0.14, top=0.88)
        axes.fill_between(own.steps, own.low, own.high, color=LINE, alpha=0.25, linewidth=0)
        axes.plot(own.steps, own.mean, color=LINE, linewidth=1.6)
        if reference is not None:
            axes.plot(reference.steps, reference.mean, "--", color=FAINT, linewidth=1.2)
        if threshold is not None:
            axes.axhline(threshold, color=ACCENT, linewidth=1, linestyle=":")
        axes.set_ylim(*limits)
        if log:
            subs = (1.0,) if limits[1] > 100 * limits[0] else (1.0, 2.0, 5.0)
            _log_axis(axes.yaxis, axes.set_yscale, "{x:g}", subs)
        axes.set_title(title, loc="left")
        return _svg(figure, title)


def forest(effects: Sequence[Effect], title: str) -> str:
    """Effects on one metric with their intervals; filled where clear after the correction."""
    shown = [e for e in effects if e.estimate is not None and math.isfinite(e.estimate)]
    with _figure(4.3, 0.75 + 0.26 * max(1, len(shown))) as (figure, axes):
        ratio = bool(shown) and all(e.scale == "ratio" for e in shown)
        for place, effect in enumerate(shown):
            assert effect.estimate is not None
            color = LINE if effect.clear else FAINT
            if effect.low is not None and effect.high is not None:
                axes.plot([effect.low, effect.high], [place, place], color=color, linewidth=2)
            face = color if effect.clear else "none"
            axes.plot([effect.estimate], [place], "o", markersize=6, mfc=face, mec=color)
        axes.axvline(1 if ratio else 0, color=FAINT, linewidth=1, linestyle=":")
        if ratio:
            low, high = _ratio_limits(shown)
            subs = (1.0,) if high > 200 * low else (1.0, 2.0, 5.0)
            _log_axis(axes.xaxis, axes.set_xscale, "x{x:g}", subs)
            axes.set_xlim(low, high)
        else:
            axes.locator_params(axis="x", nbins=5)  # room for numbers of many digits
        axes.set_yticks(
            range(len(shown)), [wording.cut(f"{e.factor}: {e.level}", 40) for e in shown]
        )
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_title(title, loc="left")
        return _svg(figure, title)


def trade_off(
    points: Sequence[tuple[str, float, float, bool]], x: str, y: str, ratios: bool = True
) -> str:
    """Arms between two readings, both the less the better; those that nothing beats are filled.

    Args:
        points: a short label, both readings, and whether the arm is on the Pareto front.
        x: name of the first reading.
        y: of the second.
        ratios: whether the second is compared as ratios, so that decades have their place.
    """
    with _figure(3.6, 2.6) as (figure, axes):
        for _, across, up, front in points:
            face = LINE if front else "none"
            axes.plot([across], [up], "o", markersize=6, mfc=face, mec=LINE if front else FAINT)
        for axis, set_scale, own, decades in (
            (axes.xaxis, axes.set_xscale, [point[1] for point in points], True),
            (axes.yaxis, axes.set_yscale, [point[2] for point in points], ratios),
        ):
            if decades and own and min(own) > 0 and max(own) > 10 * min(own):
                subs = (1.0,) if max(own) > 100 * min(own) else (1.0, 2.0, 5.0)
                _log_axis(axis, set_scale, "{x:g}", subs)
        axes.set_xlabel(x)
        axes.set_title(y, loc="left")
        axes.margins(0.15)
        _label_places(axes, points)
        return _svg(figure, f"{y} against {x}")


def _label_places(axes: Any, points: Sequence[tuple[str, float, float, bool]]) -> None:
    """Label points; those that would print over each other share a label."""
    places: list[tuple[float, float, list[str], tuple[float, float]]] = []
    for label, across, up, _ in points:
        at = axes.transAxes.inverted().transform(axes.transData.transform((across, up)))
        for other_x, other_y, labels, _ in places:
            if abs(at[0] - other_x) < 0.12 and abs(at[1] - other_y) < 0.07:
                labels.append(label)
                break
        else:
            places.append((at[0], at[1], [label], (across, up)))
    for _, _, labels, place in places:
        text = ", ".join(labels[:4]) + (" …" if len(labels) > 4 else "")
        axes.annotate(text, place, (5, 4), textcoords="offset points", fontsize=8)


def interaction(pair: Interaction) -> str:
    """What one factor does at each level of the other: parallel lines would be no interaction."""
    levels = list(dict.fromkeys(cell.level for cell in pair.cells))
    with _figure(3.6, 2.6) as (figure, axes):
        others = list(dict.fromkeys(cell.other for cell in pair.cells))
        for place, other in enumerate(others):
            means = {cell.level: cell.mean for cell in pair.cells if cell.other == other}
            here = [index for index, level in enumerate(levels) if level in means]
            axes.plot(
                here,
                [means[levels[index]] for index in here],
                ("o-", "s--", "^:", "D-.")[place % 4],
                color=(LINE, ACCENT, FAINT, INK)[place % 4],
                linewidth=1.6,
                markersize=5,
                # matplotlib's legends leave out what begins with an underscore
                label=" " * pair.other.startswith("_") + wording.cut(f"{pair.other}: {other}", 32),
            )
        values = [cell.mean for cell in pair.cells]
        ratios = scale_of(pair.metric) == "ratio" and min(values) > 0
        if ratios and max(values) > 10 * min(values):
            wide = max(values) > 1000 * min(values)
            _log_axis(axes.yaxis, axes.set_yscale, "{x:g}", (1.0,) if wide else (1.0, 2.0, 5.0))
        axes.set_xticks(range(len(levels)), [wording.cut(level, 24) for level in levels])
        axes.set_xlabel(wording.cut(pair.factor, 40))
        axes.margins(0.15)
        figure.legend(frameon=False, fontsize=8, loc="outside lower left", ncols=2)
        axes.set_title(wording.name(pair.metric), loc="left")
        return _svg(figure, f"{wording.name(pair.metric)}: {pair.factor} by {pair.other}")


def _ratio_limits(effects: Sequence[Effect]) -> tuple[float, float]:
    """All estimates and 1; the interval of two seeds may span decades and runs out of the chart."""
    estimates = [e.estimate for e in effects if e.estimate] + [0.8, 1.25]
    ends = [end for e in effects for end in (e.low, e.high) if end and math.isfinite(end)]
    low = max(min([*estimates, *ends]), min(estimates) / 10)
    high = min(max([*estimates, *ends]), max(estimates) * 10)
    return low / 1.1, high * 1.1


def _log_axis(axis: Any, set_scale: Any, form: str, subs: tuple[float, ...]) -> None:
    """A logarithmic axis with plain numbers at a few round places."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    set_scale("log")
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(StrMethodFormatter(form))
    axis.set_minor_formatter(NullFormatter())


def limits_of(curves: Sequence[Curve], log: bool) -> tuple[float, float]:
    """Common limits of the values of several curves, with a little room."""
    values = [v for own in curves for v in (*own.low, *own.high) if not log or v > 0]
    low, high = min(values, default=0.1), max(values, default=1.0)
    if log:
        return low / 1.3, high * 1.3
    room = 0.05 * (high - low) or 0.05
    return low - room, high + room


@contextmanager
def _figure(width: float, height: float, constrained: bool = True) -> Iterator[tuple[Any, Any]]:
    """A figure of so many inches, without pyplot's global state."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # the page's own fonts draw the text: those at hand here only measure it
    warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained" if constrained else None)
        yield figure, figure.add_subplot()


def _svg(figure: Any, label: str) -> str:
    """The figure as an `<svg>` element that scales with the page and has a name for readers."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    name = html.escape(label, quote=True)
    # every chart gets ids of its own: clip paths are looked up in the whole page
    salt = f"c{zlib.crc32(text.encode()):x}-"

    def own(tag: re.Match[str]) -> str:
        salted = re.sub(r' id="', f' id="{salt}', tag[0])
        return re.sub(r'(url\(|href=")#', rf"\1#{salt}", salted).replace(INK, "currentColor")

    text = re.sub(r"<[^>]+>", own, text)
    return text.replace("<svg", f'<svg role="img" aria-label="{name}"', 1)


def threshold_of(metric: str, conditions: Sequence[tuple[str, float]]) -> float | None:
    """The threshold of the criterion that reads a metric, by its last name."""
    names = {name.rsplit("/", 1)[-1]: value for name, value in conditions}
    return names.get(metric.rsplit("/", 1)[-1])
