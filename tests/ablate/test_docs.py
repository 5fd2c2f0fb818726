"""The examples of docs/designs.md, each read as a user's study would be."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from ablate.designs import DESIGNS
from ablate.nouns import Options, StudyError
from ablate.planner import ADAPTIVE, Planner
from ablate.pruning_schema import RULES
from ablate.reader import load_study
from ablate.study import plan

TEXT = Path("docs/designs.md").read_text()
BLOCKS = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
WHOLE, *PARTS = BLOCKS
IN_TABLE = dict(re.findall(r"^\| `(\w+)` \|.*\| `design: (\{.*\})` \|$", TEXT, re.MULTILINE))


def keys(text: str) -> list[str]:
    return re.findall(r"^(\w+):", text, re.MULTILINE)


def laid_over(folder: Path, part: str) -> str:
    """The whole example with a part in place of its own keys; text, as a user would paste it."""
    kept = [
        chunk
        for chunk in re.split(r"^(?=\w)", WHOLE, flags=re.MULTILINE)
        if chunk.split(":")[0] not in keys(part)
    ]
    file = folder / "mine.yaml"
    file.write_text("".join(kept) + part)
    return str(file)


@cache
def rules() -> dict[str, str]:
    """Every rule of `pruning`, those in comments too."""
    (part,) = [part for part in PARTS if "pruning" in keys(part)]
    lines = re.findall(r"^  (?:# )?((\w+): \{[^}]*\})", part, re.MULTILINE)
    return {rule: line for line, rule in lines}


def test_there_is_an_example_of_everything() -> None:
    assert {*IN_TABLE} == {*DESIGNS, *ADAPTIVE}
    assert {*rules()} == {*RULES}
    assert keys(WHOLE)[0] == "question"
    assert all(keys(part) for part in PARTS)


@pytest.mark.parametrize("design", IN_TABLE)
def test_a_line_of_the_table_is_read_and_planned(tmp_path: Path, design: str) -> None:
    study = load_study(laid_over(tmp_path, f"design: {IN_TABLE[design]}\n"))
    assert [one.name for one in study.designs] == [design]
    if design in DESIGNS:
        assert plan(study).jobs
    else:
        assert Planner(study, Options(out=tmp_path / "out")).plan().more


@pytest.mark.parametrize("part", PARTS, ids=lambda part: "+".join(keys(part)))
def test_a_block_is_read(tmp_path: Path, part: str) -> None:
    study = load_study(laid_over(tmp_path, part))
    given: dict[str, Any] = yaml.safe_load(part)
    if "design" in given:
        assert [one.name for one in study.designs] == list(given["design"])
        assert Planner(study, Options(out=tmp_path / "out")).plan().more
    assert (study.pruning is not None) == ("pruning" in given)
    assert study.stop_when_passed == given.get("stop_when_passed", False)


@pytest.mark.parametrize("rule", rules())
def test_a_rule_in_a_comment_is_read(tmp_path: Path, rule: str) -> None:
    seeds = "[0, 1, 2, 3, 4]" if rule == "wilcoxon" else "[0]"
    study = load_study(laid_over(tmp_path, f"seeds: {seeds}\npruning:\n  {rules()[rule]}\n"))
    assert study.pruning is not None
    assert study.pruning.rule == rule
    assert study.pruning.reading in ("val/px_error", "final/px_error")


def test_a_misspelt_key_in_an_example_would_be_found(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="did you mean 'trials'"):
        load_study(laid_over(tmp_path, "design: {search: {trails: 40}}\n"))
