"""What a search's readings hung on: planted, silent where little is known, absent from grids."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ablate.conclude import rank_study, results_of, write_report
from ablate.core import load_core
from ablate.designs import Axis
from ablate.importance import point_of
from ablate.ledger import Ledger
from ablate.nouns import Options
from ablate.planner import Planner
from ablate.rank import Ranking
from ablate.reader import load_study
from ablate.search import importances
from ablate.space import Range, Space
from ablate.table import answer
from tests.ablate.test_adaptive import go, write

FACTORS = {"idle": {"one": {"fault_times": 1}, "two": {"fault_times": 2}}}  # no fault is asked for
RANGES = {"lr": {"low": 0.001, "high": 1.0, "log": True}}
SEARCH = {"sampler": "random", "objective": "final/loss", "ranges": RANGES}

SPACE = Space(
    [Axis.of("mode", "a", "b"), Axis.of("idle", "a", "b")],
    {"lr": Range(1e-6, 1.0, log=True), "n": Range(1, 8), "x": Range(0.0, 1.0)},
)


def planted(n: int) -> tuple[list[dict[str, Any]], list[float]]:
    """The rate's power of ten matters and the mode does, nothing else."""
    draw = random.Random(0)
    points, scores = [], []
    for _ in range(n):
        power = draw.uniform(-6, 0)
        point = {"mode": draw.choice("ab"), "idle": draw.choice("ab"), "lr": 10**power}
        points.append(point | {"n": draw.randint(1, 8), "x": draw.random()})
        scores.append(power + 3 * (point["mode"] == "a") + draw.gauss(0, 0.1))
    return points, scores


def test_fanova_finds_what_matters_in_the_range_as_it_is_searched() -> None:
    points, scores = planted(60)
    method, shares = importances.importances(SPACE, points, scores, 0)
    assert method == "fanova"
    assert set(shares) == {"mode", "idle", "lr", "n", "x"}
    # of the variance 36 / 12 is the power's, 9 / 4 the mode's
    assert shares["lr"] == pytest.approx(3 / 5.25, abs=0.15)
    assert shares["mode"] == pytest.approx(2.25 / 5.25, abs=0.15)
    assert max(shares[name] for name in ("idle", "n", "x")) < 0.02
    assert sum(shares.values()) < 1
    assert importances.importances(SPACE, points, scores, 0) == (method, shares)


@pytest.mark.parametrize("why", ["too many points", "no scikit-learn"])
def test_ped_anova_stands_in(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    if why == "too many points":
        monkeypatch.setattr(importances, "FANOVA_POINTS", 59)
    else:

        def missing(**_: Any) -> None:
            raise ImportError("sklearn")

        monkeypatch.setattr(importances.optuna.importance, "FanovaImportanceEvaluator", missing)
    method, weights = importances.importances(SPACE, *planted(60), 0)
    assert method == "ped_anova"
    assert sum(weights.values()) == pytest.approx(1)
    assert weights["lr"] > 2 * max(weights[name] for name in ("idle", "n", "x"))


def said(ranking: Ranking) -> str:
    console = Console(width=400, file=io.StringIO(), record=True)
    console.print(answer(ranking))
    return console.export_text()


def ranked(folder: Path, **changes: Any) -> tuple[Ranking, str, str]:
    """The ranking of a study that was run, and its report as HTML and Markdown."""
    file, out = write(folder, **({"factors": FACTORS, "seeds": [0]} | changes)), folder / "out"
    go(file, out)
    study = load_study(str(file))
    plan = Planner(study, Options(out=out)).plan()
    ledger = Ledger(out)
    results = results_of(study, plan, ledger)
    ranking = rank_study(study, plan, load_core(study.core), results)
    page = write_report(study, plan, ledger, ranking, results, "")
    return ranking, page.read_text(), page.with_suffix(".md").read_text()


TITLE = "What the search's readings hung on"


def test_a_search_says_them_everywhere(tmp_path: Path) -> None:
    ranking, html, markdown = ranked(tmp_path, design={"search": SEARCH | {"trials": 14}})
    first, last = ranking.importances
    assert (first.parameter, first.method, first.points, first.scale) == ("lr", "fanova", 14, "log")
    assert first.value > 0.8
    assert last.parameter == "idle"
    assert last.value < 0.05
    assert [one["parameter"] for one in ranking.to_json()["importances"]] == ["lr", "idle"]
    shown = said(ranking)
    for text in (html, markdown, shown):
        assert TITLE.replace("'", "&#39;") in text or TITLE in text
        assert first.text in text
        assert "fANOVA" in text
    assert not any("importances" in note for note in ranking.design)


def test_of_few_points_a_line_says_that_nothing_is_said(tmp_path: Path) -> None:
    ranking, html, markdown = ranked(tmp_path, design={"search": SEARCH | {"trials": 4}})
    assert ranking.importances == ()
    line = "search: importances for final/loss are told from 10 points on; 4 have a reading"
    assert line in ranking.design
    assert line in said(ranking)
    assert line in markdown
    assert "hung on" not in html + markdown


def test_a_grid_shows_none(tmp_path: Path) -> None:
    levels = {f"l{i}": {"lr": 0.1 * i} for i in range(1, 7)}
    ranking, html, markdown = ranked(tmp_path, factors=FACTORS | {"lr": levels}, design="factorial")
    assert len(ranking.arms) == 12
    assert ranking.importances == ()
    assert ranking.design == ()
    assert "hung on" not in html + markdown + said(ranking)


def test_arms_that_the_search_cannot_come_to_are_no_points() -> None:
    space = Space([Axis.of("a", "0", "1"), Axis.of("b", "0", "1")], {"x": Range(0.0, 1.0)}, ["a"])
    point = {"a": "1", "x": 0.5}
    assert point_of(space, {"a": "1", "b": "0", "x": "0.5"}) == point
    assert point_of(space, {"a": "1", "b": "1", "x": "0.5"}) is None  # b does not vary
    assert point_of(space, {"a": "1", "b": "0", "x": "base"}) is None
