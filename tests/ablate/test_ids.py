"""Job ids: what changes one, what leaves it, and that they stay for good."""

from pathlib import Path

import pytest

from ablate.lanelm_core import LaneLMCore
from ablate.nouns import StudyError
from ablate.plan import job_id
from ablate.reader import load_study
from ablate.study import plan
from tests.ablate.toys import CORE, TOY


def test_two_studies_share_the_job_they_share(write):
    first = plan(load_study(write(TOY)))
    second = plan(load_study(write(TOY.replace("one_at_a_time", "factorial"), "other.yaml")))
    shared = {job.id for job in first.jobs} & {job.id for job in second.jobs}
    assert len(shared) == len(first.jobs)


class TestIds:
    core = LaneLMCore()

    def id_of(self, seed=0, version=1, reads=None, **settings):
        dotted = {path.replace("__", "."): value for path, value in settings.items()}
        identity = self.core.identity(self.core.build({**dotted, "seed": seed}))
        return job_id(identity, reads or {"data": "d", "backbone": "b"}, seed, version)

    def test_an_id_is_twelve_hex_digits_and_stays_for_good(self):
        assert self.id_of() == "9bb5cd8f2517"
        strategy1 = {
            "visual__levels": "p5",
            "loss__y_weight": 0.0,
            "optim__lr": 1e-4,
            "optim__clip": 0.5,
            "optim__schedule": "cosine",
            "optim__lr_min": 1e-6,
        }
        assert self.id_of(**strategy1, seed=2) == "c9b715e04f69"

    def test_what_changes_numbers_changes_the_id(self):
        ids = [
            self.id_of(),
            self.id_of(optim__lr=1e-4),
            self.id_of(optim__lr=1.0000000001e-4),
            self.id_of(seed=1),
            self.id_of(version=2),
            self.id_of(reads={"data": "e", "backbone": "b"}),
            self.id_of(reads={"data": "d", "backbone": "c"}),
        ]
        assert len(set(ids)) == len(ids)

    def test_paths_device_and_logging_do_not(self):
        assert self.id_of() == self.id_of(
            data__roots=["/elsewhere"],
            runtime__device="cuda:1",
            runtime__log_every=3,
            runtime__checkpoint_every=7,
            runtime__threads=2,
            runtime__pictures=False,
        )

    def test_a_neutral_value_is_as_good_as_none(self):
        """So a field that is added later, neutral in all old jobs, leaves their ids alone."""
        config = self.core.build({})
        for path, value in self.core.settings(config).items():
            if path != "seed":
                assert self.id_of(**{path.replace(".", "__"): value}) == self.id_of(), path

    def test_a_preset_is_only_its_settings(self, monkeypatch):
        from model import presets

        before = self.id_of(preset="strategy1")
        spelt = dict(presets.PRESETS["strategy1"])
        changed = {**spelt, "optim.lr": 7e-4}
        monkeypatch.setitem(presets.PRESETS, "strategy1", changed)
        assert self.id_of(preset="strategy1") != before
        assert self.id_of(preset="strategy1", optim__lr=1e-4) == before
        assert self.id_of(**{path.replace(".", "__"): v for path, v in spelt.items()}) == before

    def test_equal_settings_of_two_cores_are_two_jobs(self, write, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(tmp_path)
        source = (Path(__file__).parent / "toy_core.py").read_text()
        found = []
        for name in ("core_of_one", "core_of_another"):
            (tmp_path / f"{name}.py").write_text(source)
            study = TOY.replace(CORE, name)
            found.append({job.id for job in plan(load_study(write(study))).jobs})
        assert found[0]
        assert not found[0] & found[1]

    def test_numbers_are_canonical(self):
        same = [{"a": 1, "b": [0.5]}, {"b": (0.5,), "a": 1.0}]
        assert len({job_id(identity, {}, 0, 1) for identity in same}) == 1
        assert job_id({"a": -0.0}, {}, 0, 1) == job_id({"a": 0}, {}, 0, 1)
        assert job_id({"a": True}, {}, 0, 1) != job_id({"a": 1}, {}, 0, 1)
        assert job_id({"a": "1"}, {}, 0, 1) != job_id({"a": 1}, {}, 0, 1)
        with pytest.raises(StudyError, match="finite"):
            job_id({"a": float("nan")}, {}, 0, 1)
