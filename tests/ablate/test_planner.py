"""Adaptive designs over combinations that cannot be: found when planned, or done without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ablate.cli import main
from ablate.nouns import Options, StudyError
from ablate.planner import Planner
from ablate.reader import load_study
from tests.ablate.test_adaptive import FACTORS, PATHS, go, replayed, write
from tests.model.fake_roots import make_tusimple_root

PICKY = {"core": "tests.ablate.picky_core", "seeds": [0]}
TWO = {name: FACTORS[name] for name in ("lr", "scale")}
SEARCH = {"sampler": "random", "objective": "final/loss"}


def searched(**options: Any) -> dict[str, Any]:
    return {"search": SEARCH | options}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (PICKY | {"factors": TWO}, "must be below 1.0 where scale is up to 0.5"),
        (
            {"factors": TWO | {"both": {"no": {}, "yes": {"lr": 0.3}}}, "seeds": [0]},
            "both set lr, to 0.1 and 0.3",
        ),
    ],
    ids=["the core refuses it", "two levels disagree"],
)
def test_a_search_without_ranges_goes_on_past_what_cannot_be(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    file = write(tmp_path, **changes, design=searched(trials=12))
    plan, summary, _ = go(file, tmp_path / "out")
    assert summary.missing == ()
    assert len(plan.arms) > 1
    assert replayed(file, tmp_path / "out") == plan
    (note,) = [note for note in plan.notes if "cannot be" in note]
    assert reason in note


def test_a_path_goes_round_a_combination_that_cannot_be(tmp_path: Path) -> None:
    file = write(tmp_path, **PICKY, design=PATHS)
    plan, summary, _ = go(file, tmp_path / "out")
    assert summary.missing == ()
    assert plan.walked == ("base", "+lr", "+lr +noise", "+lr +noise +scale")
    assert plan.more == ()
    assert "+lr +scale" not in {arm.label for arm in plan.arms}
    (note,) = [note for note in plan.notes if "cannot be" in note]
    assert note.startswith("paths: the combination +lr +scale cannot be (lr: given 1.0")
    assert replayed(file, tmp_path / "out") == plan


def test_a_path_to_what_cannot_be_is_refused_before_anything_trains(tmp_path: Path) -> None:
    file = write(tmp_path, **PICKY, factors=TWO)
    with pytest.raises(StudyError, match=r"must be below 1\.0") as caught:
        replayed(file, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_a_path_whose_base_is_left_out_is_refused_in_a_line(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    for left in ({"exclude": [{"lr": "low"}]}, {"only": [{"lr": "high"}]}):
        file = write(tmp_path, **left)
        with pytest.raises(StudyError, match=r"the path's base is left out \(lr=low, noise=much"):
            replayed(file, tmp_path / "out")
        assert main(["plan", str(file), *out]) == 2


def test_a_path_stops_where_what_is_left_is_left_out(tmp_path: Path) -> None:
    file = write(tmp_path, **PICKY, exclude=[{"scale": "half"}])
    plan, *_ = go(file, tmp_path / "out")
    assert plan.walked == ("base", "+lr", "+lr +noise")
    assert "path: there is no way to change scale" in plan.notes


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"base": {"stepz": 4}}, "base: unknown setting 'stepz'"),
        ({"factors": {"lr": {"low": {"lrr": 0.1}, "high": {}}}}, "factors.lr.low: unknown"),
        ({"base": {"fault": "flood"}}, "fault: given 'flood'"),
    ],
)
def test_a_search_of_what_cannot_be_is_refused_before_anything_trains(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    ranges = {"scale": {"low": 0.5, "high": 1.0}}
    file = write(tmp_path, **({"factors": {}} | changes), design=searched(trials=3, ranges=ranges))
    with pytest.raises(StudyError, match=complaint):
        replayed(file, tmp_path / "out")


def test_a_level_that_needs_anothers_is_no_mistake_of_a_search(tmp_path: Path) -> None:
    factors = {"lr": FACTORS["lr"], "noise": {"much": {"noise": 0.9}, "little": {"noise": 0.2}}}
    changes = {"base": {"scale": 0.5}, "factors": factors, "design": searched(trials=2)}
    file = write(tmp_path, **PICKY, **changes)
    assert replayed(file, tmp_path / "out").jobs == []  # high alone cannot be, with little it can


def test_searches_of_one_setting_over_different_ranges(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    near = {"lr": {"low": 0.1, "high": 1.0}}
    far = {"lr": {"low": 0.01, "high": 9.0, "log": True}, "steps": {"low": 2, "high": 4}}
    design = [searched(trials=10, ranges=near), searched(trials=11, ranges=far)]
    file = write(tmp_path, factors={}, design=design, seeds=[0])
    plan, summary, _ = go(file, tmp_path / "out")
    assert summary.missing == ()
    assert len(plan.jobs) == 21
    assert not any("other settings" in note for note in plan.notes)
    command = [str(file), "--out", str(tmp_path / "out")]
    assert main(["rank", *command, "--json"]) == 0
    ranking = json.loads(capsys.readouterr().out)
    of = {one["search"]: one["points"] for one in ranking["importances"]}
    assert of == {"search": 10, "search 2": 11}
    assert main(["export", "optuna", str(file), str(tmp_path / "kept.db"), *command[1:]]) == 0


def test_without_criteria_a_design_goes_by_the_reading_it_names(tmp_path: Path) -> None:
    ranges = {"fault_times": {"low": 1, "high": 9}}
    none = {"criteria": {"loss": None}}
    for design in (PATHS, searched(trials=2, ranges=ranges)):
        replayed(write(tmp_path, **none, design=design), tmp_path / "out")
    with pytest.raises(StudyError, match="criteria: there are none"):
        replayed(write(tmp_path, **none, design="paths"), tmp_path / "out")


def test_what_was_planned_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path, design=["factorial", "paths"])
    asked = Options(out=tmp_path / "out")
    planner = Planner(load_study(str(file), asked), asked)
    first = planner.plan()
    monkeypatch.setattr(planner.core, "identity", None)
    assert planner.plan() == first
    assert first.jobs[0] in planner.plan().jobs


FEW = """
question: Enough images?
base: {backbone.name: random, data.val_images: 3}
factors: {images: {one: {}, two: {data.train_images: 2}, all: {data.train_images: all}}}
design: factorial
seeds: [0]
"""


def test_a_plan_says_where_fewer_images_validate_than_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_tusimple_root(tmp_path / "tusimple", 4, 1)
    (tmp_path / "few.yaml").write_text(FEW)
    asked = [str(tmp_path / "few.yaml"), "--data", str(root), "--out", str(tmp_path / "out")]
    assert main(["plan", *asked, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["notes"]
    head = "data.val_images=3, but only"
    assert [note.removeprefix(head) for note in said] == [
        " 2 are left beside the training images",
        " 0 are left beside the training images: nothing is read of held-out images, and no "
        "weights are chosen by them",
    ]
