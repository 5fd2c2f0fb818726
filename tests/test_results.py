"""RESULTS.md says what the shipped result tables say."""

from __future__ import annotations

import math

import pytest

from studies import rebuild

NAMES = sorted(path.stem for path in rebuild.FOLDER.glob("*.csv"))


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_table_is_of_its_study_and_ranks(name: str) -> None:
    own = rebuild.shipped(name)
    assert len(own.results) == len(own.frame)
    assert any(arm.rank == 1 for arm in own.ranking.arms)
    assert set(own.frame.commit.str.len()) == {12}, "made from files that were not committed"


def test_results_are_what_the_tables_say() -> None:
    assert rebuild.main(["--check"]) == 0, "make results, and look at what changed"


def test_a_block_that_asks_for_nothing_known() -> None:
    with pytest.raises(SystemExit, match="unknown table 'ranks'"):
        rebuild.rebuild("<!-- table: ranks strategy1 -->\n<!-- end -->")


def test_interval_of_a_rank_correlation() -> None:
    low, high = rebuild.fisher(0.0, 103)
    assert high == -low == pytest.approx(math.tanh(1.959964 / 10))
    low, high = rebuild.fisher(0.9, 20)
    assert low < 0.9 < high < 1
    assert 0.9 - low > high - 0.9  # skewed away from 1
