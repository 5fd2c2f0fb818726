import inspect
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from ablate.core import Core, CoreError, Diverged, Interrupted, load_core
from ablate.lanelm_core import LaneLMCore
from ablate.ledger import Ledger
from ablate.module_core import ModuleCore
from ablate.nouns import Design, Factor, Level, Result, Study, StudyError
from ablate.plan import plan
from tests.ablate import toy_core

TOY = "tests.ablate.toy_core"
PARTS = [name for name, _ in inspect.getmembers(Core) if not name.startswith("_")]


def silent(step, metrics, event=None):
    pass


def run_toy(workdir, log=silent, stop=lambda: False, **settings):
    core = load_core(TOY)
    workdir.mkdir(exist_ok=True)
    return core.train(core.settings(core.build(settings)), log, workdir, workdir, stop)


def test_importing_the_orchestrator_imports_neither_model_nor_torch():
    code = (
        "import sys, ablate.study, ablate.core, ablate.ledger; ablate.core.load_core();"
        "print([m for m in ('torch', 'model', 'mlflow', 'optuna', 'pandas') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["lanelm", TOY])
def test_a_core_has_every_part(name):
    core = load_core(name)
    for part in PARTS:
        assert hasattr(core, part), part
        if callable(getattr(Core, part)):
            asked = list(inspect.signature(getattr(Core, part)).parameters)[1:]
            assert list(inspect.signature(getattr(core, part)).parameters) == asked


def test_a_core_runs_a_whole_study(tmp_path):
    """What the coordinator does, without it: plan, train, keep, judge."""
    rates = Factor("lr", tuple(Level(rate, {"lr": float(rate)}) for rate in ("0.001", "1.0")))
    core = load_core(TOY)
    designs = (Design("factorial"),)
    study = Study("toy", "?", {}, (rates,), designs, (0, 1), core.criteria(), core=TOY)
    ledger = Ledger(tmp_path)
    for job in plan(study).jobs:
        folder = ledger.create(job)
        metrics = core.train(ledger.settings(job.id), silent, folder, tmp_path)
        ledger.write_result(Result(job.id, job.levels, job.seed, "done", metrics))
    results = {(job.arm, job.seed): ledger.result(job.id) for job in plan(study).jobs}
    (criterion,) = study.criteria
    threshold = criterion.conditions[0].threshold
    losses = {key: result.metrics["final/loss"] for key, result in results.items() if result}
    assert losses["1.0", 0] < threshold < losses["0.001", 0]
    assert losses["1.0", 0] != losses["1.0", 1]


def test_the_toy_core_resumes_to_the_same_numbers(tmp_path):
    whole = run_toy(tmp_path / "whole")
    asked = iter([False] * 17 + [True])
    with pytest.raises(Interrupted):
        run_toy(tmp_path / "parts", stop=lambda: next(asked))
    steps = []
    parts = run_toy(tmp_path / "parts", log=lambda step, *_: steps.append(step))
    assert parts["final/loss"] == whole["final/loss"]
    assert steps[0] == 17


def test_the_toy_core_breaks_to_order(tmp_path):
    with pytest.raises(OSError, match="as asked"):
        run_toy(tmp_path, fault="raise", fault_times=1)
    assert run_toy(tmp_path, fault="raise", fault_times=1)["final/error"] == 0
    with pytest.raises(Diverged, match="step 10"):
        run_toy(tmp_path / "diverge", fault="diverge")
    core = load_core(TOY)
    with pytest.raises(CoreError, match="fault: given 'boom'"):
        core.check([core.build({"fault": "boom"})])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lrr": 1.0}, "unknown setting 'lrr'; did you mean 'lr'?"),
        ({"qqq": 1.0}, "unknown setting 'qqq'; allowed: seed, lr, "),
        ({"lr": "fast"}, "lr: given 'fast', must be of type float"),
        ({"steps": 1.5}, "steps: given 1.5, must be of type int"),
        ({"steps": True}, "steps: given True, must be of type int"),
    ],
)
def test_a_module_core_refuses_what_it_has_no_setting_for(settings, message):
    with pytest.raises(CoreError) as caught:
        load_core(TOY).build(settings)
    assert str(caught.value).startswith(message)


def test_a_module_core_takes_no_data():
    with pytest.raises(CoreError, match=r"--data: the core tests\.ablate\.toy_core takes none"):
        load_core(TOY).inputs(["somewhere"], None)


def test_a_modules_own_functions_come_first():
    core = load_core(TOY)
    assert isinstance(core, ModuleCore)
    assert core.check is toy_core.check
    assert core.identity(core.build({"lr": 0.5, "steps": 3, "seed": 4})) == {"steps": 3}


def test_cores_that_are_not_there():
    with pytest.raises(StudyError, match=r"core: given 'no\.such', cannot be imported"):
        load_core("no.such")
    with pytest.raises(StudyError, match="core: json lacks SETTINGS, train, criteria"):
        load_core("json")


def test_outcomes_survive_the_way_out_of_a_worker():
    back = pickle.loads(pickle.dumps(Diverged(7, {"train/loss": 9.0}, "why")))
    assert (back.step, back.metrics, str(back)) == (7, {"train/loss": 9.0}, "why")


class TestLaneLM:
    """The part of the seam that needs neither images nor training."""

    core = LaneLMCore()

    def test_settings_are_plain_and_make_the_same_config(self):
        config = self.core.build({"preset": "strategy1", "data.roots": ["/a", "/b"], "seed": 3})
        settings = self.core.settings(config)
        assert json.loads(json.dumps(settings)) == settings
        assert settings["data.roots"] == ["/a", "/b"]
        assert self.core.build(settings) == config

    def test_identity_is_what_differs_from_neutral_without_paths_device_and_seed(self):
        settings = {
            "optim.lr": 1e-4,
            "optim.clip": 1.0,
            "seed": 5,
            "data.roots": ["/a"],
            "runtime.device": "cuda",
            "runtime.log_every": 7,
        }
        assert self.core.identity(self.core.build(settings)) == {"optim.lr": 1e-4}

    def test_refusals_are_one_line_with_a_suggestion(self):
        with pytest.raises(CoreError, match=r"'optim\.lrr'; did you mean 'optim\.lr'\?"):
            self.core.build({"optim.lrr": 1})

    def test_inputs_are_absolute(self, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        assert self.core.inputs(["CULane", "/x"], "w.pth") == {
            "data.roots": [str(tmp_path / "CULane"), "/x"],
            "backbone.name": "clrernet_dla34",
            "backbone.checkpoint": str(tmp_path / "w.pth"),
        }
        assert self.core.inputs([], None) == {}

    def test_data_that_is_not_there_is_refused_before_training(self, tmp_path):
        config = self.core.build({"backbone.name": "random", "data.roots": [str(tmp_path / "no")]})
        with pytest.raises(CoreError, match="no such folder") as caught:
            self.core.check([config])
        assert "\n" not in str(caught.value)

    def test_a_checkpoint_of_something_else_is_refused(self, tmp_path):
        (tmp_path / "w.pth").write_text("no weights")
        config = self.core.build(self.core.inputs([], str(tmp_path / "w.pth")))
        with pytest.raises(CoreError, match=r"w\.pth") as caught:
            self.core.check([config])
        assert "\n" not in str(caught.value)

    def test_size_and_fingerprints(self, tmp_path):
        common = {"backbone.name": "random", "model.d_model": 64, "data.val_images": 1}
        p5 = self.core.build({**common, "visual.levels": "p5"})
        full = self.core.build(common)
        assert self.core.describe(p5)["visual_tokens"] == 250
        assert self.core.describe(full)["visual_tokens"] == 5250
        assert self.core.describe(p5)["parameters"] < self.core.describe(full)["parameters"]
        mapped = self.core.build({**common, "visual.levels": "p5", "loss.lane_map": 1.0})
        assert self.core.describe(mapped)["parameters"] > self.core.describe(p5)["parameters"]
        batched = self.core.build({**common, "batch.images": 8, "batch.accumulate": 2})
        assert self.core.workload(batched).images == 16
        prints = self.core.fingerprints(p5, tmp_path)
        assert set(prints) == {"data", "backbone"}
        assert prints == self.core.fingerprints(full, tmp_path)
        other = self.core.build({**common, "data.seed": 1, "backbone.random_seed": 1})
        for part, value in self.core.fingerprints(other, tmp_path).items():
            assert value != prints[part]

    def test_features_of_all_splits_are_prepared_once(self, tmp_path, monkeypatch):
        from model import features

        asked = []
        monkeypatch.setattr(features, "prepare_features", lambda *args: asked.append(args))
        counts = {"data.train_images": 2, "data.val_images": 3, "data.test_images": 1}
        configs = [
            self.core.build({"backbone.name": "random", "optim.lr": lr, **counts})
            for lr in (1e-3, 1e-4)
        ]
        self.core.prepare(configs, tmp_path)
        ((config, refs, cache, progress),) = asked
        assert (config.data, len(refs), cache, progress) == (configs[0].data, 6, tmp_path, None)

    def test_the_users_criteria_are_the_default(self):
        assert {
            (criterion.name, condition.metric, condition.threshold)
            for criterion in self.core.criteria()
            for condition in criterion.conditions
        } == {
            ("loss", "final/loss", 0.1),
            ("uniformity", "final/uniformity", 0.5),
            ("px_error", "final/px_error", 5),
            ("zigzag", "final/zigzag", 1.0),
            ("zigzag", "final/zigzag_flips", 0.02),
        }

    def test_readings_are_judged_through_the_seam(self):
        settings = self.core.settings(self.core.build({}))
        found = self.core.diagnose({"final/loss": 3.0}, settings)
        assert any("rchitecture" in finding.text for finding in found)
        assert all(gate.verdict for gate in self.core.gates({"final/loss": 3.0}, settings))

    def test_the_source_hash_is_of_the_core(self):
        assert len(self.core.source_hash()) == 12
        assert self.core.source_hash() == LaneLMCore().source_hash()
        assert self.core.numerics_version >= 1


MODULE = """from ablate.nouns import Condition, Criterion
SETTINGS = {"lr": 0.5}
def train(settings, log, workdir, cache, stop=lambda: False):
    return {}
def criteria():
    return (Criterion("loss", (Condition("final/loss", 0.3),)),)
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('{"lr": 0.5}', "1 / 0", r"cannot be imported \(ZeroDivisionError: .*wrong_core\d+\.py:2"),
        ('{"lr": 0.5}', '{"lr" 0.5}', r"cannot be imported \(SyntaxError: .*wrong_core\d+\.py:2"),
        ('{"lr": 0.5}', '["lr"]', r"\.SETTINGS: given list, must be a mapping"),
        ('(Criterion("loss", (Condition("final/loss", 0.3),)),)', '["loss"]', r"\.py:5: given 'lo"),
        ('(Criterion("loss", (Condition("final/loss", 0.3),)),)', "7", r"\.criteria: TypeError"),
    ],
)
def test_a_module_with_a_mistake_is_told_where(old, new, said, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    name = f"wrong_core{abs(hash((old, new)))}"
    assert old in MODULE
    (tmp_path / f"{name}.py").write_text(MODULE.replace(old, new))
    with pytest.raises(StudyError, match=said) as caught:
        load_core(name).criteria()
    assert "\n" not in str(caught.value)
