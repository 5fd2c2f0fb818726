"""The ranking in the terminal: a table of 100 to 120 columns, and what it says in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ablate import importance, wording
from ablate.arm import CriterionReading, RankedArm, Verdict
from ablate.rank import Ranking
from ablate.stats import Effect

if TYPE_CHECKING:
    from ablate.anova import Term

STYLES: dict[Verdict, str] = {
    "passed": "bold green",
    "likely": "green",
    "failed": "red",
    "not testable": "dim",
}
EFFECTS_SHOWN = 40
"""Lines per group of effects; the report has all."""
EFFECT_LEGEND = "x: ratio; 95 % interval; * clear after Holm's correction"
DESIGN_SHOWN = 8
LABEL_WIDTH = 24
"""Longest label of an arm that is not folded."""


def answer(ranking: Ranking) -> RenderableType:
    """Everything that a terminal shows of a ranking."""
    parts: list[RenderableType] = [ranking_table(ranking), Text(wording.LEGEND, "dim"), Text()]
    parts += [Text(line) for line in (*wording.sentences(ranking), wording.front(ranking)) if line]
    parts += [Text(f"Note: {note}.", "yellow") for note in ranking.notes]
    parts += [Text(f"Design: {note}", "yellow") for note in ranking.design[:DESIGN_SHOWN]]
    if len(ranking.design) > DESIGN_SHOWN:
        parts.append(Text(f"... {len(ranking.design) - DESIGN_SHOWN} more in the report", "dim"))
    parts += [*effects_tables(ranking), *variance_table(ranking)]
    parts += importance_table(ranking)
    return Group(*parts)


def ranking_table(ranking: Ranking) -> Table:
    """Rank, arm, criteria with value and verdict mark, seeds, notes."""
    table = Table(title=ranking.study, title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("#", justify="right")
    longest = max((len(arm.arm) for arm in ranking.arms), default=0)
    table.add_column("arm", min_width=min(longest, LABEL_WIDTH), overflow="fold")
    if ranking.arms:
        for criterion in ranking.arms[0].criteria:
            table.add_column(_header(criterion), no_wrap=True)
    table.add_column("seeds", justify="right")
    table.add_column("notes", overflow="fold", max_width=30)
    for arm in ranking.arms:
        table.add_row(
            "-" if arm.rank is None else str(arm.rank),
            Text(arm.arm, "bold" if arm.rank == 1 else ""),
            *(_cell(criterion) for criterion in arm.criteria),
            _seeds(arm),
            Text(wording.short_notes(arm), "yellow"),
        )
    return table


def effects_tables(ranking: Ranking) -> list[RenderableType]:
    """A table per kind of effect: a line per change, a column per metric."""
    tables: list[RenderableType] = []
    for kind in dict.fromkeys(effect.kind for effect in ranking.effects):
        effects = [effect for effect in ranking.effects if effect.kind == kind]
        rows: dict[tuple[str, str], dict[str, Effect]] = {}
        for effect in effects:
            place = rows.setdefault((effect.factor, f"{effect.against} -> {effect.level}"), {})
            place[effect.metric] = effect
        read = {p: found for p, found in rows.items() if any(e.n for e in found.values())}
        title = wording.effect_title(kind, ranking)
        tables += [Text(), Text(f"{title} ({EFFECT_LEGEND})", "bold")]
        if read:
            table = _effects_table(kind, effects, read)
            tables.append(Padding(table, (0, 0, 0, 2), expand=False))
        notes: dict[str, dict[str, None]] = {}
        for effect in effects:
            if effect.note:
                notes.setdefault(effect.note, {})[effect.factor] = None
        tables += [Text(f"  † {', '.join(who)}: {note}", "yellow") for note, who in notes.items()]
        if len(read) > EFFECTS_SHOWN:
            tables.append(Text(f"  ... {len(read) - EFFECTS_SHOWN} more in the report", "dim"))
        if unread := [
            f"{factor} {change}" for factor, change in rows if (factor, change) not in read
        ]:
            tables.append(Text(f"  nothing to compare yet: {', '.join(unread)}", "dim"))
    return tables


def _effects_table(
    kind: str, effects: Sequence[Effect], rows: Mapping[tuple[str, str], Mapping[str, Effect]]
) -> Table:
    metrics = list(dict.fromkeys(effect.metric for effect in effects))
    order = {"px_error": 0, "loss": 1, "uniformity": 2}
    last = {metric: metric.rsplit("/", 1)[-1] for metric in metrics}
    shown = [metric for metric in metrics if last[metric] in order]
    shown = sorted(shown, key=lambda metric: order[last[metric]]) or metrics[:3]
    table = Table(box=None, pad_edge=False)
    table.add_column("factor")
    table.add_column("change", overflow="fold")
    for metric in shown:
        table.add_column(wording.name(metric), no_wrap=True)
    table.add_column("jobs" if kind == "main effect" else "seeds", justify="right")
    for (factor, change), found in list(rows.items())[:EFFECTS_SHOWN]:
        cells = [_effect(found.get(metric)) for metric in shown]
        table.add_row(factor, change, *cells, str(max(e.n for e in found.values())))
    return table


def variance_table(ranking: Ranking) -> list[RenderableType]:
    """Shares of the variance by factor and pair; nothing where no grid was run."""
    if not ranking.variance:
        return []
    metrics = list(dict.fromkeys(term.metric for term in ranking.variance))
    table = Table(box=None, pad_edge=False)
    table.add_column("term")
    for metric in metrics:
        table.add_column(wording.name(metric), justify="right", no_wrap=True)
    names: dict[str, dict[str, Term]] = {}
    for term in ranking.variance:
        said = " or ".join((term.term, *term.aliases))
        names.setdefault(said, {})[term.metric] = term
    for said, found in list(names.items())[:EFFECTS_SHOWN]:
        table.add_row(said, *(_share(found.get(metric)) for metric in metrics))
    title = "Shares of the variance (* clear after Holm's correction)"
    return [Text(), Text(title, "bold"), Padding(table, (0, 0, 0, 2), expand=False)]


def importance_table(ranking: Ranking) -> list[RenderableType]:
    """What a search's readings hung on; nothing of other designs."""
    if not ranking.importances:
        return []
    found = importance.columns(ranking.importances)
    table = Table(box=None, pad_edge=False)
    table.add_column("setting")
    for column in found:
        table.add_column(importance.heading(column, found), justify="right", no_wrap=True)
    for name in importance.rows(ranking.importances)[:EFFECTS_SHOWN]:
        cells = [own[name].text if name in own else "-" for own in found.values()]
        table.add_row(Text(name), *cells)
    told = [Text(f"  {line}", "dim") for line in importance.explained(ranking.importances)]
    title = Text("What the search's readings hung on", "bold")
    return [Text(), title, Padding(table, (0, 0, 0, 2), expand=False), *told]


def _share(term: Term | None) -> Text:
    if term is None:
        return Text("-", "dim")
    return Text(
        f"{100 * term.share:.1f} %{'*' if term.clear else ' '}", "bold" if term.clear else ""
    )


def _header(criterion: CriterionReading) -> str:
    return wording.criterion_title(criterion)


def _cell(criterion: CriterionReading) -> Text:
    return Text(wording.criterion_cell(criterion), STYLES[criterion.verdict])


def _seeds(arm: RankedArm) -> str:
    return str(len(arm.seeds)) if len(arm.seeds) == arm.jobs else f"{len(arm.seeds)}/{arm.jobs}"


def _effect(effect: Effect | None) -> Text:
    if effect is None:
        return Text("-", "dim")
    mark = " †" if effect.note else ""
    return Text(wording.amount(effect) + mark, "bold" if effect.clear else "")
