"""What Optuna reads back from `ablate export optuna` is what the ledger holds."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from ablate.ledger import Ledger
from ablate.nouns import Options, StudyError
from ablate.optuna_export import export
from ablate.reader import load_study
from tests.ablate.test_adaptive import go, write


@pytest.mark.parametrize("suffix", [".db", ".jsonl"])
@pytest.mark.filterwarnings("ignore")
def test_optuna_opens_what_was_exported(tmp_path: Path, suffix: str) -> None:
    file, out = write(tmp_path, design="one_at_a_time", seeds=[0, 1]), tmp_path / "out"
    plan, summary, _ = go(file, out)
    study = load_study(str(file), Options(out=out))
    to = tmp_path / f"study{suffix}"
    for _ in range(2):  # a second time replaces the file
        assert export(study, plan, Ledger(out), summary.results, to) == len(plan.jobs) == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", to.name, "toy.yaml"]
    storage = (
        f"sqlite:///{to}"
        if suffix == ".db"
        else optuna.storages.JournalStorage(JournalFileBackend(str(to)))
    )
    found = optuna.load_study(study_name="toy", storage=storage)
    for job, trial in zip(plan.jobs, found.trials, strict=True):
        result = summary.results[job.id]
        assert trial.params == dict(job.levels)
        assert trial.user_attrs["job_id"] == job.id
        assert trial.user_attrs["seed"] == job.seed
        loss = result.metrics["final/loss"]
        assert trial.value == loss
        assert trial.constraints["loss: final/loss"] == pytest.approx(loss / 0.3 - 1)
        assert len(trial.intermediate_values) == 5
        assert trial.distributions["lr"] == optuna.distributions.CategoricalDistribution(
            ["low", "high"]
        )


def test_a_suffix_that_names_no_storage_is_refused(tmp_path: Path) -> None:
    file, out = write(tmp_path, design="one_at_a_time"), tmp_path / "out"
    study = load_study(str(file), Options(out=out))
    with pytest.raises(StudyError, match=r"must be one of \.db"):
        export(study, go(file, out)[0], Ledger(out), {}, tmp_path / "study.csv")
