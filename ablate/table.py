"""The ranking in the terminal: a table of 100 to 120 columns, and what it says in sentences."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ablate import wording
from ablate.arm import CriterionReading, RankedArm, Verdict
from ablate.rank import Ranking
from ablate.stats import Effect

STYLES: dict[Verdict, str] = {
    "passed": "bold green",
    "likely": "green",
    "failed": "red",
    "not testable": "dim",
}
EFFECTS_SHOWN = 40
"""Lines per group of effects; the report has all."""


def answer(ranking: Ranking) -> RenderableType:
    """Everything that a terminal shows of a ranking."""
    parts: list[RenderableType] = [ranking_table(ranking), Text(wording.LEGEND, "dim"), Text()]
    parts += [Text(line) for line in wording.sentences(ranking)]
    parts += [Text(f"Note: {note}.", "yellow") for note in ranking.notes]
    parts += effects_tables(ranking)
    return Group(*parts)


def ranking_table(ranking: Ranking) -> Table:
    """Rank, arm, criteria with value and verdict mark, seeds, notes."""
    table = Table(title=ranking.study, title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("#", justify="right")
    table.add_column("arm", min_width=14, overflow="fold")
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
        metrics = list(dict.fromkeys(effect.metric for effect in effects))
        first = ("px error", "loss", "uniformity")
        shown = sorted(
            (m for m in metrics if wording.name(m) in first),
            key=lambda m: first.index(wording.name(m)),
        )
        rows: dict[tuple[str, str], dict[str, Effect]] = {}
        for effect in effects:
            place = rows.setdefault((effect.factor, f"{effect.against} -> {effect.level}"), {})
            place[effect.metric] = effect
        table = Table(box=None, pad_edge=False)
        table.add_column("factor")
        table.add_column("change", overflow="fold")
        for metric in shown or metrics[:3]:
            table.add_column(wording.name(metric), no_wrap=True)
        table.add_column("seeds" if kind != "main effect" else "jobs", justify="right")
        for (factor, change), found in list(rows.items())[:EFFECTS_SHOWN]:
            cells = [_effect(found.get(metric)) for metric in shown or metrics[:3]]
            table.add_row(factor, change, *cells, str(max(e.n for e in found.values())))
        title = wording.effect_title(kind, ranking)
        title += " (x: ratio; 95 % interval; * clear after Holm's correction)"
        tables += [Text(), Text(title, "bold"), Padding(table, (0, 0, 0, 2), expand=False)]
        notes = dict.fromkeys(effect.note for effect in effects if effect.note)
        tables += [Text(f"  † {note}", "yellow") for note in notes]
        if len(rows) > EFFECTS_SHOWN:
            tables.append(Text(f"  ... {len(rows) - EFFECTS_SHOWN} more in the report", "dim"))
    return tables


def _header(criterion: CriterionReading) -> str:
    first = criterion.readings[0]
    return f"{wording.name(criterion.name)} < {wording.number(first.threshold)}"


def _cell(criterion: CriterionReading) -> Text:
    return Text(wording.criterion_cell(criterion), STYLES[criterion.verdict])


def _seeds(arm: RankedArm) -> str:
    return str(len(arm.seeds)) if len(arm.seeds) == arm.jobs else f"{len(arm.seeds)}/{arm.jobs}"


def _effect(effect: Effect | None) -> Text:
    if effect is None:
        return Text("-", "dim")
    mark = " †" if effect.note else ""
    return Text(wording.amount(effect) + mark, "bold" if effect.clear else "")
