"""RESULTS.md says what the shipped result tables say."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from PIL import Image

from studies import figures, rebuild, shipped_tables

NAMES = sorted(path.stem for path in shipped_tables.FOLDER.glob("*.csv"))


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_table_is_of_its_study_and_ranks(name: str) -> None:
    own = shipped_tables.shipped(name)
    assert len(own.results) == len(own.frame)
    assert any(arm.rank == 1 for arm in own.ranking.arms)
    assert set(own.frame.commit.str.len()) == {12}, "made from files that were not committed"


def test_results_are_what_the_tables_say() -> None:
    assert rebuild.main(["--check"]) == 0, "make results, and look at what changed"


def test_a_block_that_asks_for_nothing_known() -> None:
    with pytest.raises(SystemExit, match="unknown table 'ranks'"):
        rebuild.rebuild("<!-- table: ranks strategy1 -->\n<!-- end -->")


@pytest.mark.parametrize("asked", ["a.png bars strategy1", "none.png arms strategy1 final/loss"])
def test_a_figure_that_is_not_known_or_not_drawn(asked: str) -> None:
    with pytest.raises(SystemExit, match=r"unknown figure 'bars'|none.png is not drawn yet"):
        rebuild.rebuild(f"<!-- figure: {asked} -->\n<!-- end -->")


def test_figures_are_drawn(tmp_path: Path) -> None:
    figures.arms(tmp_path / "a.png", "strategy1", "final/loss")
    figures.curves(tmp_path / "b.png", "strategy1", "lr", "tokens,clip", "final/loss")
    figures.points(tmp_path / "c.png", "strategy1", "code", "final/px_error", "final/uniformity")
    for name in "abc":
        with Image.open(tmp_path / f"{name}.png") as image:
            assert min(image.size) > 100


def test_shares_of_a_balanced_design_add_up() -> None:
    rows = shipped_tables.variance("strategy3", "final/loss").splitlines()[2:]
    shares = {row.split("|")[1].strip(): row.split("|")[2] for row in rows if row.startswith("|")}
    assert "tokenizer x positions" in shares
    values = [float(share.partition("%")[0]) for share in shares.values()]
    assert sum(values) == pytest.approx(100, abs=0.05 * len(values))  # each is rounded


def test_interval_of_a_rank_correlation() -> None:
    low, high = shipped_tables.fisher(0.0, 103)
    assert high == -low == pytest.approx(math.tanh(1.959964 / 10))
    low, high = shipped_tables.fisher(0.9, 20)
    assert low < 0.9 < high < 1
    assert 0.9 - low > high - 0.9  # skewed away from 1
