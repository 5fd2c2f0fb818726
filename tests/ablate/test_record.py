"""MLflow shows what the ledger holds: completely, once, and with its levels and readings."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablate import history, runs
from ablate.attachments import lay_out
from ablate.ledger import Ledger
from ablate.nouns import UNSEARCHED, Design, Job, Plan, Pruning, Study
from ablate.rank import Ranking, judge, rank
from ablate.record import Recorder, rebuild
from ablate.tracking import connect
from ablate.wording import number
from tests.ablate import synthetic

pytestmark = pytest.mark.filterwarnings("ignore:::(mlflow|alembic|sqlalchemy|pydantic)")


@dataclass
class Recorded:
    """A study in MLflow."""

    study: Study
    plan: Plan
    ledger: Ledger
    ranking: Ranking

    @property
    def experiment(self) -> str:
        found = connect(self.ledger.out).get_experiment_by_name(self.study.name)
        assert found is not None
        return found.experiment_id

    def runs(self, where: str = "") -> list[Any]:
        return list(connect(self.ledger.out).search_runs([self.experiment], where))

    def run(self, job_id: str) -> Any:
        (found,) = self.runs(f"tags.job_id = '{job_id}'")
        return found


def judged(study: Study, plan: Plan, ledger: Ledger) -> Ranking:
    results = {job.id: result for job in plan.jobs if (result := ledger.result(job.id))}
    gates, findings = judge(synthetic.Core(), plan.jobs, results)  # type: ignore[arg-type]
    return rank(study, plan.jobs, results, gates=gates, findings=findings)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An OUT whose database is set up: that takes MLflow seconds."""
    out = tmp_path_factory.mktemp("a run folder")  # with spaces
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        connect(out)
        yield out


@pytest.fixture(scope="module")
def recorded(store: Path) -> Recorded:
    study = synthetic.study(seeds=(0, 1))
    plan = synthetic.plan(study)
    results = synthetic.results(plan)
    for job in plan.jobs:
        if job.arm == "all but lr":  # none of its seeds ends well
            results[job.id] = replace(results[job.id], state="diverged", metrics={}, error="nan")
    ledger = synthetic.keep(store, plan, results)
    ranking = judged(study, plan, ledger)
    rebuild(study, plan, ledger, ranking)
    return Recorded(study, plan, ledger, ranking)


@pytest.fixture
def another(store: Path, request: pytest.FixtureRequest) -> Recorded:
    """A study of one arm in the same store, its jobs not run yet."""
    study = synthetic.study(name=f"study of {request.node.name}", seeds=(0, 1))
    plan = Plan([replace(j, id=f"{request.node.name}-{j.id}") for j in synthetic.plan(study).jobs])
    plan = Plan([job for job in plan.jobs if job.arm == "base"])
    ledger = Ledger(store)
    return Recorded(study, plan, ledger, judged(study, plan, ledger))


def test_a_run_per_job_and_arm_under_one_execution(recorded):
    kinds = Counter(run.data.tags["kind"] for run in recorded.runs())
    assert kinds == {"execution": 1, "job": 16, "config": 8}
    (parent,) = recorded.runs("tags.kind = 'execution'")
    for run in recorded.runs("tags.kind = 'job'"):
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert {run.info.status for run in recorded.runs()} <= {"FINISHED", "FAILED"}


def test_a_jobs_run_has_levels_settings_tags_and_data(recorded):
    job = recorded.plan.jobs[3]
    run = recorded.run(job.id)
    assert run.info.run_name == "tokens=p5 · seed 1"
    assert run.data.params["tokens"] == "p5"
    assert run.data.params["visual.levels"] == "p5"
    assert run.data.params["optim.lr"] == "0.0003"
    tags = run.data.tags
    assert (tags["study"], tags["seed"], tags["state"]) == ("little", "1", "done")
    assert (tags["commit"], tags["fingerprint.data"]) == ("abc123", "d" * 12)
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.digest == "d" * 12


def test_histories_are_lines_and_finals_bars(recorded):
    client = connect(recorded.ledger.out)
    job = recorded.plan.jobs[0]
    run_id = recorded.run(job.id).info.run_id
    losses = client.get_metric_history(run_id, "train/loss")
    assert [point.step for point in losses] == [0, 10, 20, 30, 40]
    assert losses[0].timestamp == 1_700_000_000_000
    (px,) = client.get_metric_history(run_id, "final/px_error")
    assert px.step == 0
    result = recorded.ledger.result(job.id)
    assert result is not None
    assert px.value == result.metrics["final/px_error"]


def test_pictures_are_there_as_images_over_the_steps(recorded):
    client = connect(recorded.ledger.out)
    run = recorded.run(recorded.plan.jobs[0].id)
    files = [Path(item.path).name for item in client.list_artifacts(run.info.run_id, "images")]
    assert sum(name.endswith(".png") for name in files) == 2
    assert any(name.startswith("final~overlay_train_0+step+0+timestamp+") for name in files)
    assert run.data.tags["mlflow.loggedImages"] == "True"
    names = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert "config.json" in names


@pytest.mark.parametrize(
    ("arm", "state"), [("mode=relative", "diverged"), ("all but mode", "failed")]
)
def test_what_went_wrong_is_visible_with_its_reason(recorded, arm, state):
    (run,) = recorded.runs(f"tags.arm = '{arm}' and tags.kind = 'job' and tags.seed = '1'")
    assert run.info.status == "FAILED"
    assert run.data.tags["state"] == state
    assert run.data.tags["reason"]
    assert "<script>" not in run.data.tags["mlflow.note.content"]


def test_an_arms_run_has_means_intervals_and_verdicts(recorded):
    (run,) = recorded.runs("tags.arm = 'all' and tags.kind = 'config'")
    arm = recorded.ranking.arm("all")
    px = arm.metrics["final/px_error"]
    assert number(run.data.metrics["final/px_error"]) == number(px.mean)
    assert number(run.data.metrics["high/final/px_error"]) == number(px.high)
    assert run.inputs.dataset_inputs[0].dataset.digest == "d" * 12
    assert run.data.metrics["criteria/rank"] == arm.rank
    assert run.data.tags["verdict.loss"] == arm.criteria[0].verdict
    assert run.data.params["lr"] == "1e-4"
    assert "seed" not in run.data.params
    line = connect(recorded.ledger.out).get_metric_history(run.info.run_id, "train/loss")
    assert len(line) == 5


def test_an_arm_that_never_ended_well_has_a_run_too(recorded):
    (run,) = recorded.runs("tags.arm = 'all but lr' and tags.kind = 'config'")
    assert run.info.status == "FAILED"
    assert run.data.tags["jobs"] == "2 diverged"


def test_an_arms_run_says_when_its_jobs_trained_and_how_long_one_takes(recorded):
    (run,) = recorded.runs("tags.arm = 'all' and tags.kind = 'config'")
    assert run.info.start_time == 1_700_000_000_000
    assert run.info.end_time - run.info.start_time == 40_000
    assert run.info.run_name == "all · 2 seeds"


def test_what_must_be_known_beside_a_number_is_in_the_name_of_its_run(another):
    jobs = another.plan.jobs
    blind = synthetic.metrics(jobs[0]) | {"final/swap_px": 1.0, "final/uniformity": 0.9}
    results = {jobs[0].id: synthetic.done(jobs[0], blind)}
    ledger = synthetic.keep(another.ledger.out, another.plan, results)
    rebuild(another.study, another.plan, ledger, judged(another.study, another.plan, ledger))
    (run,) = another.runs("tags.kind = 'config'")
    assert run.info.run_name == "base · memorises, 1 missing · 1 seed"
    said = run.data.tags["mlflow.note.content"].split("\n\n")
    assert said.count("memorises: lanes do not move when the image is swapped") == 1
    assert "visual encoder: attention is spread evenly: the image is not used" in said


def test_what_a_study_asks_stands_first_on_the_page_of_a_run(recorded):
    arm = recorded.ranking.arm("all")
    points = [point.key for point in runs.config_points(arm, ())]
    assert points[:4] == ["criteria/rank", "criteria/passed", "criteria/likely", "final/loss"]
    assert len(set(points)) == len(points)
    params = runs.params_of(recorded.study, recorded.plan.jobs[0])
    assert list(params)[:3] == ["tokens", "lr", "mode"]


def test_the_saved_view_shows_levels_and_criteria(recorded):
    experiment = connect(recorded.ledger.out).get_experiment(recorded.experiment)
    view = json.loads(experiment.tags[f"mlflow.sharedViewState.{runs.SHARE_KEY}"])
    assert {"params.`tokens`", "metrics.`final/px_error`"} <= set(view["selectedColumns"])


def test_the_table_says_that_losses_of_other_tokenizers_are_others(recorded):
    experiment = connect(recorded.ledger.out).get_experiment(recorded.experiment)
    said = experiment.tags["mlflow.note.content"]
    assert said.startswith("Which change makes LaneLM &lt;learn&gt; &amp; why?")
    assert "No configuration surely meets all 4 criteria" in said
    assert "raw losses across tokenizers are not comparable" in said


def test_rebuilding_again_changes_nothing(recorded, capfd):
    before = {run.info.run_id for run in recorded.runs()}
    rebuild(recorded.study, recorded.plan, recorded.ledger, recorded.ranking)
    assert {run.info.run_id for run in recorded.runs()} == before
    assert capfd.readouterr() == ("", "")


def test_a_new_result_replaces_the_run_of_the_old(another):
    job = another.plan.jobs[0]
    synthetic.keep(another.ledger.out, another.plan, {job.id: synthetic.done(job)})
    rebuild(another.study, another.plan, another.ledger, another.ranking)
    first = another.run(job.id)
    another.ledger.write_result(synthetic.done(job, {"final/px_error": 1.5}))
    rebuild(another.study, another.plan, another.ledger, another.ranking)
    second = another.run(job.id)
    assert second.info.run_id != first.info.run_id
    assert second.data.metrics["final/px_error"] == 1.5


def test_a_job_whose_arm_has_another_name_shows_it(another):
    job = another.plan.jobs[0]
    synthetic.keep(another.ledger.out, another.plan, {job.id: synthetic.done(job)})
    rebuild(another.study, another.plan, another.ledger, another.ranking)
    first = another.run(job.id)
    renamed = Plan([replace(j, arm="as it was") for j in another.plan.jobs])
    rebuild(another.study, renamed, another.ledger, judged(another.study, renamed, another.ledger))
    second = another.run(job.id)
    assert (first.data.tags["arm"], second.data.tags["arm"]) == ("base", "as it was")
    assert second.info.run_name == "as it was · seed 0"


def test_followed_live_a_job_is_written_once(another):
    """Events arrive in pieces, a resumed job repeats steps, then the result comes."""
    job = another.plan.jobs[0]
    recorder = Recorder(another.ledger.out, another.study)
    recorder.start(another.plan)
    another.ledger.create(job)
    recorder.job_started(job)
    assert another.run(job.id).info.status == "RUNNING"
    for steps in ((0, 10, 20), (10, 20, 30)):
        events = [{"time": 1.7e9 + s, "step": s, "metrics": {"train/loss": 9.0 - s}} for s in steps]
        for event in events:
            another.ledger.append_event(job.id, event)
        recorder.job_events(job, [*events, {"event": "started", "attempt": 1}])
    result = synthetic.done(job)
    another.ledger.write_result(result)
    recorder.job_finished(job, result, another.ledger.folder(job.id))
    recorder.conclude(judged(another.study, another.plan, another.ledger))
    recorder.close()
    run = another.run(job.id)
    assert run.info.status == "FINISHED"
    line = connect(another.ledger.out).get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in line] == [0, 10, 20, 30]
    (execution,) = another.runs("tags.kind = 'execution'")
    assert execution.info.status == "FINISHED"
    assert execution.data.tags["jobs.done"] == "1"


def test_runs_that_a_killed_coordinator_left_open_are_closed(another):
    killed = Recorder(another.ledger.out, another.study)
    killed.start(another.plan)
    killed.job_started(another.plan.jobs[0])
    del killed
    later = Recorder(another.ledger.out, another.study)
    later.start(another.plan)
    later.close()
    assert {run.info.status for run in another.runs()} == {"KILLED"}
    later = Recorder(another.ledger.out, another.study)
    later.start(another.plan)
    later.job_started(another.plan.jobs[0])  # it runs again: one run, not two
    assert another.run(another.plan.jobs[0].id).info.status == "RUNNING"
    later.close()
    assert another.run(another.plan.jobs[0].id).data.tags["state"] == "interrupted"


def test_a_kill_between_the_readings_and_the_end_is_written_again(another):
    """The run is told to be whole by a tag, and to have ended by a later call."""
    synthetic.keep(another.ledger.out, another.plan, synthetic.results(another.plan))
    rebuild(another.study, another.plan, another.ledger, another.ranking)
    job_id = another.plan.jobs[0].id
    client = connect(another.ledger.out)
    client.update_run(another.run(job_id).info.run_id, status="RUNNING")
    rebuild(another.study, another.plan, another.ledger, another.ranking)
    assert another.run(job_id).info.status == "FINISHED"


def test_what_another_study_pruned_has_no_run_here(another):
    job, other = another.plan.jobs
    mine, others = (Pruning(rule, "val/px_error") for rule in ("median", "asha"))
    study = replace(another.study, pruning=mine)
    pruned = replace(synthetic.done(job), state="pruned", metrics={}, error="worse")
    results = {
        job.id: replace(pruned, pruned_by=mine.said),
        other.id: replace(pruned, job_id=other.id, seed=other.seed, pruned_by=others.said),
    }
    synthetic.keep(another.ledger.out, another.plan, results)
    recorder = Recorder(another.ledger.out, study)
    recorder.start(another.plan)
    recorder.close()
    assert [run.data.tags["job_id"] for run in another.runs("tags.kind = 'job'")] == [job.id]


def test_more_than_a_batch_of_metrics_and_params(another):
    job = replace(another.plan.jobs[0], settings={f"a.b{i}": i for i in range(150)})
    another.ledger.create(job)
    metrics = {f"train/m{i}": float(i) for i in range(300)}
    for step in range(4):
        another.ledger.append_event(job.id, {"time": 1.7e9, "step": step, "metrics": metrics})
    another.ledger.write_result(synthetic.done(job))
    recorder = Recorder(another.ledger.out, another.study)
    recorder.start(Plan([job]))
    recorder.close()
    run = another.run(job.id)
    assert len(run.data.params) == 150 + 3 + 1
    assert run.data.metrics["train/m299"] == 299.0


def test_a_range_shows_the_setting_that_was_trained(another):
    """An arm that no search made has no level there, and a column of its own."""
    ranges = {"optim.lr": {"low": 1e-5, "high": 1e-3}}
    study = replace(another.study, designs=(Design("search", {"ranges": ranges}),))
    job = another.plan.jobs[0]
    job = replace(job, levels={**job.levels, "lr": "base", "optim.lr": UNSEARCHED})
    params = runs.params_of(study, job)
    assert params["optim.lr"] == "0.0003"
    assert params["lr"] == "base"  # a factor may have a level of that name
    columns = runs.view_state(study, another.ranking)["selectedColumns"]
    assert columns.index("params.`optim.lr`") == columns.index("params.`mode`") + 1


def test_an_arm_that_left_the_study_leaves_mlflow(another):
    wide = Plan([replace(j, id=f"wide-{j.id}") for j in synthetic.plan(another.study).jobs])
    synthetic.keep(another.ledger.out, wide, synthetic.results(wide))
    rebuild(another.study, wide, another.ledger, judged(another.study, wide, another.ledger))
    assert len(another.runs("tags.kind = 'config'")) == 8
    narrow = Plan([job for job in wide.jobs if job.arm in ("base", "all")])
    for job in narrow.jobs:
        if job.arm == "all":  # it stays, and has no ended job any more
            another.ledger.remove_result(job.id)
    ranking = judged(another.study, narrow, another.ledger)
    rebuild(another.study, narrow, another.ledger, ranking)
    assert [run.data.tags["arm"] for run in another.runs("tags.kind = 'config'")] == ["base"]


def test_a_deleted_experiment_is_restored(another):
    client = connect(another.ledger.out)
    Recorder(another.ledger.out, another.study)
    client.delete_experiment(another.experiment)
    Recorder(another.ledger.out, another.study)
    assert client.get_experiment(another.experiment).lifecycle_stage == "active"


def test_the_tracking_uri_of_the_environment_wins(another, tmp_path, monkeypatch):
    place = tmp_path / "elsewhere.db"
    place.write_bytes((another.ledger.out / "mlflow.db").read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}")
    Recorder(another.ledger.out, another.study)
    assert connect(another.ledger.out).get_experiment_by_name(another.study.name) is not None
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert connect(another.ledger.out).get_experiment_by_name(another.study.name) is None


def test_names_and_values_that_mlflow_refuses_are_made_fit():
    settings = {"a(b)": [1, 2], "seed": 3, "long": "x" * 9000}
    params = runs.params_of(synthetic.study(), Job("", "", {"y loss": "x+0.3y"}, 3, settings))
    assert params["y loss"] == "x+0.3y"
    assert params["a_b_"] == "[1, 2]"
    assert "seed" not in params
    assert len(params["long"]) == 6000


def test_a_history_has_numbers_that_make_lines():
    events = [
        {"step": 1, "time": 2.0, "metrics": {"a": 1.0, "b": None, "c": float("nan")}},
        {"step": 9, "time": 3.0, "metrics": {"final/loss": 0.1}},  # a bar, not a line
        {"event": "started"},
        {"step": 2, "metrics": None},
    ]
    assert list(history.points_of(events)) == [history.Point("a", 1.0, 2000, 1)]


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=12), max_size=3))
def test_lines_without_plateaus_are_the_same_lines(lines):
    points = [
        history.Point(str(key), value, 0, step)
        for key, line in enumerate(lines)
        for step, value in enumerate(line)
    ]
    kept = history.without_plateaus(points)
    for key, line in enumerate(lines):
        own = {point.step: point.value for point in kept if point.key == str(key)}
        assert list(np.interp(range(len(line)), list(own), list(own.values()))) == line
    assert len(history.without_plateaus(kept)) == len(kept)


@given(st.integers(1, 400), st.integers(1, 50))
def test_a_thinned_line_keeps_its_ends_and_is_even_between(length, parts):
    points = [history.Point("loss", float(step), 0, step) for step in range(length)]
    steps = [point.step for point in history.thinned(points, parts)]
    assert (steps[0], steps[-1]) == (0, length - 1)
    assert len(steps) <= parts + 1
    gaps = np.diff(steps)
    assert len(set(gaps[1:])) <= 1  # counted from the end: the first may be shorter
    assert all(0 < gap <= gaps[-1] for gap in gaps)


def test_a_reading_that_stays_is_written_where_its_line_begins_and_ends(another):
    job = another.plan.jobs[0]
    recorder = Recorder(another.ledger.out, another.study)
    recorder.start(another.plan)
    recorder.job_started(job)
    for step in range(1, 7):
        metrics = {"train/loss": 1.0 / step, "train/lr": 0.1}
        recorder.job_events(job, [{"step": step, "time": step, "metrics": metrics}])
    recorder.close()
    client, run_id = connect(another.ledger.out), another.run(job.id).info.run_id
    rates = client.get_metric_history(run_id, "train/lr")
    assert [point.step for point in rates] == [1, 6]
    losses = client.get_metric_history(run_id, "train/loss")
    assert [point.step for point in losses] == [1, 2, 3, 4, 5, 6]


def test_the_last_picture_stands_with_the_final_readings():
    steps = [runs.Picture(Path(f"o_{step}.png"), "o", step) for step in (200, 100)]
    found = [(p.path.name, p.key, p.step) for p in runs.gallery(steps)]
    assert found == [
        ("o_200.png", "final/o", 0),
        ("o_100.png", "pictures/o", 100),
        ("o_200.png", "pictures/o", 200),
    ]


def test_small_pictures_are_linked_not_made_anew(tmp_path):
    path = tmp_path / "overlay_step000100.webp"
    path.write_bytes(b"a webp")
    lay_out(tmp_path / "run", runs.gallery([runs.picture(path)]), [], 1)
    files = sorted((tmp_path / "run" / "images").iterdir())
    assert [file.name.endswith("+compressed.webp") for file in files] == [True, False]
    assert all(file.samefile(path) for file in files)


def test_pictures_carry_their_step(tmp_path):
    for name in ("overlay_train_0_000500.png", "val_1.png", "deep/attention-step-12.jpg", "x.txt"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = {(picture.key, picture.step) for picture in runs.pictures_of(tmp_path)}
    assert found == {("overlay_train_0", 500), ("val_1", 0), ("deep/attention", 12)}
