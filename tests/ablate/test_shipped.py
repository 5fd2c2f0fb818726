"""A study's results as a table that ranks as the ledger does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ablate.cli import main
from tests.ablate.test_adaptive import FACTORS, go, write
from tests.ablate.test_cli import out, recorded_out, run, study

__all__ = ["out", "recorded_out", "study"]

HEADED = "arm,design,level/lr,level/noise,seed,job_id,state,error,attempts,commit,core,final/loss\n"


@pytest.fixture
def table(study: str, out: str, tmp_path: Path) -> Path:
    """The toy study's table; its run folder is gone."""
    assert run(study, out, "--seeds", "3") == 0
    file = tmp_path / "deep" / "toy.csv"
    assert main(["export", "table", study, str(file), "--out", out, "--seeds", "3"]) == 0
    return file


def ranking(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["rank", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_row_a_job(table: Path) -> None:
    rows = pd.read_csv(table)
    assert len(rows) == 4 * 3
    assert list(rows.columns[:5]) == ["arm", "design", "level/lr", "level/noise", "seed"]
    assert rows.groupby("arm").seed.nunique().eq(3).all()
    assert rows["final/loss"].notna().all()
    assert set(rows.state) == {"done"}


def test_the_table_ranks_as_its_ledger(
    study: str, out: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = ranking(capsys, study, "--out", out, "--seeds", "3")
    shipped = ranking(capsys, study, "--from", str(table), "--out", str(tmp_path / "elsewhere"))
    assert shipped["study"] == "toy@toy"
    for key in ("ranking", "effects", "variance", "interactions", "levels", "notes"):
        assert shipped[key] == rounded(ledger[key])


def test_a_table_reports_beside_a_real_run_without_touching_it(
    study: str, out: str, table: Path
) -> None:
    before = {p: p.read_bytes() for p in (Path(out) / "toy").iterdir()}
    assert main(["report", study, "--from", str(table), "--out", out]) == 0
    assert (Path(out) / "toy@toy" / "report.html").exists()
    assert {p: p.read_bytes() for p in (Path(out) / "toy").iterdir()} == before


@pytest.mark.parametrize("option", [("--seeds", "2"), ("--data", "x"), ("--checkpoint", "x")])
def test_options_that_a_table_cannot_follow_are_refused(
    option: tuple[str, str], study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rank", study, "--from", str(tmp_path / "toy.csv"), *option]) == 2
    assert capsys.readouterr().err.startswith(f"ablate: {option[0]}: given beside --from")


def test_a_report_from_a_table_says_what_ran_and_how_to_make_it_again(
    study: str, table: Path, tmp_path: Path
) -> None:
    """The file says seeds 0 and 1; three ran."""
    assert main(["report", study, "--from", str(table), "--out", str(tmp_path)]) == 0
    said = (tmp_path / "toy@toy" / "report.md").read_text()
    assert "0, 1, 2" in said
    assert f"ablate report {study} --out {tmp_path} --from {table}" in said


def test_a_table_of_another_base_is_refused(
    study: str, out: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = ["--from", str(table), "--out", str(tmp_path)]
    assert main(["rank", study, *there, "--set", "steps=3"]) == 2
    assert "toy.csv: line 2: the base of" in capsys.readouterr().err
    file = tmp_path / "three.csv"
    assert main(["run", study, "--out", out, "--set", "steps=3"]) == 0
    assert main(["export", "table", study, str(file), "--out", out, "--set", "steps=3"]) == 0
    three = ["--from", str(file), "--out", str(tmp_path)]
    assert main(["rank", study, *three]) == 2
    assert main(["rank", study, *three, "--set", "steps=3"]) == 0


def test_a_level_that_sets_something_else_by_now_is_refused(
    study: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(study)
    file.write_text(file.read_text().replace("lr: 0.1", "lr: 0.2"))
    assert main(["rank", study, "--from", str(table), "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "toy.csv: line 2:" in said
    assert "sets other things at lr=small, noise=low than when this row was run" in said
    old = pd.read_csv(table).drop(columns="settings")  # one from before the column was there
    old.to_csv(table, index=False)
    assert main(["rank", study, "--from", str(table), "--out", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("arm,seed\na,0\n", "no column 'attempts'; is it a table of toy"),
        (HEADED + "a,f,small,low,0,j,ended,,1,,,0.5\n", "line 2: state: given 'ended', allowed:"),
        (HEADED + "a,f,small,low,zero,j,done,,1,,,0.5\n", "line 2: invalid literal"),
        (HEADED + "a,f,small,lowest,0,j,done,,1,,,0.5\n", "no arm of toy@t has the levels small"),
    ],
)
def test_a_table_that_is_none_of_this_study(
    text: str, said: str, study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "t.csv"
    file.write_text(text)
    assert main(["rank", study, "--from", str(file), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_jobs_without_a_row_are_missing(
    study: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines[:-1]))
    shipped = ranking(capsys, study, "--from", str(table), "--out", str(tmp_path))
    assert sorted(len(arm["seeds"]) for arm in shipped["ranking"]) == [2, 3, 3, 3]


RANGES = {"lr": {"low": 0.1, "high": 2.0, "log": True}, "steps": {"low": 2, "high": 6}}
SEARCH = {"trials": 12, "startup": 3, "objective": "final/loss", "ranges": RANGES}
FOLLOWED: dict[str, dict[str, Any]] = {
    "paths": {"design": {"paths": {"reading": "final/loss"}}},
    "search": {
        "design": [{"one_at_a_time": {}}, {"search": SEARCH}],
        "factors": {"noise": FACTORS["noise"]},
        "seeds": [0],
    },
}


@pytest.mark.parametrize("design", list(FOLLOWED))
def test_a_design_that_follows_results_ranks_from_its_table(
    design: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out, csv = write(tmp_path, **FOLLOWED[design]), tmp_path / "out", tmp_path / "toy.csv"
    go(file, out)
    assert main(["export", "table", str(file), str(csv), "--out", str(out)]) == 0
    assert design in set(pd.read_csv(csv).design)
    ledger = ranking(capsys, str(file), "--out", str(out))
    shipped = ranking(capsys, str(file), "--from", str(csv), "--out", str(tmp_path / "elsewhere"))
    for key in ("ranking", "effects"):
        assert shipped[key] == rounded(ledger[key])
    ends = [
        {one["parameter"]: one["value"] for one in own["importances"]} for own in (ledger, shipped)
    ]
    assert ends[1] == pytest.approx(ends[0], abs=0.03)  # a forest feels the seventh digit
    assert bool(ends[0]) == (design == "search")
    rates = {arm["levels"].get("lr") for arm in shipped["ranking"]}
    assert len(rates) == (2 if design == "paths" else 13)  # twelve points, and "base"
    if design == "paths":
        assert "along the path" in {effect["kind"] for effect in shipped["effects"]}
        assert shipped["notes"] == ledger["notes"]


@pytest.mark.parametrize(
    ("design", "value"), [("search", "fast"), ("search", ""), ("factorial", "0.2")]
)
def test_an_arm_that_no_search_comes_to_is_refused(
    design: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, csv = write(tmp_path, **FOLLOWED["search"]), tmp_path / "t.csv"
    head = HEADED.replace("level/lr,level/noise", "level/noise,level/lr,level/steps")
    csv.write_text(head + f"a,{design},much,{value},3,0,j,done,,1,,,0.5\n")
    assert main(["rank", str(file), "--from", str(csv), "--out", str(tmp_path)]) == 2
    assert f"no arm of toy@t has the levels much, {value}, 3" in capsys.readouterr().err


def rounded(value: Any) -> Any:
    """Numbers as they come back from six digits."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return pytest.approx(value, rel=1e-3, abs=1e-6) if isinstance(value, float) else value
