"""Optuna's pruners: a study whose trials a rule may end, told readings and ends."""

from __future__ import annotations

import math
import warnings

import optuna
from optuna.trial import TrialState

from ablate.nouns import Pruning


def make_pruned_study(pruning: Pruning) -> optuna.Study:
    """A study in memory whose trials are pruned by a rule."""
    options, made = dict(pruning.options), optuna.pruners
    pruner: optuna.pruners.BasePruner
    if pruning.rule == "median":
        pruner = made.MedianPruner(
            n_startup_trials=options.get("startup", 5), n_warmup_steps=options.get("warmup", 0)
        )
    elif pruning.rule == "asha":
        pruner = made.SuccessiveHalvingPruner(
            min_resource=options["min_steps"], reduction_factor=options.get("factor", 4)
        )
    elif pruning.rule == "hyperband":
        pruner = made.HyperbandPruner(
            min_resource=options["min_steps"],
            max_resource=options["max_steps"],
            reduction_factor=options.get("factor", 3),
        )
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is experimental there
            pruner = made.WilcoxonPruner(p_threshold=options.get("p", 0.1))
    return optuna.create_study(study_name="ablate", direction=pruning.direction, pruner=pruner)


def prunes(trial: optuna.Trial, step: int, value: float) -> bool:
    """Report a reading; whether the trial is to stop."""
    trial.report(value, step)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a pruner leaves out of account
        return trial.should_prune()


def close_trial(
    study: optuna.Study, trial: optuna.Trial, value: float | None, *, pruned: bool
) -> None:
    """Tell the end of a trial; without a value it says nothing of the others."""
    if pruned:
        study.tell(trial, state=TrialState.PRUNED)
    elif value is None or not math.isfinite(value):
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, value)
