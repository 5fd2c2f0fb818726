"""The studies in studies/: what each trains."""

from pathlib import Path

import pytest

from ablate.lanelm_core import LaneLMCore
from ablate.nouns import Options
from ablate.reader import load_study
from ablate.study import plan


@pytest.mark.parametrize("path", sorted(Path("studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_study_opens_with_what_it_is(path):
    head = path.read_text().split("\nquestion:")[0]
    for part in ("# Question:", "# Command:", "# Cost:", "# Expected:"):
        assert part in head
    assert all(line.startswith("#") for line in head.splitlines())


def test_strategy1_is_the_baseline_each_change_all_and_all_but_one():
    made = plan(load_study("strategy1"))
    assert [arm.label for arm in made.arms] == [
        "base",
        "tokens=p5",
        "y_loss=x only",
        "lr=1e-4",
        "clip=0.5",
        "schedule=cosine",
        "code=as run",
        "all",
        "all but tokens",
        "all but y_loss",
        "all but lr",
        "all but clip",
        "all but schedule",
        "overfit .26",
        "overfit .26 clamped",
    ]
    assert len(made.jobs) == 45
    core = LaneLMCore()
    settings = {job.arm: job.settings for job in made.jobs if job.seed == 0}
    assert core.build(settings["base"]) == core.build({"preset": "v4_fixed"})
    assert core.build(settings["all"]) == core.build({"preset": "strategy1"})
    assert core.build(settings["code=as run"]) == core.build({"preset": "v4_fixed_as_run"})
    assert core.build(settings["overfit .26"]) == core.build({"preset": "overfit_026"})
    clamped = core.build({"preset": "overfit_026_clamped"})
    assert core.build(settings["overfit .26 clamped"]) == clamped
    assert {job.size["visual_tokens"] for job in made.jobs} == {250, 5250}


def test_the_size_of_the_users_own_experiments_is_one_set_away():
    study = load_study("strategy1", Options(sets=("model.preset=lanelm_256",)))
    (job, *_) = plan(study).jobs
    sizes = [job.settings[f"model.{name}"] for name in ("d_model", "n_layers", "n_heads", "d_ff")]
    assert sizes == [256, 4, 8, 512]


def test_the_other_strategies_and_the_grid():
    tokens = {arm: job.size["visual_tokens"] for arm, job in _by_arm("strategy2").items()}
    assert tokens == {
        "full/no pool": 5250,
        "full/pool 250": 250,
        "2x2/no pool": 1500,
        "2x2/pool 250": 250,
        "as run": 5250,
    }
    assert list(_by_arm("strategy3")) == [
        "absolute/plain",
        "absolute/stronger",
        "relative/plain",
        "relative/stronger",
        "as run",
        "overfit .26",
        "overfit .26 clamped",
    ]
    shared = {job.id for job in plan(load_study("strategy1")).jobs}
    assert len(shared & {job.id for job in plan(load_study("strategy3")).jobs}) == 4 * 3
    grid = plan(load_study("grid"))
    assert len({job.id for job in grid.jobs}) == 144
    assert {job.settings["optim.schedule"] for job in grid.jobs} == {"cosine"}


def _by_arm(name):
    return {job.arm: job for job in plan(load_study(name)).jobs}


def test_strategies_share_their_baseline():
    first, *others = (plan(load_study(f"strategy{n}")).jobs[0].id for n in (1, 2, 3))
    assert others == [first, first]


def test_mistakes_repairs_four_things_and_touches_nothing_else():
    arms = _by_arm("mistakes")
    assert len(arms) == 2**4
    as_run = arms["leak/ignored/shifted/off by one"].settings
    repaired = arms["bos/learned/same/exact"].settings
    assert {path for path, value in as_run.items() if repaired[path] != value} == {
        "model.start",
        "loss.ends",
        "model.decode_shift",
        "model.decode_y_offset",
    }
    core = LaneLMCore()
    size = {"preset": "v4_fixed_as_run", "model.preset": "lanelm_128"}
    own = ("seed", "optim.steps", "data.train_images", "data.val_images")
    kept = {p: as_run[p] for p in as_run if p in own or p.startswith(("evaluation.", "runtime."))}
    assert core.build(as_run) == core.build({**size, **kept})


def test_root_cause_repairs_and_breaks_one_thing_at_a_time():
    arms = _by_arm("root_cause")
    assert len(arms) == 2 + 19 + 17
    base, sound = (arms[name].settings for name in ("base", "all"))
    assert base["model.start"] == "leak"
    assert sound["model.start"] == "bos"
    for label, job in arms.items():
        of = sound if label.startswith("all") else base
        changed = {path for path, value in job.settings.items() if of.get(path) != value}
        assert len({path.split(".")[0] for path in changed}) <= 2, label  # one factor's settings
        assert bool(changed) == (label not in ("base", "all")), label
