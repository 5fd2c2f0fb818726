"""The report: one safe, self-contained page that says what the ranking says."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ablate import charts, wording
from ablate.gallery import embed, over_steps
from ablate.nouns import Condition, Criterion, Design, Plan, Study
from ablate.parallel import axes_of, parallel_coordinates
from ablate.rank import judge, rank
from ablate.report import _arms_shown, render_markdown, render_report
from tests.ablate import synthetic


class Page(HTMLParser):
    """Text of a page, what it would load, and whether its tags match."""

    VOID = frozenset(["meta", "link", "br", "img", "input"])

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.loads += [values[name] or "" for name in ("src", "href") if name in values]
        if "id" in values:
            self.ids.append(values["id"] or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def reported(folder: Path, of: Study | None = None) -> tuple[str, str]:
    """A synthetic study as HTML and Markdown."""
    study = of or synthetic.study()
    plan = synthetic.plan(study)
    results = synthetic.results(plan)
    ledger = synthetic.keep(folder, plan, results)
    gates, findings = judge(synthetic.Core(), plan.jobs, results)  # type: ignore[arg-type]
    ranking = rank(study, plan.jobs, results, gates=gates, findings=findings)
    histories = {job.id: list(ledger.events(job.id)) for job in plan.jobs}
    pictures = {
        job.id: sorted((ledger.folder(job.id) / "pictures").glob("*.png")) for job in plan.jobs
    }
    page = render_report(study, plan, ranking, results, histories, pictures, "ablate run <x>")
    return page, render_markdown(study, plan, ranking, results, "ablate run <x>")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return reported(tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="module")
def page(both: tuple[str, str]) -> Page:
    return Page(both[0])


def test_the_page_opens_without_a_network(both, page):
    assert page.open == []
    assert all(place.startswith(("#", "data:")) for place in page.loads)
    assert not re.search(r"https?://(?!www\.w3\.org/)", both[0])  # namespaces load nothing
    assert len(both[0]) < 2_000_000


def test_only_our_own_script_may_run(both):
    (script,) = re.findall(r"<script>(.*?)</script>", both[0], re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in both[0]
    assert "default-src 'none'" in both[0]
    assert not re.search(r"\son\w+=", re.sub(r"<script>.*?</script>", "", both[0], flags=re.DOTALL))


def test_every_arm_is_a_line_over_factors_readings_and_cost(both):
    lines = re.findall(r'class="arm (\w*)" data-arm="([^"]*)" data-at="([^"]*)"', both[0])
    assert len(lines) == 8
    names = re.findall(r'data-name="([^"]*)"', both[0])
    assert names == ["tokens", "lr", "mode", "loss", "uniformity", "px error", "zigzag", "seconds"]
    assert {len(at.split()) for _, _, at in lines} == {len(names)}
    (best,) = [at for kind, _, at in lines if kind == "best"]
    assert best.split()[:2] == ["1.0000", "1.0000"]  # p5 and 1e-4
    assert float(best.split()[5]) < 0.1  # px error, among the least


def test_a_line_is_broken_where_a_reading_is_void(tmp_path):
    study = synthetic.study()
    plan = synthetic.plan(study)
    results = synthetic.results(plan)
    for job in plan.jobs:
        if job.arm == "base":
            readings = {**results[job.id].metrics, "final/coverage": 0.4}
            results[job.id] = synthetic.done(job, readings)
    gates, _ = judge(synthetic.Core(), plan.jobs, results)  # type: ignore[arg-type]
    ranking = rank(study, plan.jobs, results, gates=gates)
    text = parallel_coordinates(ranking, axes_of(ranking))
    (at,) = re.findall(r'class="arm base" data-arm="[^"]*" data-at="([^"]*)"', text)
    assert at.split()[5:7] == ["-", "-"]
    assert parallel_coordinates(rank(study, plan.jobs, {}), []) == ""


def test_of_a_reading_that_should_be_great_the_least_is_chosen():
    wanted = Criterion("far", (Condition("final/px_error", 5.0, above=True),))
    study = replace(synthetic.study(), criteria=(wanted,))
    plan = synthetic.plan(study)
    axes = axes_of(rank(study, plan.jobs, synthetic.results(plan)))
    assert {axis.name: axis.above for axis in axes if not axis.levels} == {
        "px error": True,
        "seconds": False,
    }


def test_everything_is_escaped(both, page):
    assert "Which change makes LaneLM <learn> & why?" in page.text
    assert "<script>alert(1)</script>" in page.text  # as words, not as a tag
    assert "A <CPU>" in page.text
    assert "<learn>" not in both[1]
    assert "<script>" not in both[1]


@pytest.mark.parametrize("design", ["one_at_a_time", "factorial"])
def test_names_are_words_whatever_they_spell(tmp_path, design):
    """Nothing that a factor, level or arm is called becomes a tag, a formula or a table's cell."""
    study = synthetic.hostile(designs=(Design(design),))
    text, words = reported(tmp_path, study)
    page = Page(text)
    assert page.open == []
    assert text.count("<script>") == 1  # ours
    assert all(place.startswith(("#", "data:")) for place in page.loads)
    assert len(page.ids) == len(set(page.ids))
    names = [html.unescape(name) for name in re.findall(r'data-name="([^"]*)"', text)]
    assert names[:3] == [factor.name for factor in study.factors]
    arms = {html.unescape(own) for own in re.findall(r'data-arm="\d+\. ([^"]*)"', text)}
    assert arms == {job.arm for job in synthetic.plan(study).jobs}
    for name in (*arms, *synthetic.HOSTILE.values()):
        assert " ".join(name.split()) in page.text
    rows = [line for line in words.splitlines() if re.match(r"\| (\d+|-) \|", line)]
    assert len(rows) == len(arms)
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    assert "<script>" not in words


def test_the_first_screen_has_question_answer_and_ranking(page):
    place = page.text.index
    assert place("Which change") < place("No configuration meets all 4") < place("✓ 0.0531 ±0.0058")


def test_it_says_what_the_ranking_says(page):
    for words in (
        "px error < 5",
        "✗ 5.31 ±0.58",
        "1 failed",
        "Each change alone, against base",
        "Each change taken back, against all",
        "x0.25 [0.24, 0.26]*",
        "tokenizers differ: raw losses are not comparable",
        "attention is spread evenly",
        "leads to follow, not verdicts",
        "of effects of this kind on that metric",
        "then how many can be tested at all",
        "Next: try visual.position=aligned",
        "seed 1 diverged",
        "abc123",
        "ablate run <x>",
    ):
        assert words in page.text


def test_charts_and_pictures_are_inside(both, page):
    text = both[0]
    assert text.count("<svg") >= 8 + 3  # a curve per arm, effects
    assert text.count("data:image/jpeg") == 6  # best, base and worst: overlay and attention
    assert "currentColor" in text
    assert charts.INK not in text
    assert len(page.ids) == len(set(page.ids))  # clip paths of one chart do not cut another


def test_the_best_arm_is_shown_as_it_trains(tmp_path):
    study = synthetic.study()
    plan = synthetic.plan(study)
    ranking = rank(study, plan.jobs, synthetic.results(plan))
    best = next(job for job in plan.jobs if job.arm == ranking.arms[0].arm)
    paths = [tmp_path / f"{key}_step{step:06d}.webp" for key in "ab" for step in (0, 10, 20, 30)]
    for path in paths:
        synthetic.draw(path, 3)
    rows = over_steps(ranking, {best.arm: [best]}, {best.id: paths})
    ((heading, row),) = rows.items()  # of one key, and of its attention where there is any
    assert heading == f"a, {best.arm} as it trains"
    assert [picture["caption"] for picture in row] == ["step 0", "step 20", "step 30"]
    assert over_steps(ranking, {best.arm: [best]}, {best.id: paths[:2]}) == {}


def test_the_answer_comes_first_and_the_rest_after_the_ranking(page):
    place = page.text.index
    assert place("No configuration meets all 4") < place("Strongest lever on px error")
    assert place("Strongest lever on px error") < place("Values are means over seeds")
    assert place("Values are means over seeds") < place("Strongest lever on loss")


def test_markdown_has_a_table_row_per_arm(both):
    rows = [line for line in both[1].splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 8
    assert len({row.count(" | ") for row in rows}) == 1
    assert "- lr: 3e-4 -> 1e-4: px error x0.25" in both[1]


def test_a_grid_has_its_variance_shares(tmp_path):
    page = Page(reported(tmp_path, synthetic.study(designs=(Design("factorial"),)))[0])
    assert "Where the variance comes from" in page.text
    assert "tokens x lr" in page.text


@pytest.mark.parametrize("base", ["arm 03", "arm 16"])
def test_of_many_arms_the_best_the_base_and_the_worst_are_drawn(base):
    study = synthetic.study()
    plan = synthetic.plan(study)
    ranking = rank(study, plan.jobs, synthetic.results(plan))
    arms = tuple(replace(ranking.arms[0], arm=f"arm {place:02d}") for place in range(20))
    lost = replace(arms[0], arm="lost", seeds=())
    many = replace(ranking, arms=(*arms, lost), base=base)
    shown = [arm.arm for arm in _arms_shown(many)]
    assert shown == sorted({*(f"arm {place:02d}" for place in range(10)), base, "arm 19"})
    assert [arm.arm for arm in _arms_shown(replace(many, arms=(*arms[:12], lost)))] == [
        arm.arm for arm in arms[:12]
    ]


def test_a_study_without_results_has_a_report(tmp_path):
    study = synthetic.study()
    plan = synthetic.plan(study)
    ranking = rank(study, plan.jobs, {})
    page = Page(render_report(study, plan, ranking, {}, {}, {}))
    assert "No job has ended yet." in page.text
    assert render_markdown(study, Plan([]), rank(study, [], {}), {})


def test_a_picture_that_cannot_be_read_is_left_out(tmp_path):
    broken = tmp_path / "overlay_1.png"
    broken.write_bytes(b"not a picture")
    assert embed(broken, 800) is None


def test_curves_meet_at_common_steps():
    line = charts.curve([{0: 4.0, 10: 2.0, 20: 1.0}, {0: 2.0, 10: 4.0}])
    assert line == charts.Curve([0, 10], [3.0, 3.0], [2.0, 2.0], [4.0, 4.0])
    assert charts.curve([{0: 1.0}, {1: 1.0}]) is None


def test_a_chart_is_the_same_every_time():
    line = charts.Curve([0, 1], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0])

    def draw() -> str:
        return charts.learning_curve(
            line, None, title="a < b", log=False, limits=(0, 3), threshold=1.5
        )

    assert draw() == draw()
    assert 'aria-label="a &lt; b"' in draw()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[object]:
    from tests.ablate.chromium import open_browser

    yield from open_browser(tmp_path)


@pytest.mark.browser
@pytest.mark.long
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_in_a_browser_wide_and_narrow(both, browser, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(both[0])
    browser.get(path.as_uri())
    for width in (1400, 390):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        fits = "return document.documentElement.scrollWidth <= window.innerWidth"
        assert browser.execute_script(fits)
        first = browser.find_element("css selector", "#ranking .pill")
        assert first.is_displayed()
        visible = "return arguments[0].getBoundingClientRect().top < window.innerHeight"
        assert browser.execute_script(visible, first)  # the ranking begins on the first screen
    brush(browser)
    loaded = "return [...document.images].every(i => i.complete && i.naturalWidth > 0)"
    assert browser.execute_script(loaded)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.browser
@pytest.mark.long
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_in_a_browser_with_many_criteria_some_of_them_from_below(tmp_path, browser):
    from selenium.webdriver import Keys

    more = (
        Criterion("far", (Condition("final/px_error", 5.0, above=True),)),
        *(Criterion(f"once more, {n}", (Condition("final/loss", 0.1),)) for n in range(5)),
    )
    study = synthetic.study()
    study = replace(study, criteria=(*study.criteria, *more))
    path = tmp_path / "report.html"
    path.write_text(reported(tmp_path / "runs", study)[0])
    browser.get(path.as_uri())
    wide = "const t = document.querySelector('#ranking .scroll');"
    assert browser.execute_script(f"{wide} return t.scrollWidth > t.clientWidth")
    fits = "return document.documentElement.scrollWidth <= window.innerWidth"
    assert browser.execute_script(fits)  # the table scrolls, the page does not
    kept = "return [...document.querySelectorAll('#parallel .arm:not(.out)')].length"
    everyone = browser.execute_script(kept)
    sliders = browser.find_elements("css selector", "#brushes input")
    (least,) = [slider for slider in sliders if slider.get_attribute("data-above") == "1"]
    assert "at least" in least.find_element("xpath", "..").text
    least.send_keys(Keys.END)  # all but the greatest go
    assert 0 < browser.execute_script(kept) < everyone
    least.send_keys(Keys.HOME)  # any
    assert browser.execute_script(kept) == everyone


def brush(browser: Any) -> None:
    """Keep lines by the controls (keyboard), then by dragging, then free them all."""
    from selenium.webdriver import ActionChains, Keys

    kept = "return [...document.querySelectorAll('#parallel .arm:not(.out)')].length"
    said = browser.find_element("id", "brushed")
    assert browser.execute_script(kept) == 8
    choice = browser.find_element("css selector", "select[data-axis='1']")  # lr
    choice.send_keys("1e-4")
    assert browser.execute_script(kept) == 4
    assert said.text.startswith("4 of 8: 1. ")
    slider = browser.find_element("css selector", "input[data-axis='5']")  # px error
    slider.send_keys(Keys.HOME)
    assert browser.execute_script(kept) == 2  # mode does nothing
    browser.find_element("css selector", "#brushes button").click()
    assert browser.execute_script(kept) == 8
    hit = browser.find_element("css selector", "[data-axis='0'] .hit")  # tokens: drag over p5
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', inline: 'center'})", hit)
    drag = ActionChains(browser).move_to_element_with_offset(hit, 0, -100)
    drag.click_and_hold().move_by_offset(0, 30).release().perform()
    assert browser.execute_script(kept) == 4
    ActionChains(browser).move_to_element(hit).click().perform()  # a tap frees the axis
    assert browser.execute_script(kept) == 8


def test_words_of_the_terminal_and_the_report_agree(page):
    study = synthetic.study()
    plan = synthetic.plan(study)
    results = synthetic.results(plan)
    gates, findings = judge(synthetic.Core(), plan.jobs, results)  # type: ignore[arg-type]
    ranking = rank(study, plan.jobs, results, gates=gates, findings=findings)
    for line in wording.sentences(replace(ranking)):
        assert " ".join(line.split()) in page.text
