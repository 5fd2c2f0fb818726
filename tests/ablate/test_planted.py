"""A study whose truth is known, run from its file to its report: the answer is that truth."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ablate.cli import main
from ablate.wording import number
from tests.ablate import planted_core as truth

pytestmark = pytest.mark.filterwarnings("ignore:::(mlflow|alembic|sqlalchemy|pydantic)")

STUDY = """
question: Which of five changes lower the px error, and do any two of them interact?
core: tests.ablate.planted_core
factors:
{factors}
design: {design}
seeds: [0, 1, 2]
"""


@dataclass
class Answer:
    """What one run of the study said, and where."""

    path: str
    out: Path
    terminal: str
    page: str
    ranking: dict[str, Any]

    def effects(self, metric: str) -> dict[str, dict[str, Any]]:
        return {e["factor"]: e for e in self.ranking["effects"] if e["metric"] == metric}

    def terms(self, metric: str) -> dict[str, dict[str, Any]]:
        return {t["term"]: t for t in self.ranking["variance"] if t["metric"] == metric}


def ran(out: Path, design: str, capsys: pytest.CaptureFixture[str]) -> Answer:
    factors = [f"  {s}: {{off: {{{s}: false}}, on: {{{s}: true}}}}" for s in truth.SWITCHES]
    path = out / "planted.yaml"
    path.write_text(STUDY.format(factors="\n".join(factors), design=design))
    capsys.readouterr()
    assert main(["run", str(path), "--out", str(out / "runs"), "--engine", "inline"]) == 0
    terminal = capsys.readouterr().out
    folder = out / "runs" / "planted"
    ranking = json.loads((folder / "ranking.json").read_text())
    return Answer(str(path), out / "runs", terminal, (folder / "report.html").read_text(), ranking)


class Silent:
    def __getattr__(self, what: str) -> Any:
        return lambda *arguments: None


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No MLflow, which takes seconds to set up."""
    monkeypatch.setattr("ablate.commands._recorder", lambda asked: Silent())


@pytest.mark.usefixtures("quiet")
def test_a_grid_recovers_effects_shares_and_the_interaction(tmp_path, capsys):
    answer = ran(tmp_path, "factorial", capsys)
    effects = answer.effects("final/px_error")
    for factor, slope in (("tokens", truth.TOKENS), ("lr", truth.LR)):
        found, known = effects[factor], math.exp(slope + truth.BOTH / 2)
        assert found["low"] < known < found["high"]
        assert found["high"] / found["low"] < 1.1
    terms = answer.terms("final/px_error")
    # with levels as -1 and 1, a switch has half its averaged effect and the pair a quarter
    parts = {
        "tokens": ((truth.TOKENS + truth.BOTH / 2) / 2) ** 2,
        "lr": ((truth.LR + truth.BOTH / 2) / 2) ** 2,
        "tokens x lr": (truth.BOTH / 4) ** 2,
    }
    share_of_seeds = terms["seed"]["share"]
    whole = (sum(parts.values()) + truth.NOISE**2) / (1 - share_of_seeds)
    for term, part in parts.items():
        assert terms[term]["share"] == pytest.approx(part / whole, abs=0.03)
    for metric in ("final/px_error", "final/zigzag"):
        mattering = {"tokens", "lr", "tokens x lr"} if metric == "final/px_error" else set()
        clear = {name for name, t in answer.terms(metric).items() if (t["p_holm"] or 1) < 0.05}
        assert clear == mattering
        levers = {name for name, e in answer.effects(metric).items() if e["p_holm"] < 0.05}
        assert levers == mattering - {"tokens x lr"}
    (pair,) = answer.ranking["interactions"]
    assert (pair["factor"], pair["other"]) == ("tokens", "lr")
    assert "no clear effect: clip, schedule and position" in answer.terminal
    assert "tokens x lr" in answer.terminal
    assert "tokens and lr change each other's effect on px error (20 % of its" in answer.terminal
    assert "Factors that change each other" in answer.page


@pytest.mark.usefixtures("quiet")
def test_half_the_grid_says_the_same_and_what_it_cannot_tell_apart(tmp_path, capsys):
    """Resolution IV in 8 runs: the pair that matters may be the other one of its alias."""
    design = "{fractional: {generators: {schedule: [tokens, lr, clip]}}}"
    answer = ran(tmp_path, design, capsys)
    terms = answer.terms("final/px_error")
    clear = {name for name, t in terms.items() if (t["p_holm"] or 1) < 0.05}
    assert clear == {"tokens", "lr", "tokens x lr"}
    assert terms["tokens x lr"]["aliases"] == ["clip x schedule"]
    assert "tokens x lr or clip x schedule" in answer.terminal
    for text in (answer.terminal, html.unescape(answer.page)):
        assert "aliased: tokens:lr = clip:schedule" in text


@pytest.mark.usefixtures("quiet")
def test_changes_one_at_a_time_name_the_levers(tmp_path, capsys):
    answer = ran(tmp_path, "one_at_a_time", capsys)
    effects = answer.effects("final/px_error")
    for factor, slope in (("tokens", truth.TOKENS), ("lr", truth.LR)):
        assert effects[factor]["low"] < math.exp(slope) < effects[factor]["high"]
    assert {f for f, e in effects.items() if e["p_holm"] < 0.05} == {"tokens", "lr"}
    assert "Strongest lever on px error: tokens off -> on" in answer.terminal


def cells(line: str) -> list[str]:
    """The means of a row of the terminal's table: what follows a mark."""
    return re.findall(r"[✓~✗?] (-|[\d.]+)", line)


def rows_of_the_page(page: str) -> Iterator[tuple[str, list[str]]]:
    table = page[page.index('<section id="ranking">') : page.index("</table>")]
    for row in re.findall(r"<tr>\n(.*?)</tr>", table, re.DOTALL):
        (name,) = re.findall(r'data-label="Configuration">(.*?)</td>', row)
        yield html.unescape(name), re.findall(r'">[✓~✗?] (-|[\d.]+)', row)


def test_terminal_report_and_mlflow_tell_the_same_numbers(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    answer = ran(tmp_path, "[one_at_a_time, leave_one_out]", capsys)
    from ablate.tracking import connect

    assert main(["rank", answer.path, "--out", str(answer.out)]) == 0
    ranked = capsys.readouterr().out
    client = connect(answer.out)
    experiment = client.get_experiment_by_name("planted")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.kind = 'config'")
    by_arm = {run.data.tags["arm"]: run.data for run in runs}
    page = dict(rows_of_the_page(answer.page))
    assert list(page) == [arm["arm"] for arm in answer.ranking["ranking"]]
    assert set(by_arm) == set(page)
    assert len(page) == 12
    for text in (answer.terminal, ranked):
        lines = {  # "3 all but lr  ✓ 7.1 ±0.4 ..."
            match[2]: line
            for line in text.splitlines()
            if (match := re.match(r"\s*(\d+) (\S.*?) +[✓~✗?] ", line))
        }
        assert list(lines) == list(page)
        for arm in answer.ranking["ranking"]:
            values = [arm["metrics"][c["metric"]]["mean"] for c in arm["criteria"].values()]
            said = [number(value) for value in values]
            data = by_arm[arm["arm"]]
            assert cells(lines[arm["arm"]]) == said
            assert page[arm["arm"]] == said
            assert [number(data.metrics[c["metric"]]) for c in arm["criteria"].values()] == said
            assert data.metrics["criteria/rank"] == arm["rank"]
            verdicts = [data.tags[f"verdict.{name}"] for name in arm["criteria"]]
            assert verdicts == [c["verdict"] for c in arm["criteria"].values()]
            passed = sum(verdict == "passed" for verdict in verdicts)
            assert data.metrics["criteria/passed"] == passed
