"""Optuna, as a view of the ledger: suggestions, pruners, importances and storages.

Only this package imports optuna. Nothing of Optuna outlives a call: a study in memory is rebuilt
from what the ledger holds.

    trials        our nouns as Optuna's: distributions, constraints, studies
    design        the design `search`: what to try next
    suggestions   what a search thought of, on disk
    pruners       whether a trial is worth finishing
    importances   what readings hung on
    storage       a study that Optuna opens
"""

import logging

import optuna

optuna.logging.set_verbosity(optuna.logging.ERROR)
logging.getLogger("optuna").setLevel(logging.ERROR)
